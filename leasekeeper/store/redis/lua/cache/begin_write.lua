-- begin_write: a write-through begins, for its tags and then for its key (`cache.begin_write`; law L11).
--
-- KEYS   as in clock_rules.lua, 6: the entry
-- ARGV   6 write   7 how long it may take, ms   8 and on: its tags, opened in all other partitions before
-- Replies  begun FENCE ENDS_MS TAGS | conflict: a queued write has the key
-- Idempotent by the id of the write, as long as that is open.

local write, ttl_ms, tags = ARGV[6], tonumber(ARGV[7]), {}
for i = 8, #ARGV do
  tags[#tags + 1] = ARGV[i]
end
local key = KEYS[6]
open(tags, write, now_ms + ttl_ms)
local e = load(key)
let_time_pass(e, key)
if e.dirty then
  close(tags, write)
  return answer({'conflict'})
end
local intent = find_intent(e, write)
if not intent then
  intent = {write = write, fence = void(e), ends = now_ms + ttl_ms, tags = tags}
  e.intents[#e.intents + 1] = intent
  matters(ttl_ms)
  tell(e, key)
end
return answer({'begun', intent.fence, intent.ends, intent.tags})
