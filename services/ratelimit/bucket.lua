-- What the scripts share: time, and the bucket of one deployment as it is stored and as it stands.
-- The rules are those of gcra.py. This text stands before that of the script.
--
-- limit:{NN}:<deployment>:gcra holds "<arrival_us> <interval_us>" and then, for each lease that is
-- out, the one that ends first in front, " <token>:<ends_us>:<calls>". It is gone once all is
-- worked off.
--
-- Lua's numbers are doubles, exact up to 2^53 (9.0e15). The largest here are times, 1.8e15 in 2026
-- and exact until 2255. They are written with %.0f, since tostring() keeps 14 digits only.

-- How long the places of a lease are held for it at most.
local HELD = 1500000

local function time_now(chosen)
  if chosen ~= '' then
    return tonumber(chosen)
  end
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

-- Takes the leases that ended out of `bucket`: their calls have arrived when they ended.
local function end_leases(bucket, now)
  while #bucket.leases > 0 and bucket.leases[1].ends <= now do
    local lease = table.remove(bucket.leases, 1)
    bucket.arrival = math.max(bucket.arrival, lease.ends) + lease.calls * bucket.interval
    bucket.held = bucket.held - lease.calls
  end
end

-- Returns the bucket as it stands now, in the interval that it was stored with; nil without one.
local function parsed(stored, now)
  if not stored then
    return nil
  end
  local arrival, interval, rest = string.match(stored, '^(%d+) (%d+)(.*)$')
  local bucket = { arrival = tonumber(arrival), interval = tonumber(interval), leases = {}, held = 0 }
  if rest ~= '' then
    for token, ends, calls in string.gmatch(rest, ' ([^: ]+):(%d+):(%d+)') do
      local lease = { token = token, ends = tonumber(ends), calls = tonumber(calls) }
      table.insert(bucket.leases, lease)
      bucket.held = bucket.held + lease.calls
    end
    end_leases(bucket, now)
  end
  return bucket
end

local function write(key, bucket, now)
  local parts = { string.format('%.0f %.0f', bucket.arrival, bucket.interval) }
  local last = now
  for _, lease in ipairs(bucket.leases) do
    table.insert(parts, string.format('%s:%.0f:%.0f', lease.token, lease.ends, lease.calls))
    last = math.max(last, lease.ends)
  end
  -- At the latest then, everything is worked off.
  local idle = math.max(bucket.arrival, last) + bucket.held * bucket.interval
  redis.call('SET', key, table.concat(parts, ' '),
    'PX', string.format('%.0f', math.ceil(math.max(0, idle - now) / 1000) + 1000))
end
