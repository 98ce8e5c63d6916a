-- Adds calls that passed while the server was out of reach. KEYS: the log, see charge.lua; a marker. ARGV: the
-- number of calls, the window in microseconds, then how long ago each call was, oldest first. Adding the
-- same calls again has no effect while their marker lasts.
local calls, window = tonumber(ARGV[1]), tonumber(ARGV[2])
local lasts = math.ceil(window / 1000)
local log = redis.call('GET', KEYS[1]) or ''
if #log % 8 ~= 0 then return redis.error_reply('WRONGTYPE ' .. KEYS[1] .. ' holds no log') end
if not redis.call('SET', KEYS[2], '', 'NX', 'PX', lasts) then return {0} end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local times = {}
for i = 1, #log / 8 do
  local time = struct.unpack('>d', log, 8 * i - 7)
  if time == time then times[#times + 1] = time end
end
for i = 3, #ARGV do
  if tonumber(ARGV[i]) < window then times[#times + 1] = now - ARGV[i] end
end
table.sort(times)
local packed = {}
for i = math.max(#times - calls, 0) + 1, #times do packed[#packed + 1] = struct.pack('>d', times[i]) end
if #packed > 0 then redis.call('SET', KEYS[1], table.concat(packed), 'PX', lasts) end
return {#packed}
