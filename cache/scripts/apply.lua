-- APPLY: one row of the change log. `state` moves forward by this row alone, so nothing is skipped or overtaken.
-- KEYS state tags floor samples feed
-- ARGV what `state` must begin with ("epoch seq id "), seq, id, how long tags are kept (ms), length of the feed, tag...
local state = redis.call('GET', KEYS[1])
if not state or string.sub(state, 1, #ARGV[1]) ~= ARGV[1] then
  return 'moved'
end
local epoch, before, rest = string.match(state, '^(%S+) (%S+) %S+ (%S+ %S+ %S+)$')
-- The mark stands and falls with the tags: without it they were lost, and nothing says what they guarded.
if not redis.call('ZSCORE', KEYS[2], '=' .. epoch) then
  return 'lost'
end

local seq = ARGV[2]
local members = {}
for i = 6, #ARGV do
  members[#members + 1] = seq
  members[#members + 1] = ARGV[i]
  if #members == 1000 or i == #ARGV then
    redis.call('ZADD', KEYS[2], unpack(members))
    members = {}
  end
end
redis.call('SET', KEYS[1], table.concat({epoch, seq, ARGV[3], rest}, ' '))
redis.call('XADD', KEYS[5], 'MAXLEN', '~', ARGV[5], '*',
  'epoch', epoch, 'previous', before, 'seq', seq, 'tags', table.concat(ARGV, ' ', 6))

-- Trim by this server's clock, which also ends the entries. It never goes back here: after a failover to a server
-- whose clock is behind, a tag would seem older than the entries that it guards.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local newest = redis.call('ZREVRANGE', KEYS[4], 0, 0, 'WITHSCORES')
if newest[2] and tonumber(newest[2]) > now then
  now = tonumber(newest[2])
end
local kept = tonumber(ARGV[4])
if not newest[2] or now - tonumber(newest[2]) >= kept / 64 then
  redis.call('ZADD', KEYS[4], string.format('%.0f', now), seq)
end

local function applied_before(age)
  local found = redis.call('ZREVRANGEBYSCORE', KEYS[4], string.format('%.0f', now - age), '-inf',
    'WITHSCORES', 'LIMIT', 0, 1)
  return found[1], found[2]
end

-- The floor first: whatever guards less than it is refused from here on, so the tags below it may go.
local half = applied_before(kept / 2)
local floor = redis.call('GET', KEYS[3])
if half and (not floor or tonumber(half) > tonumber(floor)) then
  redis.call('SET', KEYS[3], half)
end
local old, at = applied_before(kept)
if old then
  -- A bounded share a call keeps the script short; the rest goes with the next ones, and costs only room until then.
  local gone = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', old, 'LIMIT', 0, 1000)
  if #gone > 0 then
    redis.call('ZREM', KEYS[2], unpack(gone))
  end
  redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', '(' .. at)
end
return 'applied'
