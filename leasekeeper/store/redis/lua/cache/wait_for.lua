-- wait_for: whoever loads this key waits for another one, or waits no more (`within_key` of `cache.get`).
--
-- KEYS   as in clock_rules.lua, 6: the entry
-- ARGV   6 fill   7 the other key, "": none
-- Replies  noted
-- Idempotent. A fill that is not live changes nothing.

local e = load(KEYS[6])
if ARGV[6] == e.live then
  find_fill(e, e.live).on = ARGV[7] ~= '' and ARGV[7] or nil
  changed(e)
end
return answer({'noted'})
