-- Counts what one process admitted while it could not ask Valkey. The same may be said again, by
-- anyone, also after more was admitted: totals are compared, so that each call is counted once.
--
-- KEYS[1]  limit:{NN}:<deployment>:gcra                the bucket, see bucket.lua
-- KEYS[2]  limit:{NN}:<deployment>:<yyyy-mm>           calls admitted in the month
-- KEYS[3]  limit:{NN}:<deployment>:<yyyy-mm>:replayed  a hash: the total counted so far, by process
-- ARGV     1  the process
--          2  its total of calls admitted without Valkey in the month
--          3  so many of them are in the durable count of the month
--          4  the durable count, from which the month counts if it is not remembered
--          5  microseconds that one call takes up, 0 when it is not known
--          6  calls that may come at once
--          7  milliseconds for which the month is remembered
--
-- Returns the calls of the month.

local now = time_now('')
local total, interval, burst = tonumber(ARGV[2]), tonumber(ARGV[5]), tonumber(ARGV[6])
local counted = math.max(tonumber(redis.call('HGET', KEYS[3], ARGV[1]) or 0), tonumber(ARGV[3]))
local calls = math.max(0, total - counted)
local month = redis.call('GET', KEYS[2])
local used = tonumber(month or ARGV[4]) + calls

if calls > 0 or not month then
  redis.call('SET', KEYS[2], string.format('%.0f', used), 'PX', ARGV[7])
  redis.call('HSET', KEYS[3], ARGV[1], string.format('%.0f', math.max(total, counted)))
  redis.call('PEXPIRE', KEYS[3], ARGV[7])
end

-- At most as much as was admitted is still to be worked off, and never more than a full burst.
if calls > 0 and interval > 0 then
  local bucket = parsed(redis.call('GET', KEYS[1]), now)
    or { arrival = now, interval = interval, leases = {}, held = 0 }
  bucket.arrival = math.min(
    math.max(bucket.arrival, now) + calls * bucket.interval, now + burst * bucket.interval)
  write(KEYS[1], bucket, now)
end
return used
