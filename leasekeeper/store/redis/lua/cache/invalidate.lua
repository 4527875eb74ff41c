-- invalidate: makes the values of these keys invalid, and all that is being loaded (`cache.invalidate`; law L11).
--
-- KEYS   as in clock_rules.lua, 6 and on: the entries, at most 100
-- ARGV   6 "hard" or "soft"
-- Replies  invalidated
-- A repeat invalidates again.

for i = 6, #KEYS do
  local key = KEYS[i]
  local e = load(key)
  let_time_pass(e, key)
  if ARGV[6] == 'soft' then
    e.softened, e.live = next_seq(), nil
    changed(e)
  elseif e.dirty then
    e.dropped = true
    changed(e)
  else
    void(e)
  end
  tell(e, key)
end
return answer({'invalidated'})
