-- Gives back the calls of leases that were not used. The rule is `give_back` in leases.py; a test
-- compares the two.
--
-- KEYS   two per lease, as in acquire.lua; the month is the one that the lease's calls are of.
-- ARGV   1    now in microseconds; '' for the server's own clock: only tests choose it
--        two per lease: its token; calls that were not used
--
-- Returns per lease two numbers: calls that came back, and those of the month afterwards, -1 when
-- it is not remembered. A lease that was given back before, or has ended, is none: 0 and -1.

local now = time_now(ARGV[1])

local function found(bucket, token)
  if bucket then
    for at, lease in ipairs(bucket.leases) do
      if lease.token == token then
        return at, lease
      end
    end
  end
  return nil
end

-- An exchange of the month's count alone: when it ends stays as it was.
local function lower(key, calls)
  local used = tonumber(redis.call('GET', key) or nil)
  if not used then
    return -1
  end
  used = math.max(0, used - calls)
  if calls > 0 then
    redis.call('SET', key, string.format('%.0f', used), 'KEEPTTL')
  end
  return used
end

local function give_back(bucket_key, month_key, token, unused)
  local bucket = parsed(redis.call('GET', bucket_key), now)
  local at, lease = found(bucket, token)
  if not at then
    return 0, -1
  end
  local back = math.min(unused, lease.calls)
  table.remove(bucket.leases, at)
  bucket.held = bucket.held - lease.calls
  bucket.arrival = math.max(bucket.arrival, now) + (lease.calls - back) * bucket.interval
  write(bucket_key, bucket, now)
  return back, lower(month_key, back)
end

local answer = {}
for number = 1, #KEYS / 2 do
  local back, used = give_back(
    KEYS[2 * number - 1], KEYS[2 * number], ARGV[2 * number], tonumber(ARGV[2 * number + 1]))
  answer[2 * number - 1] = back
  answer[2 * number] = used
end
return answer
