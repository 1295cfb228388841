-- Takes or leases calls of many deployments: of each, its burst ceiling (GCRA) and its quota of the
-- UTC calendar month are decided together. A take gets all of its cost or nothing, a lease as many
-- calls as there are. The rules are `decide` in domain.py and `lease` in leases.py; a test compares.
--
-- KEYS   two per deployment:
--        limit:{NN}:<deployment>:gcra       the bucket, see bucket.lua
--        limit:{NN}:<deployment>:<yyyy-mm>  calls admitted in the month; those on lease count
--        On a cluster all have one NN, so they lie in one slot.
-- ARGV   1    now in microseconds; '' for the server's own clock: only tests choose it
--        2,3  when the month begins and ends. If now is not in it, nothing is decided.
--        4    per deployment, in the order of KEYS, four numbers: microseconds that one call takes up;
--             calls that may come at once; calls a month, -1 without a limit; what the month counts
--             from if it is not remembered, -1 if that was not asked yet
--        5    per item: number of its deployment, from 1; calls (0 takes none and tells); the
--             lease's token, - for a take
--        One argument for all of them: many small ones cost the client more than reading does here.
--
-- Returns now, and per item six numbers:
--   decision   0 allowed, 1 over the burst, 2 over the month, 3 the month's count is not known
--   granted    calls taken or leased
--   wait_us    until the same would be allowed; -1 if it never will
--   used       calls of the month
--   remaining  calls that the burst would admit now
--   reset_us   until it would admit the whole burst

-- A month's count stays readable for a while after the month.
local KEPT = 40 * 86400000000
-- Leases of one deployment at once.
local MOST_LEASES = 64

local now = time_now(ARGV[1])
local month_ends = tonumber(ARGV[3])
if now < tonumber(ARGV[2]) or now >= month_ends then
  return { now }
end

-- A bucket filled at another rate keeps its number of calls. What no clock that only goes forward
-- could have written is bounded.
local function present(stored, interval, burst)
  local bucket = parsed(stored, now) or { arrival = now, interval = interval, leases = {}, held = 0 }
  local owed = math.max(0, bucket.arrival - now)
  if bucket.interval ~= interval then
    owed = math.floor((owed + bucket.interval - 1) / bucket.interval) * interval
  end
  bucket.interval = interval
  bucket.arrival = now + math.min(owed, burst * interval)
  for _, lease in ipairs(bucket.leases) do
    lease.ends = math.min(lease.ends, now + HELD)
  end
  return bucket
end

-- How long until `cost` calls fit, if nothing is given back; the caller has seen to it that they
-- ever will.
local function burst_wait(bucket, burst, cost)
  local interval = bucket.interval
  local room = (burst - cost) * interval
  local arrival, held = bucket.arrival, bucket.held * interval
  for _, lease in ipairs(bucket.leases) do
    local fits = arrival - (room - held)
    if held <= room and fits < lease.ends then
      return math.max(0, fits - now)
    end
    arrival = math.max(arrival, lease.ends) + lease.calls * interval
    held = held - lease.calls * interval
  end
  return math.max(0, arrival - room - now)
end

local function remaining(bucket, burst)
  local owed = math.max(0, bucket.arrival - now)
  return math.max(0, math.floor((burst * bucket.interval - owed) / bucket.interval) - bucket.held)
end

local stored = redis.call('MGET', unpack(KEYS))

local function opened(number, interval, burst, monthly, floor)
  local state = {
    bucket_key = KEYS[2 * number - 1],
    month_key = KEYS[2 * number],
    burst = burst,
    monthly = monthly,
    used = tonumber(stored[2 * number] or nil),
    bucket_changed = false,
    month_changed = false,
  }
  if not state.used then
    if floor < 0 then
      return state
    end
    state.used = floor
    state.month_changed = true
  end
  state.bucket = present(stored[2 * number - 1], interval, burst)
  return state
end

-- Returns decision and wait of a take of `cost` calls.
local function decided(state, cost)
  if cost == 0 then
    return 0, 0
  end
  local for_burst = cost > state.burst and -1 or burst_wait(state.bucket, state.burst, cost)
  local for_month = 0
  if state.monthly >= 0 then
    if cost > state.monthly then
      for_month = -1
    elseif state.used + cost > state.monthly then
      for_month = month_ends - now
    end
  end
  local wait = math.max(for_burst, for_month)
  if for_burst < 0 or for_month < 0 then
    wait = -1
  end
  return for_month ~= 0 and 2 or for_burst ~= 0 and 1 or 0, wait
end

local function take(state, cost)
  local decision, wait = decided(state, cost)
  if decision ~= 0 or cost == 0 then
    return decision, 0, wait
  end
  local bucket = state.bucket
  bucket.arrival = math.max(bucket.arrival, now) + cost * bucket.interval
  state.used = state.used + cost
  state.bucket_changed = true
  state.month_changed = true
  return 0, cost, 0
end

local function lease(state, wanted, token)
  local bucket = state.bucket
  local calls = math.min(wanted, remaining(bucket, state.burst))
  if state.monthly >= 0 then
    calls = math.min(calls, state.monthly - state.used)
  end
  if calls < 1 then
    local decision, wait = decided(state, 1)
    return decision, 0, wait
  end
  if #bucket.leases >= MOST_LEASES then
    return 1, 0, bucket.leases[1].ends - now
  end
  table.insert(bucket.leases, { token = token, ends = now + HELD, calls = calls })
  bucket.held = bucket.held + calls
  state.used = state.used + calls
  state.bucket_changed = true
  state.month_changed = true
  return 0, calls, 0
end

local states = {}
for interval, burst, monthly, floor in string.gmatch(ARGV[4], '(%d+) (%d+) (%-?%d+) (%-?%d+)') do
  local number = #states + 1
  states[number] = opened(
    number, tonumber(interval), tonumber(burst), tonumber(monthly), tonumber(floor))
end

local answer = { now }
local size = 1
local decision, granted, wait
for number, wanted, token in string.gmatch(ARGV[5], '(%d+) (%d+) (%S+)') do
  local state, calls = states[tonumber(number)], tonumber(wanted)
  if not state.bucket then
    decision, granted, wait = 3, 0, -1
  elseif token == '-' then
    decision, granted, wait = take(state, calls)
  else
    decision, granted, wait = lease(state, calls, token)
  end
  answer[size + 1] = decision
  answer[size + 2] = granted
  answer[size + 3] = wait
  answer[size + 4] = state.used or 0
  answer[size + 5] = state.bucket and remaining(state.bucket, state.burst) or 0
  answer[size + 6] = state.bucket and burst_wait(state.bucket, state.burst, state.burst) or 0
  size = size + 6
end

for _, state in ipairs(states) do
  if state.bucket_changed then
    write(state.bucket_key, state.bucket, now)
  end
  if state.month_changed then
    redis.call('SET', state.month_key, string.format('%.0f', state.used),
      'PX', string.format('%.0f', math.ceil((month_ends - now + KEPT) / 1000)))
  end
end
return answer
