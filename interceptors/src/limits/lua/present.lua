-- Counts who is present. KEYS: the set of replicas, the name of this one. ARGV: for how many milliseconds a
-- replica is present after this.
local lasts = math.ceil(tonumber(ARGV[1]))
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - lasts)
redis.call('ZADD', KEYS[1], now, KEYS[2])
redis.call('PEXPIRE', KEYS[1], lasts)
return {redis.call('ZCARD', KEYS[1])}
