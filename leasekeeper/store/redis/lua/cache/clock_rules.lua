-- The rules of the clock that cached keys share, in front of every script here; those of a key follow it, in
-- cache_rules.lua. They say the same as leasekeeper/core/versions.py and leasekeeper/core/cache.py, step
-- for step and by the same names, and one property test holds the two against each other (laws L9, L10, L11).
--
-- A partition is what shares a clock. Its keys, and those of its entries, are in one slot.
--
-- KEYS  1 clock   hash: run, seq, floor, life, kinds, until; see below
--       2 hard    zset: tag -> number of its last invalidation
--       3 soft    zset: tag -> number of its last soft invalidation
--       4 ends    zset: tag -> when the last of its write-throughs ends, ms
--       5 writes  hash: tag -> MessagePack of {write = when it ends, ms}
--       6 and on  entries, one for each key; hash: meta: MessagePack, see `load` there; value: its bytes
-- ARGV  1 server: who acts    2 prefix of the servers' channels
--       3 the run id of the Redis that the caller believes to be talking to; "*": whichever it is
--       4 how long the clock outlives all that may depend on it, ms
--       5 how many tags are remembered of each kind of invalidation
--       6 and on: the script's own
--
-- Every reply ends with the list of events for the acting server; those for others are published.
-- stale_run: the clock was last kept by another Redis process than the caller believes; nothing was done.
-- Work per call is bounded: by its own arguments, the fills of a key, and PRUNED_AT_ONCE records.

local CLOCK, HARD, SOFT, ENDS, WRITES = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local SERVER, CHANNEL, RUN, MEMORY_MS, RECORDS_MAX =
  ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local PRUNED_AT_ONCE = 100
local SLACK_MS = 1000   -- so much longer the clock is kept than it must be, at least, to be kept seldom

local call = redis.call
local time = call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local now_us = time[1] * 1000000 + time[2]
local events = {}

-- A number of more than 14 digits as text: by itself Lua writes it with an exponent.
local function whole(number)
  return string.format('%.0f', number)
end

-- `seq`: the last number; `floor`: nothing older is believed; `life_ms`: nothing granted matters longer;
-- `kinds`: which of the tags' keys there are, of "h", "s" and "w"; `until_ms`: when all of them expire.
local said = call('HMGET', CLOCK, 'run', 'seq', 'floor', 'life', 'kinds', 'until')
local is_new = not said[2]
local run, seq, floor = said[1], tonumber(said[2] or 0), tonumber(said[3] or 0)
local life_ms, kinds, until_ms = tonumber(said[4] or 0), said[5] or '', tonumber(said[6] or 0)
local ticked, tagged, matters_until_ms = false, false, 0

-- A number above all before it.
local function next_seq()
  seq = math.max(seq + 1, now_us)
  ticked = true
  return seq
end

-- Something granted may matter for so long after its grant.
local function matters(ms)
  if ms > life_ms then
    life_ms, ticked = ms, true
  end
end

-- Something may have been lost: nothing older than now is believed.
local function distrust()
  floor = next_seq()
end

local function true_run()
  return string.match(call('INFO', 'server'), 'run_id:(%w+)') or RUN
end

local function kinds_there()
  return (call('EXISTS', HARD) == 1 and 'h' or '') .. (call('EXISTS', SOFT) == 1 and 's' or '')
    .. (call('EXISTS', ENDS, WRITES) == 2 and 'w' or '')
end

-- Forgets what cannot matter any more, or what is too much, and nothing older is believed from then on.
local function prune_records(records)
  local before, count, over = now_us - 1000 * life_ms, call('ZCARD', records), 0
  local first = call('ZRANGE', records, 0, PRUNED_AT_ONCE - 1, 'WITHSCORES')
  for i = 2, #first, 2 do
    local at = tonumber(first[i])
    if at >= before and count - over <= RECORDS_MAX then
      break
    end
    floor, ticked, over = math.max(floor, at), true, over + 1
  end
  if over > 0 then
    call('ZREMRANGEBYRANK', records, 0, over - 1)
  end
end

local function prune()
  -- A write-through that ended without a word has changed what it was about by now.
  for _, tag in ipairs(call('ZRANGEBYSCORE', ENDS, '-inf', now_ms, 'LIMIT', 0, PRUNED_AT_ONCE)) do
    call('ZADD', HARD, next_seq(), tag)
    call('ZREM', ENDS, tag)
    call('HDEL', WRITES, tag)
  end
  prune_records(HARD)
  prune_records(SOFT)
end

-- Invalidates what has one of these tags, and every fill that will turn out to. `records`: HARD or SOFT.
local function mark(tags, records)
  -- A Redis that is full refuses a script whose first write takes memory, and this must get through.
  call('ZREM', records, '')
  for _, tag in ipairs(tags) do
    call('ZADD', records, next_seq(), tag)
  end
  prune()
  kinds, tagged = kinds_there(), true
end

local function writes_of(tag)
  local packed = call('HGET', WRITES, tag)
  return packed and cmsgpack.unpack(packed) or {}
end

local function put_writes(tag, writes)
  local last_ms
  for _, ends_ms in pairs(writes) do
    last_ms = math.max(last_ms or ends_ms, ends_ms)
  end
  if last_ms then
    call('HSET', WRITES, tag, cmsgpack.pack(writes))
    call('ZADD', ENDS, last_ms, tag)
  else
    call('HDEL', WRITES, tag)
    call('ZREM', ENDS, tag)
  end
end

-- A write-through of what has these tags begins. A repeat may only make it longer.
local function open(tags, write, ends_ms)
  local begun, new = {}, {}
  for _, tag in ipairs(tags) do
    if (writes_of(tag)[write] or 0) > now_ms then
      begun[tag] = true
    else
      new[#new + 1] = tag
    end
  end
  mark(new, HARD)
  for _, tag in ipairs(tags) do
    local writes = {}
    for other, at in pairs(writes_of(tag)) do
      if begun[tag] or at > now_ms then   -- the mark makes up for those that are over
        writes[other] = at
      end
    end
    writes[write] = math.max(ends_ms, writes[write] or 0)
    put_writes(tag, writes)
  end
  kinds = kinds_there()
  matters_until_ms = math.max(matters_until_ms, ends_ms)
end

-- The write-through is over, one way or the other.
local function close(tags, write)
  for _, tag in ipairs(tags) do
    local writes = writes_of(tag)
    if writes[write] then
      writes[write] = nil
      put_writes(tag, writes)
    end
  end
  mark(tags, HARD)
end

local function score(kind, records, tag)
  return string.find(kinds, kind, 1, true) and tonumber(call('ZSCORE', records, tag) or nil)
end

-- Whether a write-through of one of these tags is under way.
local function is_open(tags)
  for _, tag in ipairs(tags) do
    local ends_ms = score('w', ENDS, tag)
    if ends_ms and now_ms < ends_ms then
      return true
    end
  end
  return false
end

-- When the last write-through of this tag ends, or ended, but for `write`; nil: there is none.
local function ends_of(tag, write)
  local last_ms
  if not write then
    return score('w', ENDS, tag)
  end
  for other, at in pairs(writes_of(tag)) do
    if other ~= write then
      last_ms = math.max(last_ms or at, at)
    end
  end
  return last_ms
end

-- Whether what was granted then, and has these tags, may be too old; not for `write`, if that is given.
local function voids(tags, fence, granted_ms, write)
  if fence < floor then
    return true
  end
  for _, tag in ipairs(tags) do
    local ends_ms = ends_of(tag, write)
    if (score('h', HARD, tag) or 0) > fence or ends_ms and granted_ms < ends_ms then
      return true
    end
  end
  return false
end

-- The first soft invalidation of these tags after that; nil: there was none.
local function softened(tags, fence)
  local first
  for _, tag in ipairs(tags) do
    local soft = score('s', SOFT, tag)
    if soft and soft > fence and (not first or soft < first) then
      first = soft
    end
  end
  return first
end

-- Keeps the clock, and what it knows of tags, for longer than anything may depend on it; all of it ends
-- together, for a key of tags that is missing is taken for lost.
local function save_clock(saved)
  local must_ms = math.max(now_ms, matters_until_ms) + life_ms + MEMORY_MS
  local extend = (saved or ticked or tagged or is_new) and until_ms < must_ms
  if extend then
    until_ms = must_ms + SLACK_MS + math.floor((must_ms - now_ms) / 8)
  end
  if extend or ticked or tagged then
    call('HSET', CLOCK, 'run', run, 'seq', seq, 'floor', floor, 'life', life_ms, 'kinds', kinds,
      'until', until_ms)
  end
  if extend or tagged then
    for _, key in ipairs({CLOCK, HARD, SOFT, ENDS, WRITES}) do
      call('PEXPIREAT', key, until_ms)
    end
  end
end

-- Before anything else: whether what is there can be believed.
if is_new then
  call('DEL', HARD, SOFT, ENDS, WRITES)
  run, kinds = true_run(), ''
  distrust()
end
if RUN ~= '*' and run ~= RUN then
  return {'stale_run', events}
elseif not is_new and kinds ~= '' then
  local there = kinds_there()
  if there ~= kinds then   -- what was remembered of tags is gone
    kinds = there
    distrust()
  end
end
