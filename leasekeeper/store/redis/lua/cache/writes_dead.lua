-- writes_dead: a page of the dead writes, in the order of their deaths (`writes.dead`).
--
-- KEYS   as in writes_rules.lua, without an entry
-- ARGV   7 after this entry of the stream, "": from the first on   8 how many at most
-- Replies  "more" or "end", LAST (the entry to go on after), WRITES: {KEY, VALUE, SEQ, ATTEMPTS, ERROR} ...
-- Changes nothing.

local last, limit = ARGV[7], tonumber(ARGV[8])
local writes, size = {}, 0
while true do
  local some = call('XRANGE', DEAD, last == '' and '-' or '(' .. last, '+', 'COUNT', 10)
  for _, entry in ipairs(some) do
    local fields = entry[2]
    size = size + #fields[4]
    if #writes == limit or #writes > 0 and size > ANSWER_BYTES_MAX then
      return answer({'more', last, writes})
    end
    writes[#writes + 1] = {fields[2], fields[4], tonumber(fields[8]), tonumber(fields[10]), fields[12]}
    last = entry[1]
  end
  if #some < 10 then
    return answer({'end', last, writes})
  end
end
