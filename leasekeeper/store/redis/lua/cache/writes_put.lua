-- writes_put: replaces a cached value and queues the write of it (`writes.put`). Both or neither.
--
-- KEYS   as in writes_rules.lua
-- ARGV   7 key   8 how many writes the queue may have, dead ones too   9 and how many bytes of values
--        10 and on: the content
-- Replies  queued SEQ | conflict: a write-through is open | full
-- A repeat is another write. One that waits is replaced, and keeps its place.

local key, content = ARGV[7], content_at(10)
local write, grave = find(key), find_grave(key)
local known = write or grave
local grows = #content.value - (known and known.size or 0)
if not known and call('HLEN', WRITES_OF) + call('HLEN', GRAVES) >= tonumber(ARGV[8]) then
  return answer({'full'})
elseif grows > 0 and tonumber(call('GET', BYTES) or 0) + grows > tonumber(ARGV[9]) then
  return answer({'full'})
end
local e = load(ENTRY)
local seq = put(e, ENTRY, content)
if not seq then
  return answer({'conflict'})
end
if write then
  strike(LOG, write.id)
  write.id = add(LOG, 'key', key, 'value', content.value, 'ttl', content.ttl)
  write.seq, write.attempts, write.error, write.size = seq, 0, nil, #content.value
  keep_write(key, write)
else
  if grave then
    exhume(key, grave)
  end
  enqueue(key, content.value, content.ttl, seq)
end
grow(grows)
return answer({'queued', seq})
