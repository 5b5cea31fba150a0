-- Registers one device's session in one step.
--
-- KEYS[1]   the user's presence: a hash of device -> entry (JSON: node, session, term, since, ...),
--           and under "\1last_seen", which no device is called, milliseconds since the epoch
-- ARGV[1]   the device
-- ARGV[2]   its entry
-- ARGV[3]   devices a user may have online
-- ARGV[4]   seconds after which the hash is forgotten
-- ARGV[5]   1 for a session that joins, 0 for one that is registered again under a new lease
-- ARGV[6..] nodes whose lease ran out. Node leases live in other slots than the hash, so the caller
--           looks them up; a lease is never revived, so what it saw as dead is still dead here.
--
-- Returns {1 if a younger session of the device stays else 0, devices online with this one,
-- the entry of the device's older session or "", the other nodes that entries were found of}. Nothing is
-- registered if a younger one stays or if the devices are too many. Entries of dead nodes are removed on the
-- way. Called first without them: if one of the other nodes turns out to be dead, it is called again.

local LAST_SEEN = '\1last_seen'
local mine = cjson.decode(ARGV[2])
local dead = {}
for i = 6, #ARGV do dead[ARGV[i]] = true end

local held, held_text
local others, last_seen, dead_since = 0, 0, 0
local nodes, known = {}, { [mine.node] = true }
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  local device, text = fields[i], fields[i + 1]
  if device == LAST_SEEN then
    last_seen = tonumber(text) or 0
  else
    local readable, entry = pcall(cjson.decode, text)
    readable = readable and type(entry) == 'table'
    if not readable or dead[entry.node] then
      redis.call('HDEL', KEYS[1], device)
      if readable then dead_since = math.max(dead_since, tonumber(entry.since) or 0) end
    else
      -- What names no node is judged by nobody; an index of nothing would fail the whole batch.
      if type(entry.node) == 'string' and not known[entry.node] then
        known[entry.node] = true
        nodes[#nodes + 1] = entry.node
      end
      if device == ARGV[1] then
        held, held_text = entry, text
      else
        others = others + 1
      end
    end
  end
end
if dead_since > last_seen then
  redis.call('HSET', KEYS[1], LAST_SEEN, string.format('%.0f', dead_since))
end

local foreign = held and held.session ~= mine.session
local entry = ARGV[2]
if foreign and held.since >= mine.since then
  if ARGV[5] == '1' then
    -- Who joins is the younger, whatever the nodes' clocks say, and stays it for what comes later.
    mine.since = held.since + 1
    entry = cjson.encode(mine)
  elseif held.since > mine.since then
    return {1, others + 1, '', nodes}
  end
end
-- Late: the session was registered again under a newer lease.
if held and not foreign and held.term > mine.term then return {0, others + 1, '', nodes} end
if not held and others >= tonumber(ARGV[3]) then return {0, others + 1, '', nodes} end
redis.call('HSET', KEYS[1], ARGV[1], entry)
redis.call('EXPIRE', KEYS[1], ARGV[4])
return {0, others + 1, foreign and held_text or '', nodes}
