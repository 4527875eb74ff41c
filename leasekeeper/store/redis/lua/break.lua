-- break: puts holders out, a foreign one too (clauses of `lease.break`).
--
-- KEYS   as in rules.lua
-- ARGV   6 what the holders are told   7 how many at most in this call
-- Replies  BROKEN REMAINING: while some remain, the caller calls again; the queue moves up with the last
-- Idempotent: the second time there is nobody.

advance()
local broken = 0
if lock and lock ~= MARKER then
  local e = find(lock)
  if e then
    lose(lock, e, 'broken', ARGV[6])
  else
    call('DEL', LOCK)
    lock, changed = false, true
  end
  broken = 1
end
for _, lease in ipairs(call('ZRANGE', SHARED, 0, ARGV[7] - 1)) do
  local e = find(lease)
  if e then
    lose(lease, e, 'broken', ARGV[6])
  else
    drop_shared(lease)
  end
  broken = broken + 1
end
local remaining = call('ZCARD', SHARED)
if remaining == 0 then
  advance()
end
return answer({broken, remaining})
