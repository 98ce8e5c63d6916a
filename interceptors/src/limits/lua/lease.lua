-- Takes up to so many calls of one limit (GCRA). KEYS: the cell. ARGV: the microseconds for one call, how
-- many may come at once, how many are wanted. A cell is the time at which all may come at once again.
-- A text that is no cell is an error, as another type is. Replies how many were taken, how many remain, and the microseconds until all do and until one does.
local interval, burst, wanted = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local most = interval * burst
-- Never further ahead than the whole: the clock may have been set back, or the limit changed.
local full = tonumber(redis.call('GET', KEYS[1]) or now)
-- What is not a number is not equal to itself.
if not full or full ~= full then return redis.error_reply('WRONGTYPE ' .. KEYS[1] .. ' holds no cell') end
full = math.min(math.max(full, now), now + most)
local room = math.floor((most - (full - now)) / interval + 0.000001)
local taken = math.min(room, wanted)
if taken > 0 then
  full = full + taken * interval
  redis.call('SET', KEYS[1], string.format('%.3f', full), 'PX', math.max(math.ceil((full - now) / 1000), 1))
  return {taken, room - taken, math.ceil(full - now), 0}
end
return {0, 0, math.ceil(full - now), math.max(math.ceil(interval - (most - (full - now))), 1)}
