-- resume: takes over what a lease id holds or waits for (clauses of `lease.resume`; law L8).
--
-- KEYS   as in rules.lua
-- ARGV   6 lease   7 owner   8 wait, ms, -1: for ever; "": what is left of it; 0: leaves the queue
-- Replies  held FENCE LEFT_MS 0 ENTRY | queued POSITION FENCE NEXT_MS ENTRY | busy | missing
-- Idempotent: the same fence, the same place.

advance()
local lease, owner, wait_ms = ARGV[6], ARGV[7], ARGV[8]
local e = find(lease)
if not e then
  return answer({'missing'})
end
local reply
if is_held(lease, e) then
  reply = hold_again(lease, e, owner)
elseif wait_ms == '0' then
  return answer(give_up(lease, e, owner))
else
  if wait_ms == '' then
    wait_ms = e.wait_ms
    if wait_ms ~= '-1' then
      wait_ms = whole(math.max(0, wait_ms - (now_ms - e.asked_ms)))
    end
  end
  reply = queue_again(lease, e, owner, wait_ms)
end
reply[#reply + 1] = text_of(e)
return answer(reply)
