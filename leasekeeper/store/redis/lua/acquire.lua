-- acquire: asks for the name (clauses of `lease.acquire`; laws L1, L2, L4, L6).
--
-- KEYS   as in rules.lua
-- ARGV   6 lease   7 mode, "x" or "s"   8 limit, 0: none   9 TTL, ms   10 max hold, ms, 0: none
--        11 how long a waiter stays without a touch, ms   12 wait, ms, -1: for ever   13 owner   14 note
--        15 "1": it is to wait   16 how many may wait
--        17 "1": also what belongs to another server is taken over
-- Replies  granted FENCE LEFT_MS WAITED_MS | held FENCE LEFT_MS 0: it had it before
--        | queued POSITION FENCE NEXT_MS | busy | full | mismatch | elsewhere | paused: grants are
-- Idempotent by lease id: a holder is renewed and keeps its fence, a waiter keeps its place.

local lease, owner, wait = ARGV[6], ARGV[13], ARGV[15] == '1'
local idle = not lock and call('EXISTS', INFO, QUEUE, SHARED) == 0
if not idle then
  advance()
end
local known = not idle and find(lease)
if known then
  if known.mode ~= ARGV[7] or known.limit ~= ARGV[8] then
    return answer({'mismatch'})
  elseif ARGV[17] == '0' and server_of(known.owner) ~= server_of(owner) then
    return answer({'elsewhere'})
  elseif is_held(lease, known) then
    return answer(hold_again(lease, known, owner))
  elseif wait then
    return answer(queue_again(lease, known, owner, ARGV[12]))
  end
  return answer(give_up(lease, known, owner))
end

local asked = {
  mode = ARGV[7], limit = ARGV[8], ttl_ms = ARGV[9], max_hold_ms = ARGV[10], alive_ms = ARGV[11],
  wait_ms = ARGV[12], owner = owner, note = ARGV[14], asked_ms = now_ms, since_ms = now_ms,
  fence = '0', until_ms = '0', final = '0',
}
local waiting = idle and 0 or call('ZCARD', QUEUE)
if not MAY_GRANT then
  return answer({'paused'})
elseif idle or waiting == 0 and fits(asked) then
  local fence, left_ms = grant(lease, asked)
  return answer({'granted', fence, left_ms, 0})
elseif not wait then
  return answer({'busy'})
elseif waiting >= tonumber(ARGV[16]) then
  return answer({'full'})
end

local last = call('ZRANGE', QUEUE, -1, -1, 'WITHSCORES')[2]
call('ZADD', QUEUE, (last or 0) + 1, lease)
vouch(lease, asked, tonumber(asked.alive_ms))

local told = {}
local function tell_contended(holder)
  local e = find(holder)
  local server = e and server_of(e.owner)
  if server and not told[server] then
    told[server] = true
    tell(server, string.format('contended %s %d', NAME, waiting + 1))
  end
end
if lock and lock ~= MARKER then
  tell_contended(lock)
else
  for _, holder in ipairs(call('ZRANGE', SHARED, 0, SHOWN_MAX - 1)) do
    tell_contended(holder)
  end
end
return answer(queued(lease))
