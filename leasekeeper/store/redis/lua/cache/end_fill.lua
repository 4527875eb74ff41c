-- end_fill: a fill has come to nothing (`cache.fail`, and a filler that is gone; law L10).
--
-- KEYS   as in clock_rules.lua, 6: the entry
-- ARGV   6 fill   7 how: "failed", "unshared", "given_up" or "died"   8 jitter in [0, 1]: chance for the back-off
--        9 failed: when to try again, ms from now, "": as the rules have it; unshared: for how long, ms
--        10 failed: the error that others are told
-- Replies  ended
-- Idempotent: a fill that is not live changes nothing.

local id, how, jitter, ms = ARGV[6], ARGV[7], tonumber(ARGV[8]), tonumber(ARGV[9])
local key = KEYS[6]
local e = load(key)
local was_live = id == e.live
if was_live then
  if how == 'failed' then
    e.deaths = 0
    back_off(e, ARGV[10], ms, jitter)
  elseif how == 'unshared' then
    e.unshared = now_ms + ms
  elseif how == 'died' then
    died(e, jitter)
  end
end
if how == 'failed' or was_live and how == 'unshared' then
  finish(e, id)
elseif was_live then
  e.live = nil   -- it may come late, all the same
end
if was_live then
  tell(e, key)
end
return answer({'ended'})
