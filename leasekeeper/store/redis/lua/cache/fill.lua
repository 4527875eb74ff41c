-- fill: stores what a fill has loaded, if it is not too old (`cache.fill`, `cache.fail` with not_found).
--
-- KEYS   as in clock_rules.lua, 6: the entry
-- ARGV   6 fill   7 "1": the value that is there is as good as new   8 and on: the content
-- Replies  stored | voided | superseded | too_late
-- Idempotent by fill id, as long as nothing else is stored.

local id, not_modified = ARGV[6], ARGV[7] == '1'
local key, content = KEYS[6], content_at(8)
local e = load(key)
let_time_pass(e, key)
if e.stored and e.stored.fill == id then   -- a repeat
  return answer({'stored'})
end
local known = find_fill(e, id)
if not known then
  return answer({'too_late'})
end
local has_value = content.value or content.none and not not_modified
local old = not_modified and visible(e)
if old and old.fence == (known.base or 0) then   -- its value stays where it is
  content.value, content.none, has_value = nil, nil, not old.none
  content.etag = content.etag or old.etag
  if #content.tags == 0 then
    content.tags = old.tags or {}
  end
end

local function outcome()
  if is_void(e, content.tags, known.fence, known.granted) or e.dirty or #e.intents > 0 then
    return 'voided'
  elseif e.stored and e.stored.fence > known.fence then
    return 'superseded'
  elseif not has_value then
    return 'too_late'   -- there is nothing left to make new
  end
  return 'stored'
end

local said_of_it = outcome()
finish(e, id)
if said_of_it == 'stored' then
  store(e, content, known.fence, known.granted, id)
else
  e.tags, e.tags_until = content.tags, now_ms + known.ms
end
tell(e, key)
return answer({said_of_it})
