-- The rules of queued writes, after cache_rules.lua and in front of the scripts of write-behind. They say the
-- same as leasekeeper/core/writes.py, step for step and by the same names (laws L9, L12).
--
-- KEYS   as in clock_rules.lua, and of one queue in this partition:
--        6 log     stream: the values that wait, one entry for each write: key, value, ttl
--        7 writes  hash: key -> MessagePack of its write, see `find`
--        8 due     zset: PLACE KEY -> when it can be claimed, ms; PLACE has 16 digits
--        9 dead    stream: the dead writes in the order of their deaths: key, value, ttl, seq, attempts, error
--        10 graves hash: key -> MessagePack of {id = its entry in `dead`, size = bytes of the value}
--        11 bytes  string: how many all values have, those of dead writes too
--        12 news   zset: server -> until when it waits, ms
--        13        the cached entry of the key, if the script has one
-- ARGV   as in clock_rules.lua, and 6 the name of the queue
--
-- A queue without writes has no key but `news`, which ends by itself.

local LOG, WRITES_OF, DUE, DEAD, GRAVES, BYTES, NEWS, ENTRY =
  KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11], KEYS[12], KEYS[13]
local QUEUE = ARGV[6]
local RETRY_MIN_MS, RETRY_MAX_MS = 1000, 300000
local ANSWER_BYTES_MAX, SPENT_MAX, SPENT_MS = 1024 * 1024, 100, 1000
local LAPSED = 'its last claim ended without an answer'

-- A write: id (of its entry in the log), seq, place, ready, attempts, error, size, and the claim in token,
-- held (the number that it is for), ends, attempt.
local function find(key)
  local packed = call('HGET', WRITES_OF, key)
  return packed and cmsgpack.unpack(packed)
end

local function find_grave(key)
  local packed = call('HGET', GRAVES, key)
  return packed and cmsgpack.unpack(packed)
end

local function keep_write(key, write)
  call('HSET', WRITES_OF, key, cmsgpack.pack(write))
end

local function member(key, write)
  return string.format('%016.0f %s', write.place, key)
end

local function tell_queue()
  for _, server in ipairs(call('ZRANGEBYSCORE', NEWS, '(' .. whole(now_ms), '+inf')) do
    if server == SERVER then
      events[#events + 1] = 'queue ' .. QUEUE
    else
      call('PUBLISH', CHANNEL .. server, 'queue ' .. QUEUE)
    end
  end
  call('DEL', NEWS)
end

local function move(key, write, ready_ms)
  write.ready = ready_ms
  call('ZADD', DUE, ready_ms, member(key, write))
end

local function free(key, write, ready_ms)
  write.token = nil
  move(key, write, ready_ms)
  keep_write(key, write)
  tell_queue()
end

-- An entry of a stream; a stream without entries has no key.
local function add(stream, ...)
  return call('XADD', stream, '*', ...)
end

local function strike(stream, id)
  call('XDEL', stream, id)
  if call('XLEN', stream) == 0 then
    call('DEL', stream)
  end
end

local function fields_of(stream, id)
  local found = call('XRANGE', stream, id, id)[1]
  return found and found[2] or {'key', '', 'value', '', 'ttl', '0'}
end

-- How many bytes all values have is counted with the first, and forgotten with the last.
local function grow(bytes)
  if bytes ~= 0 then
    call('INCRBY', BYTES, bytes)
  end
  if call('EXISTS', WRITES_OF, GRAVES) == 0 then
    call('DEL', BYTES)
  end
end

local function enqueue(key, value, ttl_ms, seq)
  local write = {id = add(LOG, 'key', key, 'value', value, 'ttl', ttl_ms),
    seq = seq, place = seq, attempts = 0, size = #value}
  move(key, write, now_ms)
  keep_write(key, write)
  tell_queue()
end

local function drop(key, write)
  call('ZREM', DUE, member(key, write))
  call('HDEL', WRITES_OF, key)
  strike(LOG, write.id)
end

local function exhume(key, grave)
  call('HDEL', GRAVES, key)
  strike(DEAD, grave.id)
end

-- Its value goes from the cache, for it was never true.
local function bury(key, write)
  local e, fields = load(ENTRY), fields_of(LOG, write.id)
  drop(key, write)
  given_up(e, write.seq)
  next_seq()   -- as core/writes.py numbers the dead
  local id = add(DEAD, 'key', key, 'value', fields[4], 'ttl', fields[6], 'seq', whole(write.seq),
    'attempts', write.attempts, 'error', write.error or '')
  call('HSET', GRAVES, key, cmsgpack.pack({id = id, size = write.size}))
end
