-- distrust: another Redis process answers than the one that kept the clock last, and it may not have heard
-- of everything: what is older is not believed any more (law L11).
--
-- KEYS   as in clock_rules.lua
-- ARGV   3 "*"   6 "1": in any case, for this process was not the master for a while
-- Replies  distrusted | trusted: another server was quicker
-- Idempotent. It asks Redis itself who it is.

local now_run = true_run()
if now_run == run and ARGV[6] ~= '1' then
  return answer({is_new and 'distrusted' or 'trusted'})
end
run = now_run
distrust()
return answer({'distrusted'})
