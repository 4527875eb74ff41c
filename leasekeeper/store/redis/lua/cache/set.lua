-- set: replaces a value; what is being loaded is void (`cache.set`; law L11).
--
-- KEYS   as in clock_rules.lua, 6: the entry
-- ARGV   6 and on: the content
-- Replies  set FENCE | conflict: a queued write has the key
-- A repeat is another set. While a write-through is open nothing is stored.

local key, content = KEYS[6], content_at(6)
local e = load(key)
let_time_pass(e, key)
if e.dirty then
  return answer({'conflict'})
end
local fence = void(e)
if #e.intents == 0 and not is_open(content.tags) then
  store(e, content, fence, now_ms)
end
tell(e, key)
return answer({'set', fence})
