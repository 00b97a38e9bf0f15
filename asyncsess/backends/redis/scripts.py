"""What Redis runs in one atomic step each: Lua, over three keys of one slot.

    record    a string: 1 or 2 (a tombstone), created at, accessed at (of a tombstone: until), version, payload
    lock      a hash: the holder's token, end of its lease, name and since when its process is gone; or for whom the lock
              is kept, and until when
    queue     a sorted set: the tokens of those who wait, by when they came

A token begins with the name of its process, which listens on a channel of that name: whoever gives a lock to the next
tells him there, and learns at once whether anybody listens. In a cluster that can't be learned, so a lock is kept for
the next for a second, and a holder's process counts as there. Times of locks are milliseconds of the server's clock.
"""

from __future__ import annotations

import struct
from typing import Final

from asyncsess.backends.base import Found, Record, Tombstone

_HEAD: Final = struct.Struct(">Bddd")
_RECORD: Final = 1
_TOMBSTONE: Final = 2


def encode(found: Record | Tombstone) -> bytes:
    """Return what is stored of a record or a tombstone."""
    if isinstance(found, Record):
        return _HEAD.pack(_RECORD, found.created_at, found.accessed_at, found.version) + found.payload
    return _HEAD.pack(_TOMBSTONE, 0.0, found.until, 0) + found.note


def decode(data: bytes | None) -> Found:
    """Return what was stored."""
    if data is None:
        return None
    kind, created_at, accessed_at, version = _HEAD.unpack_from(data)
    rest = data[_HEAD.size :]
    if kind == _TOMBSTONE:
        return Tombstone(rest, accessed_at)
    return Record(rest, int(version), created_at, accessed_at)


_COMMON: Final = """
local record, lock, queue = KEYS[1], KEYS[2], KEYS[3]
local token, channel, is_cluster = ARGV[1], ARGV[2], ARGV[3] == '1'
local kept, gone = 1000, 1000

local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function channel_of(claim)
  return channel .. string.match(claim, '^[^.]*')
end

local function is_mine()
  return redis.call('HGET', lock, 'token') == token
end

local function hand_on()
  redis.call('DEL', lock)
  local first = redis.call('ZRANGE', queue, 0, 0)[1]
  while first do
    redis.call('ZREM', queue, first)
    if redis.call('PUBLISH', channel_of(first), first) > 0 or is_cluster then
      redis.call('HSET', lock, 'for', first, 'until', now() + kept)
      redis.call('PEXPIRE', lock, 60 * kept)
      return
    end
    first = redis.call('ZRANGE', queue, 0, 0)[1]
  end
end

local function grant(lease, holder)
  redis.call('DEL', lock)
  redis.call('HSET', lock, 'token', token, 'deadline', lease < 0 and 0 or now() + lease, 'holder', holder)
  redis.call('PEXPIRE', lock, 86400000 + math.max(lease, 0))
  redis.call('ZREM', queue, token)
end

local function head_of(data)
  return struct.unpack('>Bddd', data)
end

local function expire(created_at, accessed_at, idle, lifetime, at)
  local left = -1
  if idle >= 0 then left = accessed_at + idle - at end
  if lifetime >= 0 and (left < 0 or created_at + lifetime - at < left) then left = created_at + lifetime - at end
  if idle >= 0 or lifetime >= 0 then
    redis.call('PEXPIRE', record, math.max(1, math.ceil(left * 1000)))
  else
    redis.call('PERSIST', record)
  end
end
"""

# Locks are small and end by themselves: without them, a server whose memory is full could not even be made empty.
_EVEN_IF_FULL: Final = "#!lua flags=allow-oom"

TAKE: Final = (
    _EVEN_IF_FULL
    + _COMMON
    + """
local lease, holder, is_name, create = tonumber(ARGV[4]), ARGV[5], ARGV[6] == '1', ARGV[7] == '1'
local at = now()

local function busy(who, pause)
  if not redis.call('ZSCORE', queue, token) then
    local time = redis.call('TIME')
    redis.call('ZADD', queue, time[1] * 1000000 + time[2], token)
    local holding = redis.call('HGET', lock, 'token')
    if holding then redis.call('PUBLISH', channel_of(holding), holding) end
  end
  redis.call('PEXPIRE', queue, 3600000)
  return {0, who or '', pause, redis.call('ZRANK', queue, token)}
end

local state = redis.call('HMGET', lock, 'token', 'deadline', 'holder', 'gone', 'for', 'until')
local held_by, deadline, kept_for = state[1], tonumber(state[2] or 0), state[5]
if held_by == token then return {1, 0, not is_name and redis.call('GET', record)} end
local was_late = held_by and deadline > 0 and deadline <= at
if held_by and not was_late then
  local pause = 1000
  if deadline > 0 then pause = math.min(pause, deadline - at) end
  if not is_cluster and redis.call('PUBSUB', 'NUMSUB', channel_of(held_by))[2] == 0 then
    if not state[4] then
      redis.call('HSET', lock, 'gone', at)
      return busy(state[3], math.min(pause, gone))
    elseif tonumber(state[4]) + gone > at then
      return busy(state[3], math.min(pause, tonumber(state[4]) + gone - at))
    end
    was_late = true
  else
    if state[4] then redis.call('HDEL', lock, 'gone') end
    return busy(state[3], pause)
  end
end
if kept_for and kept_for ~= token and tonumber(state[6]) > at then
  return busy(false, tonumber(state[6]) - at)
end
if kept_for ~= token then
  local first = redis.call('ZRANGE', queue, 0, 0)[1]
  if first and first ~= token then
    local answer = busy(was_late and state[3], kept)
    if not was_late then
      hand_on()
      return answer
    end
    redis.call('PUBLISH', channel_of(first), first)
    if redis.call('PUBSUB', 'NUMSUB', channel_of(first))[2] > 0 or is_cluster then return answer end
    redis.call('ZREM', queue, first)
    return {0, state[3], 0, 0}
  end
end
local found = not is_name and redis.call('GET', record)
if not is_name and not found and not create then
  redis.call('ZREM', queue, token)
  if kept_for == token then hand_on() elseif held_by then redis.call('DEL', lock) end
  return {2}
end
grant(lease, holder)
return {1, was_late and 1 or 0, found}
"""
)

LEAVE: Final = (
    _EVEN_IF_FULL
    + _COMMON
    + """
redis.call('ZREM', queue, token)
if is_mine() or redis.call('HGET', lock, 'for') == token then hand_on() end
"""
)

CREATE: Final = (
    _COMMON
    + """
if is_mine() then return 1 end
if redis.call('EXISTS', record) == 1 or redis.call('EXISTS', lock) == 1 then return 0 end
redis.call('SET', record, ARGV[6])
local _, created_at, accessed_at = head_of(ARGV[6])
expire(created_at, accessed_at, tonumber(ARGV[7]), tonumber(ARGV[8]), accessed_at)
grant(tonumber(ARGV[4]), ARGV[5])
return 1
"""
)

COMMIT: Final = (
    _COMMON
    + """
if not is_mine() then return 0 end
redis.call('SET', record, ARGV[4])
local _, created_at, accessed_at = head_of(ARGV[4])
expire(created_at, accessed_at, tonumber(ARGV[5]), tonumber(ARGV[6]), accessed_at)
if ARGV[7] == '1' then hand_on() end
return 1
"""
)

DELETE: Final = (
    _EVEN_IF_FULL
    + _COMMON
    + """
if not is_mine() then return 0 end
if ARGV[4] == '' then
  redis.call('DEL', record)
else
  redis.call('SET', record, ARGV[4])
  if tonumber(ARGV[5]) > 0 then redis.call('PEXPIRE', record, ARGV[5]) end
end
hand_on()
return 1
"""
)

_TOUCH: Final = """
local function touch(at, idle, lifetime)
  local head = redis.call('GETRANGE', record, 0, 24)
  if #head < 25 then return end
  local kind, created_at, accessed_at = head_of(head)
  if kind ~= 1 or accessed_at >= at then return end
  redis.call('SETRANGE', record, 9, struct.pack('>d', at))
  expire(created_at, at, idle, lifetime, at)
end
"""

RELEASE: Final = (
    _EVEN_IF_FULL
    + _COMMON
    + _TOUCH
    + """
if not is_mine() then return 0 end
if ARGV[4] ~= '' then touch(tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])) end
hand_on()
return 1
"""
)

TOUCH: Final = (
    _COMMON
    + _TOUCH
    + """
if not redis.call('HGET', lock, 'token') then touch(tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])) end
"""
)

RENEW: Final = (
    _EVEN_IF_FULL
    + _COMMON
    + """
if not is_mine() then return 0 end
local lease = tonumber(ARGV[4])
redis.call('HSET', lock, 'deadline', lease < 0 and 0 or now() + lease)
redis.call('PEXPIRE', lock, 86400000 + math.max(lease, 0))
return 1
"""
)

CHECK: Final = _COMMON + "return is_mine() and 1 or 0"

SWEEP: Final = (
    _COMMON
    + """
local idle, lifetime, at = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
if redis.call('HGET', lock, 'token') then return 0 end
local head = redis.call('GETRANGE', record, 0, 24)
if #head < 25 then return 0 end
local kind, created_at, accessed_at = head_of(head)
if kind == 2 then
  if accessed_at <= at then redis.call('DEL', record) end
  return 0
end
if (idle >= 0 and accessed_at + idle <= at) or (lifetime >= 0 and created_at + lifetime <= at) then
  redis.call('DEL', record)
  return 1
end
return 0
"""
)
