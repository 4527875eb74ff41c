-- The rules of one cached key, after clock_rules.lua, which has the KEYS and ARGV. They say the same as
-- leasekeeper/core/cache.py.

local LATE_FILLS_MAX, DEATHS_MAX = 8, 5
local BACKOFF_MIN_MS, BACKOFF_MAX_MS = 100, 30000
local NEWS_MS = 15000
local DIED = 'those who were to load it have died, one after the other'

local entries = {}

-- What is known of a key, by the names of core/cache.py; what is absent is 0, false or empty there.
--   stored    fence, granted, at, ttl, stale, fill, tags, etag; none: that there is no such thing
--   fills     a list in the order of their grants: fill, fence, granted, ms, owner, base, on (it waits for)
--   live      the fill that is exclusive
--   voided, softened, deaths, unshared, dirty, dropped
--   failure   error, retry, count
--   intents   a list in the order of their begin: write, fence, ends, tags
--   tags      of the last fill, and tags_until    news   server -> until when it waits
--   till      when all this is forgotten
local function load(key)
  local packed = call('HGET', key, 'meta')
  local e = packed and cmsgpack.unpack(packed) or {}
  local there = packed and true or false
  if e.till and e.till <= now_ms then   -- Redis keeps a key through the millisecond in which it ends
    e = {changed = true}
  end
  e.fills, e.intents, e.tags, e.news = e.fills or {}, e.intents or {}, e.tags or {}, e.news or {}
  e.voided, e.softened, e.deaths = e.voided or 0, e.softened or 0, e.deaths or 0
  e.unshared, e.tags_until = e.unshared or 0, e.tags_until or 0
  entries[#entries + 1] = {key = key, e = e, there = there}
  return e
end

local function changed(e)
  e.changed = true
end

local function late_ms(fill)
  return fill.granted + 2 * fill.ms
end

local function ends_ms_of(fill)
  return fill.granted + fill.ms
end

local function fresh_until_ms(stored)
  return stored.at + stored.ttl
end

-- Until when this must be remembered; nil: for as long as it is dirty.
local function keep_until_ms(e)
  if e.dirty then
    return nil
  end
  local last = math.max(e.unshared, e.tags_until)
  for _, fill in ipairs(e.fills) do
    last = math.max(last, late_ms(fill))
  end
  for _, intent in ipairs(e.intents) do
    last = math.max(last, intent.ends)
  end
  for _, at in pairs(e.news) do
    last = math.max(last, at)
  end
  if e.stored then
    last = math.max(last, fresh_until_ms(e.stored) + e.stored.stale)
  end
  if e.failure then   -- it counts how often in a row, so it must outlast the next attempt
    last = math.max(last, e.failure.retry + BACKOFF_MAX_MS)
  end
  return last
end

-- What nobody would miss is left out: most keys have a value and nothing else.
local function packed_of(e)
  local kept = {}
  for name, value in pairs(e) do
    local idle = value == 0 or type(value) == 'table' and next(value) == nil
    if not idle then
      kept[name] = value
    end
  end
  return cmsgpack.pack(kept)
end

local function save(entry)
  local e, key = entry.e, entry.key
  if not e.changed then
    return false
  end
  local value = e.value
  e.changed, e.value = nil, nil
  e.till = keep_until_ms(e)
  if e.till and e.till <= now_ms then
    if entry.there then
      call('DEL', key)
    end
    return true
  end
  if entry.there and (not e.stored or e.stored.none) then   -- before what takes memory
    call('HDEL', key, 'value')
  end
  if value then
    call('HSET', key, 'meta', packed_of(e), 'value', value)
  else
    call('HSET', key, 'meta', packed_of(e))
  end
  if e.till then
    call('PEXPIREAT', key, e.till)
  else
    call('PERSIST', key)
  end
  return true
end

local function tell(e, key)
  local name = string.match(key, '}:e:(.*)$')
  for server, at in pairs(e.news) do
    if at > now_ms then
      if server == SERVER then
        events[#events + 1] = 'cache ' .. name
      else
        call('PUBLISH', CHANNEL .. server, 'cache ' .. name)
      end
    end
  end
  e.news = {}
  changed(e)
end

local function find_fill(e, id)
  for at, fill in ipairs(e.fills) do
    if fill.fill == id then
      return fill, at
    end
  end
end

local function find_intent(e, write)
  for at, intent in ipairs(e.intents) do
    if intent.write == write then
      return intent, at
    end
  end
end

-- The fill is over.
local function finish(e, id)
  local _, at = find_fill(e, id)
  if at then
    table.remove(e.fills, at)
    changed(e)
  end
  if id == e.live then
    e.live = nil
  end
end

local function back_off(e, error_text, retry_after_ms, jitter)
  local count = e.failure and e.failure.count + 1 or 1
  if not retry_after_ms then
    local most_ms = math.min(BACKOFF_MAX_MS, BACKOFF_MIN_MS * 2 ^ math.min(count, 20))
    retry_after_ms = math.floor(most_ms * (1 + jitter) / 2)
  end
  e.failure = {error = error_text, retry = now_ms + retry_after_ms, count = count}
  changed(e)
end

local function died(e, jitter)
  e.deaths = e.deaths + 1
  if e.deaths >= DEATHS_MAX then
    e.deaths = 0
    back_off(e, DIED, nil, jitter)
  end
  changed(e)
end

-- What is there and what is being loaded is void; returns a fence above all of it.
local function void(e)
  local fence = next_seq()
  e.voided, e.stored, e.live = fence - 1, nil, nil
  e.value = nil
  changed(e)
  return fence
end

local function let_time_pass(e, key, jitter)
  if #e.fills == 0 and #e.intents == 0 then   -- as of most keys that are asked for
    return
  end
  local open_still = {}
  for _, intent in ipairs(e.intents) do
    if intent.ends <= now_ms then
      void(e)
    else
      open_still[#open_still + 1] = intent
    end
  end
  e.intents = open_still
  if e.live and ends_ms_of(find_fill(e, e.live)) <= now_ms then
    died(e, jitter or 1)
    e.live = nil
    tell(e, key)
  end
  local in_time = {}
  for _, fill in ipairs(e.fills) do
    if late_ms(fill) > now_ms then
      in_time[#in_time + 1] = fill
    end
  end
  if #in_time < #e.fills then
    e.fills = in_time
    changed(e)
  end
end

local function visible(e)
  local stored = e.stored
  if not stored or e.dirty then
    return stored
  end
  if stored.fence <= e.voided or voids(stored.tags or {}, stored.fence, stored.granted) then
    return nil
  end
  return stored
end

-- Whether something was invalidated since that was granted, `write` apart, if it is given.
local function is_void(e, tags, fence, granted_ms, write)
  return fence <= math.max(e.voided, e.softened) or voids(tags, fence, granted_ms, write)
    or softened(tags, fence) ~= nil
end

local function failed(e)
  return e.failure and e.failure.retry > now_ms and e.failure or nil
end

-- What comes with a value, in ARGV from `at` on: "value", "none" (there is no such thing) or "" (nothing);
-- the value; TTL, ms; how long it may be stale, ms; etag, "": none; and its tags.
local function content_at(at)
  local content = {
    none = ARGV[at] == 'none', value = ARGV[at] == 'value' and ARGV[at + 1] or nil,
    ttl = tonumber(ARGV[at + 2]), stale = tonumber(ARGV[at + 3]),
    etag = ARGV[at + 4] ~= '' and ARGV[at + 4] or nil, tags = {},
  }
  for i = at + 5, #ARGV do
    content.tags[#content.tags + 1] = ARGV[i]
  end
  return content
end

-- A content without a value stands for the value that is there, unless it says `none`.
local function store(e, content, fence, granted_ms, fill)
  e.stored = {
    fence = fence, granted = granted_ms, at = now_ms, ttl = content.ttl, stale = content.stale,
    fill = fill, etag = content.etag, none = content.none or nil,
    tags = #content.tags > 0 and content.tags or nil,
  }
  e.value = content.value
  e.tags, e.failure, e.deaths, e.unshared = content.tags, nil, 0, 0
  matters(now_ms - granted_ms + content.ttl + content.stale)
  changed(e)
end

-- Replaces the value by one that is queued to be written, and returns its number; nil: a conflict. Its
-- tags are those last known, if it has none of its own.
local function put(e, key, content)
  let_time_pass(e, key)
  if #e.intents > 0 then
    return nil
  end
  local fence = void(e)
  e.dirty, e.dropped = fence, nil
  if #content.tags == 0 then
    content.tags = e.tags
  end
  store(e, content, fence, now_ms)
  tell(e, key)
  return fence
end

-- The write of this number is done. A later one keeps the key dirty. The value stays if
-- nothing was invalidated since it was put, and is as good as new.
local function written(e, number)
  if e.dirty ~= number then
    return
  end
  local stored = e.stored
  e.dirty, e.stored = nil, nil
  changed(e)
  if not stored or e.dropped or stored.ttl == 0 then
    return
  end
  stored.tags = stored.tags or {}
  if not is_void(e, stored.tags, stored.fence, stored.granted) then
    store(e, stored, next_seq(), now_ms)   -- its value is there
  end
end

-- The write of this number will not be done. Its value goes, for it was never true.
local function given_up(e, number)
  if e.dirty == number then
    e.dirty, e.stored = nil, nil
    changed(e)
  end
end

-- The last word of every script: keeps what has changed, and hands out the reply.
local function answer(reply)
  local saved = false
  for _, entry in ipairs(entries) do
    saved = save(entry) or saved
  end
  save_clock(saved)
  reply[#reply + 1] = events
  return reply
end
