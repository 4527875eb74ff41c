-- mark_tags: invalidates by tag in this partition, also in advance (`cache.invalidate`, write-throughs; law L11).
--
-- KEYS   as in clock_rules.lua
-- ARGV   6 "hard", "soft", "open" or "close"   7 the write that opens or closes   8 open: for how long, ms
--        9 and on: the tags
-- Replies  marked
-- A repeat invalidates again.

local how, write, tags = ARGV[6], ARGV[7], {}
for i = 9, #ARGV do
  tags[#tags + 1] = ARGV[i]
end
if how == 'open' then
  open(tags, write, now_ms + tonumber(ARGV[8]))
elseif how == 'close' then
  close(tags, write)
else
  mark(tags, how == 'soft' and SOFT or HARD)
end
return answer({'marked'})
