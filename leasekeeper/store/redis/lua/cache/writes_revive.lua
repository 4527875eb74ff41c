-- writes_revive: queues a dead write again, as if it were put now (`writes.revive`).
--
-- KEYS   as in writes_rules.lua
-- ARGV   7 key
-- Replies  revived | none: it is not dead, for it was put again, or revived | conflict: a write-through is open
-- Idempotent: the second time there is none.

local key = ARGV[7]
local grave = find_grave(key)
if not grave then
  return answer({'none'})
end
local fields = fields_of(DEAD, grave.id)
local content = {value = fields[4], ttl = tonumber(fields[6]), stale = 0, tags = {}}
local e = load(ENTRY)
local seq = put(e, ENTRY, content)
if not seq then
  return answer({'conflict'})
end
exhume(key, grave)
enqueue(key, content.value, content.ttl, seq)
return answer({'revived'})
