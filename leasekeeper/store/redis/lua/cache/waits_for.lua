-- waits_for: the key that whoever loads this one waits for.
--
-- KEYS   as in clock_rules.lua, 6: the entry
-- ARGV   none
-- Replies  waits KEY, "": for none, or nobody loads it
-- Changes nothing.

local e = load(KEYS[6])
local fill = e.live and find_fill(e, e.live)
return answer({'waits', fill and fill.on or ''})
