-- The rules of one name, in front of every script here. They say the same as leasekeeper/core/lock.py,
-- and one property test holds the two against each other (laws L1, L2, L4, L5, L6).
--
-- KEYS  1 lock    string: lease id of the exclusive holder; "shared" while shared leases are held; any
--                 other value belongs to a foreign program that took the lock with SET NX PX
--       2 shared  zset: shared lease id -> when it runs out, ms of Redis TIME
--       3 limits  zset: shared lease id -> its limit, for those that have one
--       4 queue   zset: waiting lease id -> sequence number
--       5 info    hash: lease id -> entry, see `parse`; "held" -> lease id of the exclusive holder
--       6 fence   string: the last fence
--       7 watch   zset: server -> until when it wants to hear of changes, ms of Redis TIME
-- ARGV  1 name    2 server: who acts    3 prefix of the servers' channels
--       4 how long a fence is remembered after its last use, ms
--       5 "1": new grants may be made; "0": not now, for data may have been lost
--       6 and on: the script's own
--
-- Every reply ends with the list of events for the acting server; those for others are published.
-- Work per call is bounded: at most HEADS_MAX waiters and EXPIRED_MAX shared leases are dealt with.

local LOCK, SHARED, LIMITS, QUEUE, INFO, FENCE, WATCH =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local NAME, SERVER, CHANNEL, MEMORY_MS, MAY_GRANT =
  ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5] == '1'
local HEADS_MAX, EXPIRED_MAX, SHOWN_MAX = 100, 100, 100
local FOREIGN_POLL_MS = 200   -- nobody tells us when a foreign program lets go
local SLACK_MS = 10000        -- what is known of a lease outlives it, so that its loss can be told
local EXCLUSIVE, MARKER = 'x', 'shared'

local call = redis.call
local time = call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local now_us = time[1] * 1000000 + time[2]
local events, changed, more = {}, false, false
local lock = call('GET', LOCK)   -- kept in step with the key by everything below

-- An entry: MODE LIMIT TTL_MS MAX_HOLD_MS ALIVE_MS WAIT_MS OWNER ASKED_MS SINCE_MS FENCE UNTIL_MS FINAL NOTE
-- with 0 for "none", WAIT_MS -1 for ever. A waiter has FENCE 0, and UNTIL_MS is when its server's word
-- for it ends. A holder's UNTIL_MS is where its max hold ends, FINAL "1" when its lease ends there.
-- OWNER is SERVER.SERIAL. NOTE is JSON that is not read here.
local function parse(text)
  local e = {}
  e.mode, e.limit, e.ttl_ms, e.max_hold_ms, e.alive_ms, e.wait_ms, e.owner, e.asked_ms, e.since_ms,
    e.fence, e.until_ms, e.final, e.note = string.match(text,
    '^(%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (.*)$')
  return e
end

local function text_of(e)
  return table.concat({e.mode, e.limit, e.ttl_ms, e.max_hold_ms, e.alive_ms, e.wait_ms, e.owner,
    e.asked_ms, e.since_ms, e.fence, e.until_ms, e.final, e.note}, ' ')
end

-- A number of more than 14 digits as text: by itself Lua writes it with an exponent.
local function whole(number)
  return string.format('%.0f', number)
end

-- It waits, or shares, only while it has its place: a script that failed half-way may have taken it.
local function find(lease)
  local text = call('HGET', INFO, lease)
  local e = text and parse(text)
  local place = e and (e.fence == '0' and QUEUE or e.mode ~= EXCLUSIVE and SHARED)
  if place and not call('ZSCORE', place, lease) then
    call('HDEL', INFO, lease)
    return nil
  end
  return e
end

local function put(lease, e)
  call('HSET', INFO, lease, text_of(e))
end

local function server_of(owner)
  return string.match(owner, '^[^.]*')
end

local function tell(server, event)
  if server == SERVER then
    events[#events + 1] = event
  else
    call('PUBLISH', CHANNEL .. server, event)
  end
end

-- Lets a key live for at least this long from now, if it exists.
local function keep(key, ms)
  local left_ms = call('PTTL', key)
  if left_ms ~= -2 and left_ms < ms then
    call('PEXPIRE', key, math.ceil(ms))
  end
end

-- The same for all that is known of those who hold and wait. It ends together: an entry without its
-- place in the queue, or among the shared leases, would be taken for one that waits or holds.
local function keep_known(ms)
  keep(INFO, ms + SLACK_MS)
  if call('EXISTS', SHARED, QUEUE) == 0 then
    return
  end
  local left_ms = call('PTTL', INFO)
  for _, key in ipairs({SHARED, LIMITS, QUEUE}) do
    keep(key, left_ms)
  end
end

local function keep_marker(left_ms)
  if lock == MARKER then
    keep(LOCK, left_ms + 1)
  elseif not lock then
    call('SET', LOCK, MARKER, 'PX', left_ms + 1)
    lock = MARKER
  end
end

local function drop_shared(lease)
  call('ZREM', SHARED, lease)
  call('ZREM', LIMITS, lease)
  if lock == MARKER and call('EXISTS', SHARED) == 0 then
    call('DEL', LOCK)
    lock = false
  end
end

-- What is left of a holder's lease that is extended now; sets whether it ends with its max hold.
local function extend(e)
  local left_ms = tonumber(e.ttl_ms)
  local until_ms = tonumber(e.until_ms)
  local final = until_ms > 0 and until_ms <= now_ms + left_ms
  if final then
    left_ms = math.max(1, until_ms - now_ms)
  end
  e.final = final and '1' or '0'
  return left_ms
end

local function set_left(lease, e, left_ms)
  if e.mode == EXCLUSIVE then
    call('PEXPIRE', LOCK, left_ms)
  else
    call('ZADD', SHARED, now_ms + left_ms, lease)
    keep_marker(left_ms)
  end
  keep_known(left_ms)
  keep(FENCE, left_ms + MEMORY_MS)
end

local function is_held(lease, e)
  return e.fence ~= '0' and (e.mode ~= EXCLUSIVE or lock == lease)
end

local function renew(lease, e)
  local final = e.final
  local left_ms = extend(e)
  if e.final ~= final then
    put(lease, e)
  end
  set_left(lease, e, left_ms)
  return left_ms
end

-- Takes a lease id out of wherever it is.
local function leave(lease, e)
  if e.fence == '0' then
    call('HDEL', INFO, lease)
    call('ZREM', QUEUE, lease)
    return
  end
  changed = true
  if e.mode == EXCLUSIVE then
    call('HDEL', INFO, lease, 'held')
    if lock == lease then
      call('DEL', LOCK)
      lock = false
    end
  else
    call('HDEL', INFO, lease)
    drop_shared(lease)
    if call('EXISTS', SHARED) == 1 then
      return
    end
  end
  call('PEXPIRE', FENCE, MEMORY_MS)
end

local function lose(lease, e, reason, detail)
  leave(lease, e)
  tell(server_of(e.owner), table.concat(
    {'lost', NAME, lease, e.fence, reason, e.owner, detail or ''}, ' '))
end

local function expire(lease)
  local e = find(lease)
  if e then
    lose(lease, e, e.final == '1' and 'max_hold' or 'expired')
  else
    drop_shared(lease)
  end
end

-- How long it waited. The clock may have stepped back meanwhile.
local function waited_by(at_ms, e)
  return math.max(0, at_ms - e.asked_ms)
end

-- `known_ms`: until then the waiter's own server has vouched for it, where that is not the one that acts.
local function grant(lease, e, known_ms)
  local fence = math.max(tonumber(call('GET', FENCE) or 0) + 1, now_us)
  local waited_ms = waited_by(now_ms, e)
  e.fence, e.since_ms = whole(fence), now_ms
  e.until_ms = e.max_hold_ms == '0' and '0' or whole(now_ms + e.max_hold_ms)
  local left_ms = extend(e)
  local provisional = known_ms and known_ms - now_ms < left_ms
  if provisional then
    left_ms, e.final = known_ms - now_ms, '0'
  end
  if e.mode == EXCLUSIVE then
    call('SET', LOCK, lease, 'NX', 'PX', left_ms)
    call('HSET', INFO, lease, text_of(e), 'held', lease)
    call('SET', FENCE, e.fence, 'PX', left_ms + MEMORY_MS)
    keep_known(left_ms)
    lock = lease
  else
    put(lease, e)
    if tonumber(e.limit) > 0 then
      call('ZADD', LIMITS, e.limit, lease)
    end
    call('SET', FENCE, e.fence, 'KEEPTTL')
    set_left(lease, e, left_ms)
  end
  changed = true
  return fence, left_ms, waited_ms, provisional
end

local function fits(e)
  local holders = call('ZCARD', SHARED)
  if e.mode == EXCLUSIVE or holders == 0 then
    return not lock and holders == 0
  end
  if lock and lock ~= MARKER then
    return false   -- a foreign program holds it, beside ours that it did not ask
  end
  local least = call('ZRANGE', LIMITS, 0, 0, 'WITHSCORES')[2]
  local limit = math.min(tonumber(least or math.huge), e.limit ~= '0' and tonumber(e.limit) or math.huge)
  return holders + 1 <= limit
end

-- Redis keeps a key through the millisecond in which it ends; a lease is over in it.
local function is_over()
  return call('PTTL', LOCK) == 0
end

-- Drops dead waiters at the head, and grants what fits.
local function move_up()
  for count = 1, HEADS_MAX + 1 do
    local lease = call('ZRANGE', QUEUE, 0, 0)[1]
    if not lease then
      return
    end
    local e = find(lease)
    if count > HEADS_MAX then
      more = true
    elseif not e or tonumber(e.until_ms) <= now_ms then
      call('ZREM', QUEUE, lease)
      call('HDEL', INFO, lease)
    elseif MAY_GRANT and fits(e) then
      call('ZREM', QUEUE, lease)
      local server = server_of(e.owner)
      local known_ms = server ~= SERVER and tonumber(e.until_ms)
      local fence, left_ms, waited_ms, provisional = grant(lease, e, known_ms)
      tell(server, table.concat({'granted', NAME, lease, whole(fence), left_ms, waited_ms,
        provisional and '1' or '0', e.owner}, ' '))
    else
      return
    end
  end
end

-- Lets time pass: expires holders, and moves the queue up.
local function advance()
  local held = call('HGET', INFO, 'held')
  if held and (held ~= lock or is_over()) then
    call('HDEL', INFO, 'held')
    expire(held)
  end
  local expired = call('ZRANGEBYSCORE', SHARED, '-inf', now_ms, 'LIMIT', 0, EXPIRED_MAX)
  for _, lease in ipairs(expired) do
    expire(lease)
  end
  more = #expired == EXPIRED_MAX
  move_up()
end

local function tell_moved(lease, e)
  tell(server_of(e.owner), table.concat({'moved', NAME, lease, e.owner}, ' '))
end

local function move(lease, e, owner)
  if e.owner ~= owner then
    tell_moved(lease, e)
    e.owner = owner
  end
end

local function hold_again(lease, e, owner)
  move(lease, e, owner)
  local left_ms = extend(e)
  put(lease, e)
  set_left(lease, e, left_ms)
  return {'held', tonumber(e.fence), left_ms, 0}
end

local function vouch(lease, e, alive_ms)
  e.until_ms = now_ms + alive_ms
  put(lease, e)
  keep_known(alive_ms)
end

-- When time changes something by itself, in ms from now; -1: never.
local function next_ms()
  if lock and lock ~= MARKER then
    local left_ms = call('PTTL', LOCK)
    if call('HGET', INFO, 'held') ~= lock then
      return left_ms < 0 and FOREIGN_POLL_MS or math.min(left_ms, FOREIGN_POLL_MS)
    end
    return left_ms
  end
  local first = call('ZRANGE', SHARED, 0, 0, 'WITHSCORES')[2]
  return first and math.max(0, first - now_ms) or -1
end

local function queued(lease)
  return {'queued', call('ZRANK', QUEUE, lease) + 1, tonumber(call('GET', FENCE) or 0), next_ms()}
end

local function queue_again(lease, e, owner, wait_ms)
  move(lease, e, owner)
  e.wait_ms, e.asked_ms = wait_ms, now_ms
  vouch(lease, e, tonumber(e.alive_ms))
  return queued(lease)
end

local function give_up(lease, e, owner)
  move(lease, e, owner)
  leave(lease, e)
  advance()
  return {'busy'}
end

-- The last word of every script: tells the watchers, says when time changes something for those who
-- wait behind new holders, and hands out the reply.
local function answer(reply)
  local due_ms = more and 0 or changed and call('EXISTS', QUEUE) == 1 and next_ms()
  if due_ms and due_ms >= 0 then
    events[#events + 1] = string.format('due %s %.0f', NAME, due_ms)
  end
  if changed then
    for _, server in ipairs(call('ZRANGEBYSCORE', WATCH, now_ms, '+inf', 'LIMIT', 0, SHOWN_MAX)) do
      tell(server, 'changed ' .. NAME)
    end
  end
  reply[#reply + 1] = events
  return reply
end
