-- writes_settle: ends the claim of a write (`writes.ack`, `writes.retry`, and a claimant that is gone), or buries
-- one that was claimed too often.
--
-- KEYS   as in writes_rules.lua
-- ARGV   7 key   8 token of the claim   9 how: "ack"; "retry"; "gone": whoever claimed it; "unseen": nobody
--        heard of the claim; "spent": as it has been claimed too often (without a token)
--        10 retry, spent: so many claims of one value are enough   11 retry: chance for the back-off, in [0, 1]
--        12 retry: when it can be claimed again, ms from now; "": as the rules have it   13 retry: the error
-- Replies  not_held: somebody else claimed it, or it is settled | done | queued: it will be claimed again | dead
-- Idempotent: the second time it is not held.

local key, token, how, attempts_max = ARGV[7], ARGV[8], ARGV[9], tonumber(ARGV[10])
local write = find(key)
if how == 'spent' then
  if not write or write.attempts < attempts_max or write.token and write.ends > now_ms then
    return answer({'not_held'})
  end
  write.error = write.error or LAPSED
  bury(key, write)
  return answer({'dead'})
elseif not write or write.token ~= token then
  return answer({'not_held'})
end
local is_latest = write.seq == write.held

if how == 'ack' then
  written(load(ENTRY), write.held)
  if not is_latest then
    free(key, write, now_ms)
    return answer({'queued'})
  end
  drop(key, write)
  grow(-write.size)
  return answer({'done'})
elseif how == 'retry' then
  if is_latest then
    write.error = ARGV[13] ~= '' and ARGV[13] or nil
  end
  if write.attempts >= attempts_max then
    bury(key, write)
    return answer({'dead'})
  end
  local after_ms = tonumber(ARGV[12])
  if not after_ms then
    local most_ms = math.min(RETRY_MAX_MS, RETRY_MIN_MS * 2 ^ math.min(write.attempt - 1, 20))
    after_ms = math.floor(most_ms * (1 + tonumber(ARGV[11])) / 2)
  end
  free(key, write, now_ms + after_ms)
  return answer({'queued'})
end
if how == 'unseen' and is_latest then
  write.attempts = write.attempts - 1
end
free(key, write, now_ms)
return answer({'queued'})
