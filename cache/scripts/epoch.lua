-- EPOCH: begin a life in which positions are comparable. What was known of the life before it is dropped.
-- KEYS state tags floor samples feed epochs
-- ARGV what `state` must begin with (empty: there must be none), epoch, seq, id, definition, server, time, how long
--      epochs are remembered (ms), length of the feed
local state = redis.call('GET', KEYS[1])
if ARGV[1] == '' then
  if state and state ~= '' then
    return 'moved'
  end
elseif not state or string.sub(state, 1, #ARGV[1]) ~= ARGV[1] then
  return 'moved'
end
-- Entries of an epoch that was here before may still be alive, and what guarded them is dropped below.
if redis.call('ZSCORE', KEYS[6], ARGV[2]) then
  return 'used'
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[6], string.format('%.0f', now), ARGV[2])
-- The epoch that ends here may have been stored under until now, so its name is kept for as long from now on.
local ended = state and string.match(state, '^%S+')
if ended then
  redis.call('ZADD', KEYS[6], string.format('%.0f', now), ended)
end
redis.call('ZREMRANGEBYSCORE', KEYS[6], '-inf', string.format('%.0f', now - tonumber(ARGV[8])))

redis.call('UNLINK', KEYS[2], KEYS[4])
-- The mark tells a reader whose keys are of this epoch that the tags are too. No trim reaches its score.
redis.call('ZADD', KEYS[2], '+inf', '=' .. ARGV[2])
-- Tags of changes up to here are not known, so only what was read after them may be stored.
redis.call('SET', KEYS[3], ARGV[3])
redis.call('SET', KEYS[1], table.concat({ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]}, ' '))
redis.call('XADD', KEYS[5], 'MAXLEN', '~', ARGV[9], '*', 'epoch', ARGV[2], 'previous', '', 'seq', ARGV[3], 'tags', '')
return 'begun'
