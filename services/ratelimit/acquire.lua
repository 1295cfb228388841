-- Takes calls of one deployment: its burst ceiling (GCRA) and its quota of the UTC calendar month
-- are decided together, all or nothing. The rule is `decide` in domain.py; a test compares them.
--
-- KEYS[1]  limit:{<deployment>}:gcra   "<arrival_us> <interval_us>", gone once it is worked off
--          limit:{<deployment>}:<yyyy-mm>   calls admitted in that month; its name comes from the
--          server's clock, so it is built here. The hash tag keeps both keys in one slot.
-- ARGV[1]  microseconds that one call takes up
-- ARGV[2]  calls that may come at once
-- ARGV[3]  calls a month, -1 without a limit
-- ARGV[4]  cost: calls to take; 0 takes none and writes nothing
-- ARGV[5]  now in microseconds; only tests choose it
--
-- Returns "<decision> <wait_us> <used> <burst_remaining> <now_us>": one line is read faster than
-- five numbers.
--   decision  0 allowed, 1 over the burst, 2 over the month
--   wait_us   until the same call would be allowed; -1 if it never will
--
-- Lua's numbers are doubles, exact up to 2^53 (9.0e15). The largest here are times, 1.8e15 in 2026
-- and exact until 2255. They are written with %.0f, since tostring() keeps 14 digits only.

local DAY = 86400000000
-- A month's count stays readable for a while after the month.
local KEPT_DAYS = 40

local interval = tonumber(ARGV[1])
local burst = tonumber(ARGV[2])
local monthly = tonumber(ARGV[3])
local cost = tonumber(ARGV[4])

local function server_now()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

-- Year, month and day of month of a day since 1970-01-01, after Howard Hinnant's
-- civil_from_days: years begin in March, so that the leap day is the last.
local function civil(days)
  local shifted = days + 719468
  local era = math.floor(shifted / 146097)
  local doe = shifted - era * 146097
  local yoe = math.floor(
    (doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local march_month = math.floor((5 * doy + 2) / 153)
  local day = doy - math.floor((153 * march_month + 2) / 5) + 1
  local month = march_month < 10 and march_month + 3 or march_month - 9
  local year = yoe + era * 400 + (month <= 2 and 1 or 0)
  return year, month, day
end

local function days_in(year, month)
  if month == 2 then
    local leap = year % 4 == 0 and (year % 100 ~= 0 or year % 400 == 0)
    return leap and 29 or 28
  end
  return (month == 4 or month == 6 or month == 9 or month == 11) and 30 or 31
end

local now = tonumber(ARGV[5]) or server_now()
local today = math.floor(now / DAY)
local year, month, day = civil(today)
local next_month = (today - day + 1 + days_in(year, month)) * DAY
local month_key = string.gsub(KEYS[1], 'gcra$', '') .. string.format('%04d-%02d', year, month)

-- The backlog of admitted calls, in microseconds of this interval. A bucket filled at another
-- rate keeps its number of calls; one from before the clock was set back is bounded.
local tolerance = burst * interval
local owed = 0
local stored = redis.call('GET', KEYS[1])
if stored then
  local arrival, stored_interval = string.match(stored, '^(%d+) (%d+)$')
  stored_interval = tonumber(stored_interval)
  owed = math.max(0, tonumber(arrival) - now)
  if stored_interval ~= interval then
    owed = math.floor((owed + stored_interval - 1) / stored_interval) * interval
  end
  owed = math.min(owed, tolerance)
end
local used = tonumber(redis.call('GET', month_key) or 0)

local burst_wait = math.max(0, owed + cost * interval - tolerance)
if cost > burst then
  burst_wait = -1
end

local month_wait = 0
if monthly >= 0 and cost > 0 then
  if cost > monthly then
    month_wait = -1
  elseif used + cost > monthly then
    month_wait = next_month - now
  end
end

local decision = 0
if month_wait ~= 0 then
  decision = 2
elseif burst_wait ~= 0 then
  decision = 1
end

if decision == 0 and cost > 0 then
  owed = owed + cost * interval
  used = used + cost
  redis.call('SET', KEYS[1], string.format('%.0f %.0f', now + owed, interval),
    'PX', string.format('%.0f', math.ceil(owed / 1000) + 1000))
  redis.call('SET', month_key, string.format('%.0f', used),
    'PX', string.format('%.0f', math.ceil((next_month - now + KEPT_DAYS * DAY) / 1000)))
end

local wait = math.max(burst_wait, month_wait)
if burst_wait < 0 or month_wait < 0 then
  wait = -1
end
return string.format('%d %.0f %.0f %.0f %.0f',
  decision, wait, used, math.floor((tolerance - owed) / interval), now)
