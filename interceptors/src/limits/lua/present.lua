-- Counts who is present. KEYS: the set of replicas, the set of all processes, the name of this one. ARGV: for
-- how many milliseconds a process is present after this. Replies how many are in each set.
local lasts = math.ceil(tonumber(ARGV[1]))
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local present = {}
for i = 1, 2 do
  redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', now - lasts)
  redis.call('ZADD', KEYS[i], now, KEYS[3])
  redis.call('PEXPIRE', KEYS[i], lasts)
  present[i] = redis.call('ZCARD', KEYS[i])
end
return present
