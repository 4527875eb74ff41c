-- restore: puts back a lease that the store lost, while grants are paused (see the restart hold).
--
-- KEYS   as in rules.lua
-- ARGV   6 lease   7 its entry, with its fence and without times   8 what is left of it, ms
--        9 for how long it has been held, ms
-- Replies  restored | missing: somebody has it with a higher fence
-- Idempotent.

local lease, e, left_ms = ARGV[6], parse(ARGV[7]), tonumber(ARGV[8])
advance()
local known = find(lease)
if known and known.fence == e.fence and is_held(lease, known) then
  local there_ms = e.mode == EXCLUSIVE and call('PTTL', LOCK) or call('ZSCORE', SHARED, lease) - now_ms
  if there_ms < left_ms then   -- its last renewal was lost
    set_left(lease, known, left_ms)
  end
  return answer({'restored'})
elseif known and tonumber(known.fence) > tonumber(e.fence) then
  return answer({'missing'})
elseif known then   -- it waits still, or has an older grant
  leave(lease, known)
end
if lock and lock ~= MARKER then
  local other = find(lock)
  if not other or tonumber(other.fence) > tonumber(e.fence) then
    return answer({'missing'})
  end
  lose(lock, other, 'expired')   -- an older grant, from before what was lost
elseif lock == MARKER and e.mode == EXCLUSIVE then
  local shared = call('ZRANGE', SHARED, 0, EXPIRED_MAX)
  for _, each in ipairs(shared) do
    local other = find(each)
    if #shared > EXPIRED_MAX or other and tonumber(other.fence) > tonumber(e.fence) then
      return answer({'missing'})
    end
  end
  for _, each in ipairs(shared) do
    expire(each)
  end
end
call('ZREM', QUEUE, lease)
e.since_ms = now_ms - ARGV[9]
e.asked_ms = e.since_ms
e.until_ms = e.max_hold_ms == '0' and '0' or whole(e.since_ms + e.max_hold_ms)
put(lease, e)
if e.mode == EXCLUSIVE then
  call('SET', LOCK, lease, 'PX', left_ms)
  call('HSET', INFO, 'held', lease)
  lock = lease
elseif e.limit ~= '0' then
  call('ZADD', LIMITS, e.limit, lease)
end
-- One more than the lease's own: a fence that is as it was proves that nothing was lost (HOLD-6).
local last = math.max(tonumber(call('GET', FENCE) or 0), tonumber(e.fence) + 1)
call('SET', FENCE, whole(last), 'KEEPTTL')
set_left(lease, e, left_ms)
changed = true
return answer({'restored'})
