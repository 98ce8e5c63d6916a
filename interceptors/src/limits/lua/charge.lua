-- Charges one call to every limit, or to none. KEYS: a log for each limit. ARGV: for each, the number of
-- calls and the window in microseconds. A log is the times of the calls that passed, oldest first, as
-- doubles of eight bytes. Replies 1 when the call passed, else 0; then for each limit what remains, and the
-- microseconds until all of it does and until a call may pass. A text that is no log is an error, as another type is.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

local function at(log, n)
  return (struct.unpack('>d', log, 8 * n - 7))
end

-- What is left of a log: the times within the window, none of them later than now.
local function current(log, window)
  local n = #log / 8
  if n == 0 then return log, 0 end
  local ahead = at(log, n) - now
  if ahead > 0 then -- the clock was set back: the whole log is moved with it
    local moved = {}
    for i = 1, n do moved[i] = struct.pack('>d', at(log, i) - ahead) end
    log = table.concat(moved)
  end
  local low, high = 1, n + 1
  while low < high do
    local middle = math.floor((low + high) / 2)
    if at(log, middle) + window <= now then low = middle + 1 else high = middle end
  end
  if low > 1 then log = string.sub(log, 8 * low - 7) end
  return log, n - low + 1
end

local logs, counts, passed = {}, {}, 1
for i, key in ipairs(KEYS) do
  local log = redis.call('GET', key) or ''
  -- What is not a number is not equal to itself.
  if #log % 8 ~= 0 or #log > 0 and at(log, #log / 8) ~= at(log, #log / 8) then
    return redis.error_reply('WRONGTYPE ' .. key .. ' holds no log')
  end
  logs[i], counts[i] = current(log, ARGV[2 * i])
  if counts[i] >= tonumber(ARGV[2 * i - 1]) then passed = 0 end
end

local reply = {passed}
for i, key in ipairs(KEYS) do
  local calls, window = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
  local log, n, retry = logs[i], counts[i], 0
  if passed == 1 then
    log, n = log .. struct.pack('>d', now), n + 1
    redis.call('SET', key, log, 'PX', math.ceil(window / 1000))
  elseif n >= calls then
    retry = at(log, n - calls + 1) + window - now
  end
  reply[3 * i - 1] = math.max(calls - n, 0)
  reply[3 * i] = n > 0 and at(log, n) + window - now or 0
  reply[3 * i + 1] = retry
end
return reply
