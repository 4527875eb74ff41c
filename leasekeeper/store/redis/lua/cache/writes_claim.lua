-- writes_claim: claims writes that are ready, those first that have been for longest (`writes.claim`).
--
-- KEYS   as in writes_rules.lua, without an entry
-- ARGV   7 token, random and never used twice   8 how many at most   9 for how long, ms
--        10 so many claims of one value are enough   11 "1": the acting server waits if there is none
--        12 how many bytes of values at most; one value always fits
-- Replies  NOW_MS READY_MS SIZE WRITES SPENT
--        READY_MS: when the next can be claimed, or could have been; "none": there is none   SIZE: its bytes
--        WRITES: {KEY, VALUE, SEQ, FENCE, ATTEMPT} ...   SPENT: keys that the caller is to bury
-- A repeat is another claim.

local token, count, claim_ms, attempts_max = ARGV[7], tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local writes, spent, size = {}, {}, 0
local ready = call('ZRANGEBYSCORE', DUE, '-inf', now_ms, 'LIMIT', 0, count > 0 and count + SPENT_MAX or 0)
for _, place_and_key in ipairs(ready) do
  if #writes == count or #spent == SPENT_MAX then
    break
  end
  local key = string.sub(place_and_key, 18)
  local write = find(key)
  if not write then   -- somebody else has taken it away
    call('ZREM', DUE, place_and_key)
  elseif write.attempts >= attempts_max then
    spent[#spent + 1] = key
    move(key, write, now_ms + SPENT_MS)
    keep_write(key, write)
  else
    size = size + write.size
    if #writes > 0 and size > tonumber(ARGV[12]) then
      break
    end
    local fence = next_seq()
    write.attempts = write.attempts + 1
    write.token, write.held, write.ends, write.attempt = token, write.seq, now_ms + claim_ms, write.attempts
    move(key, write, write.ends)
    keep_write(key, write)
    writes[#writes + 1] = {key, fields_of(LOG, write.id)[4], write.seq, fence, write.attempts}
  end
end
if ARGV[11] == '1' and #writes == 0 then
  call('ZADD', NEWS, now_ms + NEWS_MS, SERVER)
  call('PEXPIRE', NEWS, NEWS_MS)
end
local head = call('ZRANGE', DUE, 0, 0, 'WITHSCORES')
local next_write = head[1] and find(string.sub(head[1], 18))
return answer({now_ms, head[2] and tonumber(head[2]) or 'none', next_write and next_write.size or 0,
  writes, spent})
