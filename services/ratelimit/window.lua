-- Counts hits in fixed windows, those of one request together: all of them, or nothing. The rule is
-- `decide` in windows.py; a test compares them.
--
-- KEYS     one per item, as "limit:{rls:<domain>}:<counter>:<begin>": the hits counted so far. Items
--          may share one. All keys of a domain lie in one slot.
-- ARGV[1]  now in microseconds; '' for the server's own clock: only tests choose it
-- ARGV     five per item: when its window begins and ends; the limit; hits (0 only asks, negative
--          ones are given back); what happens to hits over the limit: 0 the request is refused and
--          nothing of it counted, 1 they are counted, 2 both
--
-- Returns now alone if it is not in one of the windows: then nothing was decided. Otherwise "<now>"
-- and " <over> <count>" per item: whether it alone is over, and its count after.

local MOST = 2 ^ 53

local now = tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = tonumber(time[1]) * 1000000 + tonumber(time[2])
end

local items, before, tentative, after = {}, {}, {}, {}
for at, key in ipairs(KEYS) do
  local first = 2 + (at - 1) * 5
  local item = {
    key = key,
    ends = tonumber(ARGV[first + 1]),
    limit = tonumber(ARGV[first + 2]),
    hits = tonumber(ARGV[first + 3]),
    mode = tonumber(ARGV[first + 4]),
  }
  if now < tonumber(ARGV[first]) or now >= item.ends then
    return string.format('%.0f', now)
  end
  if not before[key] then
    before[key] = tonumber(redis.call('GET', key) or 0)
    tentative[key] = before[key]
    after[key] = before[key]
  end
  items[at] = item
end

local function count(counts, item)
  counts[item.key] = math.min(MOST, math.max(0, counts[item.key] + item.hits))
end

local admitted = true
for _, item in ipairs(items) do
  if item.hits == 0 then
    item.over = tentative[item.key] >= item.limit
  else
    item.over = item.hits > 0 and tentative[item.key] + item.hits > item.limit
  end
  admitted = admitted and not (item.over and item.mode ~= 1)
  count(tentative, item)
end

for _, item in ipairs(items) do
  if admitted or item.mode == 2 then
    count(after, item)
  end
end

local answer = { string.format('%.0f', now) }
for at, item in ipairs(items) do
  local key = item.key
  if after[key] ~= before[key] then
    redis.call('SET', key, string.format('%.0f', after[key]),
      'PX', string.format('%.0f', math.ceil((item.ends - now) / 1000)))
    before[key] = after[key]
  end
  answer[at + 1] = string.format('%d %.0f', item.over and 1 or 0, after[key])
end
return table.concat(answer, ' ')
