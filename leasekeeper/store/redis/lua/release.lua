-- release: gives a lease back, or leaves the queue; it serves as cancel, too (law L6).
--
-- KEYS   as in rules.lua
-- ARGV   6 lease   7 only if it belongs to this server; "": whoever has it
-- Replies  held | waiting | nothing: what the lease id had
-- Idempotent: the second time there is nothing.

local lease, only_of = ARGV[6], ARGV[7]
if lock ~= lease or is_over() then   -- else time has nothing to change: it is held, and by this
  advance()
end
local e = find(lease)
if not e or (only_of ~= '' and only_of ~= server_of(e.owner)) then
  return answer({'nothing'})
end
if server_of(e.owner) ~= SERVER then
  tell_moved(lease, e)
end
local had = e.fence == '0' and 'waiting' or 'held'
leave(lease, e)
move_up()
return answer({had})
