-- BEAT: `state` was the primary's tip at this time, by this server's clock.
-- KEYS state
-- ARGV what `state` must begin with, time
local state = redis.call('GET', KEYS[1])
if not state or string.sub(state, 1, #ARGV[1]) ~= ARGV[1] then
  return 'moved'
end
local rest, time = string.match(state, '^(.+) (%S+)$')
if tonumber(ARGV[2]) > tonumber(time) then
  redis.call('SET', KEYS[1], rest .. ' ' .. ARGV[2])
end
return 'beaten'
