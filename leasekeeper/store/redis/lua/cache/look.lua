-- look: what there is of a key; grants the fill if it is to be loaded (`cache.get`; laws L10, L11).
--
-- KEYS   as in clock_rules.lua, 6: the entry
-- ARGV   6 fill that is granted, if one is to be, "": nobody can load it   7 how long it may take, ms
--        8 its owner   9 -ln(u), u in (0, 1]: chance for an early refresh   10 jitter in [0, 1]
--        11 "1": the acting server waits, and wants to hear of changes
-- Replies  a list of those that apply:
--        {fresh|stale, VALUE, AGE_MS, TTL_MS} | {negative, LEFT_MS} | {shared|unshared, FENCE, FILL_MS, ETAG}:
--        the grant | {filling, LEFT_MS}: by another | {failed, ERROR, RETRY_AFTER_MS}
-- Idempotent by fill id: whoever has the fill is told the same fence, and what is left of its time.

local id, fill_ms, early = ARGV[6], tonumber(ARGV[7]), tonumber(ARGV[9])
local key = KEYS[6]
local e = load(key)
let_time_pass(e, key, tonumber(ARGV[10]))
local stored, reply = visible(e), {}

-- The first soft invalidation that concerns it; nil: there was none.
local function first_soft()
  local soft = softened(stored.tags or {}, stored.fence)
  if e.softened > stored.fence then
    return math.min(soft or e.softened, e.softened)
  end
  return soft
end

-- How, and what is left of its TTL; nil: there is no value, or it is of no use any more.
local function how_found()
  if not stored or stored.none then
    return nil
  elseif e.dirty then
    return 'fresh', stored.ttl
  end
  local soft = first_soft()
  local fresh_ms = fresh_until_ms(stored) - now_ms
  if not soft and fresh_ms > 0 then
    return 'fresh', fresh_ms
  end
  local stale_ms = fresh_ms + stored.stale
  if soft then
    stale_ms = math.min(stale_ms, math.floor(soft / 1000) + stored.stale - now_ms)
  end
  if stale_ms > 0 then
    return 'stale', 0
  end
end

-- XFetch, but not in the first half of the TTL, or a short one would be refreshed for ever.
local function is_due()
  return now_ms >= stored.at + math.floor(stored.ttl / 2)
    and now_ms + (stored.at - stored.granted) * early >= fresh_until_ms(stored)
end

local function granted(how, fence, ms, etag)
  reply[#reply + 1] = {how, fence, ms, etag or ''}
  return how == 'shared'
end

-- Whether the caller has the fill that all wait for.
local function grant(found)
  local etag = found and stored.etag
  if id == e.live then   -- a repeat
    local known = find_fill(e, id)
    return granted('shared', known.fence, ends_ms_of(known) - now_ms, etag)
  elseif found == 'fresh' and not is_due() then
    return false
  elseif not found and (#e.intents > 0 or now_ms < e.unshared or is_open(e.tags)) then
    return granted('unshared', next_seq(), fill_ms)
  elseif e.live or failed(e) then
    return false
  end
  local fill = {
    fill = id, fence = next_seq(), granted = now_ms, ms = fill_ms, owner = ARGV[8],
    base = found and stored.fence or nil,
  }
  local _, at = find_fill(e, id)
  e.fills[at or #e.fills + 1] = fill
  e.live = id
  if #e.fills > LATE_FILLS_MAX + 1 then
    table.remove(e.fills, 1)
  end
  matters(2 * fill_ms)
  changed(e)
  return granted('shared', fill.fence, fill_ms, etag)
end

local found, left_ms = how_found()
local value = found and call('HGET', key, 'value')
if found and value then
  reply[1] = {found, value, math.max(0, now_ms - stored.at), left_ms}
elseif found then   -- somebody else has taken it away
  found, stored = nil, nil
end
local negative_ms = stored and stored.none and not first_soft() and fresh_until_ms(stored) - now_ms or 0
if negative_ms > 0 then
  reply[1] = {'negative', negative_ms}
end
local has_fill = id ~= '' and negative_ms <= 0 and not e.dirty and grant(found)
if e.live and not has_fill then
  reply[#reply + 1] = {'filling', ends_ms_of(find_fill(e, e.live)) - now_ms}
end
local failure = failed(e)
if failure then
  reply[#reply + 1] = {'failed', failure.error, failure.retry - now_ms}
end
if ARGV[11] == '1' and negative_ms <= 0 and found ~= 'fresh' then
  e.news[SERVER] = now_ms + NEWS_MS
  changed(e)
end
return answer(reply)
