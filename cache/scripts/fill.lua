-- FILL: keep an answer, if nothing that it depends on has changed since the snapshot that it was read from.
-- KEYS state tags floor entry
-- ARGV epoch, seq, definition, life (ms), 1 to replace an entry whatever its seq, value, tag...
local state = redis.call('GET', KEYS[1])
if not state then
  return 'no_state'
end
local epoch, definition = string.match(state, '^(%S+) %S+ %S+ (%S+)')
if epoch ~= ARGV[1] then
  return 'epoch'
end
if definition ~= ARGV[3] then
  return 'definition'
end
if not redis.call('ZSCORE', KEYS[2], '=' .. epoch) then
  return 'no_tags'
end
local seq = tonumber(ARGV[2])
local floor = redis.call('GET', KEYS[3])
if not floor or seq < tonumber(floor) then
  return 'floor'
end
for i = 7, #ARGV do
  local score = redis.call('ZSCORE', KEYS[2], ARGV[i])
  if score and tonumber(score) > seq then
    return 'tag'
  end
end
if ARGV[5] ~= '1' then
  -- What is of another type was not written by this protocol: it gives way.
  local head = redis.pcall('GETRANGE', KEYS[4], 0, 9)
  if type(head) == 'string' and #head == 10 and struct.unpack('>I8', head, 3) > seq then
    return 'kept'
  end
end
redis.call('SET', KEYS[4], ARGV[6], 'PX', ARGV[4])
return 'stored'
