-- Takes calls that passed while the server was out of reach, as many as there is room for. KEYS: the cell, see
-- lease.lua; a marker. ARGV: the microseconds for one call, how many may come at once, how many of
-- those that passed are not free again.
-- Taking the same calls again has no effect while their marker lasts.
local interval, burst, spent = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local most = interval * burst
local lasts = math.max(math.ceil(most / 1000), 1)
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local full = tonumber(redis.call('GET', KEYS[1]) or now)
-- What is not a number is not equal to itself.
if not full or full ~= full then return redis.error_reply('WRONGTYPE ' .. KEYS[1] .. ' holds no cell') end
if not redis.call('SET', KEYS[2], '', 'NX', 'PX', lasts) then return {0} end
full = math.min(math.max(full, now) + spent * interval, now + most)
redis.call('SET', KEYS[1], string.format('%.3f', full), 'PX', lasts)
return {1}
