-- touch: vouches for waiters, and lets time pass (laws L4, L5). With no lease id it is `advance`.
--
-- KEYS   as in rules.lua
-- ARGV   6 for how long, ms   7 and on: lease ids, at most a few hundred
-- Replies  NEXT_MS FENCE (the last one), then for each lease id "1": it waits; "0": it has nothing; "2 FENCE":
--        it is held, for another server; FENCE LEFT_MS WAITED_MS: it is held
-- Idempotent.

advance()
local reply = {next_ms(), tonumber(call('GET', FENCE) or 0)}
for at = 7, #ARGV do
  local lease = ARGV[at]
  local e = find(lease)
  if not e then
    reply[#reply + 1] = '0'
  elseif e.fence == '0' then
    if ARGV[6] ~= '0' then
      vouch(lease, e, tonumber(ARGV[6]))
    end
    reply[#reply + 1] = '1'
  elseif server_of(e.owner) ~= SERVER then
    reply[#reply + 1] = '2 ' .. e.fence
  else
    local left_ms = e.mode == EXCLUSIVE and call('PTTL', LOCK) or call('ZSCORE', SHARED, lease) - now_ms
    reply[#reply + 1] = string.format('%s %.0f %.0f', e.fence, left_ms, waited_by(e.since_ms, e))
  end
end
return answer(reply)
