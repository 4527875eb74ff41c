-- tags_of: the tags that an open write-through was begun with.
--
-- KEYS   as in clock_rules.lua, 6: the entry
-- ARGV   6 write
-- Replies  tags TAGS
-- Changes nothing.

local intent = find_intent(load(KEYS[6]), ARGV[6])
return answer({'tags', intent and intent.tags or {}})
