-- close_write: a write-through is over, for its tags and then for its key (`cache.commit_write`,
-- `cache.abort_write`; law L11).
--
-- KEYS   as in clock_rules.lua, 6: the entry
-- ARGV   6 write   7 how many tags it names   8 and on: these, closed in all other partitions before
--        then: the content, what is true now
-- Replies  closed stored|dropped in_time|late
-- Also what is not open any more is closed: it invalidates all the same. A repeat stores nothing.

local write, count, tags, seen = ARGV[6], tonumber(ARGV[7]), {}, {}
local key, content = KEYS[6], content_at(8 + count)
local e = load(key)
let_time_pass(e, key)
local intent, at = find_intent(e, write)
if intent then
  table.remove(e.intents, at)
  changed(e)
end
local stored = intent and (content.value or content.none) and #e.intents == 0
  and not is_void(e, content.tags, intent.fence, now_ms, write)

local function name_tag(tag)
  if not seen[tag] then
    seen[tag] = true
    tags[#tags + 1] = tag
  end
end
for i = 8, 7 + count do
  name_tag(ARGV[i])
end
for _, tag in ipairs(intent and intent.tags or {}) do
  name_tag(tag)
end
close(tags, write)
if e.dirty then
  e.dropped = true
  changed(e)
  return answer({'closed', 'dropped', 'late'})
end
local fence = void(e)
if stored then
  store(e, content, fence, now_ms)
end
tell(e, key)
return answer({'closed', stored and 'stored' or 'dropped', intent and 'in_time' or 'late'})
