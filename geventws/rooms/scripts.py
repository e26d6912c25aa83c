"""What a Redis server runs for rooms, each in one piece: Lua for Redis 6.2 and later, and Valkey.

A topic has four keys: log, a stream whose entries hold "before key bytes header+body"; last, "position bytes" of the
newest; who, a hash of members to their values; users, a hash of names to how many of their sockets are there.
bytes is how much the topic has ever kept. A push is an entry with its position before it.
"""

# ARGV begins with where to look for messages that may be there already, empty the first time, and what a topic keeps.
# For each message a channel, key, content and whether it is kept; a kept one has its log and last among the keys.
PUBLISH = """
local start, most, size, ttl = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local again = start ~= ''
local stored = {}

local function stored_before(log, key)
  if not stored[log] then
    stored[log] = {}
    for _, entry in ipairs(redis.call('XRANGE', log, start, '+')) do
      stored[log][string.match(entry[2][2], '^%S+ (%S+)')] = entry[1]
    end
  end
  return stored[log][key]
end

local function trim(log, floor, newest)
  local start = '-'
  while true do
    local page = redis.call('XRANGE', log, start, '+', 'COUNT', 16)
    if #page == 0 then return end
    for _, entry in ipairs(page) do
      local total = tonumber(string.match(entry[2][2], '^%S+ %S+ (%S+)'))
      if total > floor or entry[1] == newest then
        redis.call('XTRIM', log, 'MINID', entry[1])
        return
      end
    end
    start = '(' .. page[#page][1]
  end
end

local function keep(log, last, channel, key, content)
  local id = again and stored_before(log, key)
  if id then return id end
  local before, total = string.match(redis.call('GET', last) or '- 0', '^(%S+) (%S+)$')
  local sum = tonumber(total) + #content
  local entry = before .. ' ' .. key .. ' ' .. string.format('%.0f', sum) .. ' ' .. content
  id = redis.call('XADD', log, 'MAXLEN', '~', most, '*', 'm', entry)
  redis.call('PEXPIRE', log, ttl)
  redis.call('SET', last, id .. ' ' .. string.format('%.0f', sum), 'PX', ttl)
  -- Looked at eight times in what a room may have: so it has an eighth more at most.
  if math.floor(sum / size * 8) ~= math.floor(tonumber(total) / size * 8) then trim(log, sum - size, id) end
  redis.call('PUBLISH', channel, id .. ' ' .. entry)
  return id
end

local ids, k = {}, 1
for i = 5, #ARGV, 4 do
  local channel, key, content = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local ok, id
  if ARGV[i + 3] == '1' then
    ok, id = pcall(keep, KEYS[k], KEYS[k + 1], channel, key, content)
    k = k + 2
  elseif not again then
    ok, id = pcall(redis.call, 'PUBLISH', channel, '- - ' .. key .. ' 0 ' .. content)
    if ok then id = '' end
  else
    ok, id = true, ''
  end
  if not ok then id = '!' .. (type(id) == 'table' and id.err or tostring(id)) end
  ids[#ids + 1] = id
end
return ids
"""

# For each topic its four keys. Gives the newest positions, and before them the time.
TOUCH = """
local ttl, age, salt = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ids = {string.format('%.0f', now)}

local function touch(log, last, who, users)
  local known = redis.call('GET', last)
  if not known then
    -- Where a topic begins: no message has this position, as it is in the past.
    known = string.format('%.0f', now - 1) .. '-' .. salt .. ' 0'
    redis.call('SET', last, known)
  end
  local id, milliseconds = string.match(known, '^((%d+)%S+)')
  -- The newest stays, whatever its age: by it a process knows that nothing is missing.
  local oldest = string.format('%.0f', now - age)
  redis.call('XTRIM', log, 'MINID', tonumber(milliseconds) < now - age and id or oldest)
  for _, key in ipairs({log, last, who, users}) do redis.call('PEXPIRE', key, ttl) end
  return id
end

for i = 1, #KEYS, 4 do
  local ok, id = pcall(touch, KEYS[i], KEYS[i + 1], KEYS[i + 2], KEYS[i + 3])
  if not ok then id = '!' .. (type(id) == 'table' and id.err or tostring(id)) end
  ids[#ids + 1] = id
end
return ids
"""

# Shared by the two that count who is there.
_COUNT = """
local function user_of(value)
  local length, rest = string.match(value, '^%a(%d*) (.*)$')
  return length ~= '' and string.sub(rest, 1, tonumber(length)) or nil
end

local function leave(who, users, channel, id)
  local value = redis.call('HGET', who, id)
  if not value then return end
  redis.call('HDEL', who, id)
  local user = user_of(value)
  if user and redis.call('HINCRBY', users, user, -1) <= 0 then
    redis.call('HDEL', users, user)
    redis.call('PUBLISH', channel, '- - ' .. id .. ' 0 -\\n' .. value)
  end
end
"""

# KEYS: the set of the process's rooms, last of the control topic, and for each change last, who and users of the room.
CHANGE = (
    _COUNT
    + """
local ids = {redis.call('GET', KEYS[2]) or '-'}
local ttl = ARGV[1]

local function change(last, who, users, action, id, value, topic, channel)
  if action == 'leave' then
    leave(who, users, channel, id)
  elseif action == 'forget' then
    redis.call('SREM', KEYS[1], topic)
  elseif action == 'linger' then
    if redis.call('HEXISTS', who, id) == 1 then redis.call('HSET', who, id, value) end
  else
    local is_new = redis.call('HSET', who, id, value) == 1
    redis.call('SADD', KEYS[1], topic)
    local user = user_of(value)
    if is_new and user and redis.call('HINCRBY', users, user, 1) == 1 then
      redis.call('PUBLISH', channel, '- - ' .. id .. ' 0 +\\n' .. value)
    end
    redis.call('PEXPIRE', who, ttl)
    redis.call('PEXPIRE', users, ttl)
  end
  return redis.call('GET', last) or '-'
end

local k = 3
for i = 2, #ARGV, 5 do
  local ok, id = pcall(change, KEYS[k], KEYS[k + 1], KEYS[k + 2], unpack(ARGV, i, i + 4))
  k = k + 3
  if not ok then id = '!' .. (type(id) == 'table' and id.err or tostring(id)) end
  ids[#ids + 1] = id
end
return ids
"""
)

# KEYS: who of each room. ARGV: process. Gives the ids of its members in each.
LISTED = """
local mine, found = ARGV[1] .. '-', {}
for i, who in ipairs(KEYS) do
  found[i] = {}
  local ok, ids = pcall(redis.call, 'HKEYS', who)
  for _, id in ipairs(ok and ids or {}) do
    if string.sub(id, 1, #mine) == mine then table.insert(found[i], id) end
  end
end
return found
"""

# KEYS: who. ARGV: what the keys of leases begin with.
MEMBERS = """
local alive, found = {}, {}
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local process = string.match(all[i], '^[^-]+')
  if alive[process] == nil then alive[process] = redis.call('EXISTS', ARGV[1] .. process) == 1 end
  if alive[process] then
    found[#found + 1] = all[i]
    found[#found + 1] = all[i + 1]
  end
end
return found
"""

# KEYS: the lease, and all processes by the end of theirs. ARGV: process, milliseconds, its channel.
LEASE = """
local was_alive = redis.call('EXISTS', KEYS[1])
local time = redis.call('TIME')
redis.call('SET', KEYS[1], '1', 'PX', ARGV[2])
redis.call('ZADD', KEYS[2], time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[2], ARGV[1])
redis.call('PUBLISH', ARGV[3], '- - ' .. ARGV[1] .. '-0 0 *\\n')
return was_alive
"""

# KEYS: all processes.
DEAD = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
"""

# KEYS: lease, the process's rooms, who, users. ARGV: process, topic, channel.
REAP = (
    _COUNT
    + """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
local mine = ARGV[1] .. '-'
for _, id in ipairs(redis.call('HKEYS', KEYS[3])) do
  if string.sub(id, 1, #mine) == mine then leave(KEYS[3], KEYS[4], ARGV[3], id) end
end
redis.call('SREM', KEYS[2], ARGV[2])
return 1
"""
)

# KEYS: lease, all processes, the process's rooms. ARGV: process.
FORGET = """
if redis.call('EXISTS', KEYS[1]) == 0 and redis.call('EXISTS', KEYS[3]) == 0 then
  redis.call('ZREM', KEYS[2], ARGV[1])
end
"""
