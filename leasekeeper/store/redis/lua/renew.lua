-- renew: extends a lease that is held; it never resurrects (clauses of `lease.renew`).
--
-- KEYS   as in rules.lua
-- ARGV   6 lease   7 new TTL, ms, "": as it is
-- Replies  renewed LEFT_MS | missing
-- Idempotent.

local lease = ARGV[6]
if lock ~= lease or is_over() then   -- else time has nothing to change: it is held, and by this
  advance()
end
local e = find(lease)
if not e or not is_held(lease, e) then
  return answer({'missing'})
end
if ARGV[7] ~= '' then
  e.ttl_ms = ARGV[7]
  put(lease, e)
end
return answer({'renewed', renew(lease, e)})
