-- Removes one device's session, if it is still the one that is registered.
--
-- KEYS[1]  the user's presence, as in register.lua
-- ARGV[1]  the device
-- ARGV[2]  the session
-- ARGV[3]  now, in milliseconds since the epoch
-- ARGV[4]  seconds after which the hash is forgotten
--
-- Returns 1 if it was removed, else 0.

local LAST_SEEN = '\1last_seen'
local text = redis.call('HGET', KEYS[1], ARGV[1])
if not text then return 0 end
local readable, entry = pcall(cjson.decode, text)
if not readable or type(entry) ~= 'table' or entry.session ~= ARGV[2] then return 0 end

redis.call('HDEL', KEYS[1], ARGV[1])
local last_seen = tonumber(redis.call('HGET', KEYS[1], LAST_SEEN) or 0) or 0
if tonumber(ARGV[3]) > last_seen then redis.call('HSET', KEYS[1], LAST_SEEN, ARGV[3]) end
redis.call('EXPIRE', KEYS[1], ARGV[4])
return 1
