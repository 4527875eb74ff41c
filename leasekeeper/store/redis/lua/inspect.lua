-- inspect: who holds the name and who waits (clauses of `lease.inspect`). It lets time pass first.
--
-- KEYS   as in rules.lua
-- ARGV   6 how many holders to read at most   7 how many waiters   8 "1": the acting server watches the
--        name   9 for how long, ms
-- Replies  NOW_MS NEXT_MS WAITING_TOTAL FOREIGN_MS HOLDERS WAITERS
--        FOREIGN_MS: what is left of a foreign program's lock, -1: it has no end, -2: there is none
--        HOLDERS: LEFT_MS ENTRY ...   WAITERS: ENTRY ..., in the order of the queue
-- Idempotent.

advance()
if ARGV[8] == '1' then
  call('ZREMRANGEBYSCORE', WATCH, '-inf', now_ms)   -- servers that are gone
  call('ZADD', WATCH, now_ms + ARGV[9], SERVER)
  keep(WATCH, tonumber(ARGV[9]))
end
local foreign_ms, holders, waiters = -2, {}, {}
local function show(lease, left_ms)
  local text = call('HGET', INFO, lease)
  if text then
    holders[#holders + 1] = left_ms
    holders[#holders + 1] = text
  end
end
if lock and lock ~= MARKER then
  local left_ms = call('PTTL', LOCK)
  if call('HGET', INFO, 'held') == lock then
    show(lock, left_ms)
  else
    foreign_ms = left_ms
  end
end
local found = call('ZRANGE', SHARED, 0, ARGV[6] - 1, 'WITHSCORES')
for at = 1, #found, 2 do
  show(found[at], found[at + 1] - now_ms)
end
if ARGV[7] ~= '0' then
  for _, lease in ipairs(call('ZRANGE', QUEUE, 0, ARGV[7] - 1)) do
    waiters[#waiters + 1] = call('HGET', INFO, lease)
  end
end
return answer({now_ms, next_ms(), call('ZCARD', QUEUE), foreign_ms, holders, waiters})
