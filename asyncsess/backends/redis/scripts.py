"""What Redis runs in one atomic step each: Lua, over three keys of one slot.

    record    a string: 1 or 2 (a tombstone), created at, accessed at (of a tombstone: until), version, the marks of the
              last four commits, payload (of a tombstone: note)
    lock      a hash: the holder's token, end of its lease, name and since when its process is gone; or for whom the
              lock is kept, and until when
    queue     a sorted set: the tokens of those who wait, by when they came

A token begins with the name of its process, which listens on a channel of that name: whoever gives a lock to the next
tells him there, and learns at once whether anybody listens. In a cluster that can't be learned, so a lock is kept for
the next for a second, and a holder's process counts as there. Times of locks are milliseconds of the server's clock.

A client that lost its connection asks again, so each script may run twice. Who no longer has the lock when he commits
has lost it, or has committed before: the mark that his commit left tells, unless four others have followed.
"""

from __future__ import annotations

import struct
from hashlib import sha256
from typing import Final

from asyncsess.backends.base import Found, Record, Tombstone

_HEAD: Final = struct.Struct(">Bddd")
_RECORD: Final = 1
_TOMBSTONE: Final = 2
_SIZE: Final = 57  # of the head and the marks
UNKNOWN: Final = 2  # an answer to a commit


def mark_of(token: str) -> bytes:
    """Return what a commit of a claim leaves in the record, eight bytes."""
    return sha256(token.encode()).digest()[:8]


def encode(record: Record) -> tuple[bytes, bytes]:
    """Return what is stored of a record before and behind the marks."""
    return _HEAD.pack(_RECORD, record.created_at, record.accessed_at, record.version), record.payload


def is_record(first: bytes) -> bool:
    """Tell from the first byte of what is stored whether it is a record."""
    return first == bytes([_RECORD])


def decode(data: bytes | None) -> Found:
    """Return what was stored.

    Raises:
        ValueError: It is nothing that this has stored.
    """
    if data is None:
        return None
    if len(data) < _SIZE or data[0] not in {_RECORD, _TOMBSTONE}:
        raise ValueError("what the server has under its key is no session")
    kind, created_at, accessed_at, version = _HEAD.unpack_from(data)
    rest = data[_SIZE:]
    if kind == _TOMBSTONE:
        return Tombstone(rest, accessed_at)
    return Record(rest, int(version), created_at, accessed_at)


# Locks are taken and given back, and sessions deleted, also on a server whose memory is full.
_ALWAYS: Final = "#!lua flags=allow-oom\n"
_UNLESS_FULL: Final = "#!lua\n"

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

local function stored()
  local before = redis.call('GETRANGE', record, 0, 56)
  if #before == 57 then return before end
end

-- 1 if a version is that of a mark, 0 if not, 2 if that is not known any more
local function was_stored(before, version, mark)
  if not before then return 0 end
  local _, _, _, newest = head_of(before)
  local since = newest - version
  if since < 0 then return 0 end
  if since > 3 then return 2 end
  return string.sub(before, 26 + 8 * since, 33 + 8 * since) == mark and 1 or 0
end

local function put(head, mark, payload, before, idle, lifetime)
  local marks = before and string.sub(before, 26, 49) or string.rep('\\0', 24)
  redis.call('SET', record, head .. mark .. marks .. payload)
  local _, created_at, accessed_at = head_of(head)
  expire(created_at, accessed_at, idle, lifetime, accessed_at)
end
"""

TAKE: Final = (
    _ALWAYS
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
    _ALWAYS
    + _COMMON
    + """
redis.call('ZREM', queue, token)
if is_mine() or redis.call('HGET', lock, 'for') == token then hand_on() end
"""
)

CREATE: Final = (
    _UNLESS_FULL
    + _COMMON
    + """
local head, mark = ARGV[6], ARGV[7]
local before = stored()
if before then return is_mine() and was_stored(before, 1, mark) or 0 end
if redis.call('EXISTS', lock) == 1 and not is_mine() then return 0 end
put(head, mark, ARGV[8], nil, tonumber(ARGV[9]), tonumber(ARGV[10]))
grant(tonumber(ARGV[4]), ARGV[5])
return 1
"""
)

COMMIT: Final = (
    _UNLESS_FULL
    + _COMMON
    + """
local head, mark = ARGV[4], ARGV[5]
local _, _, _, version = head_of(head)
local before = stored()
local was = was_stored(before, version, mark)
if not is_mine() then return was end
if was == 0 then put(head, mark, ARGV[6], before, tonumber(ARGV[7]), tonumber(ARGV[8])) end
if ARGV[9] == '1' then hand_on() end
return 1
"""
)

DELETE: Final = (
    _ALWAYS
    + _COMMON
    + """
local mark, until_at, note, left = ARGV[4], tonumber(ARGV[5]), ARGV[6], tonumber(ARGV[7])
local before = stored()
local kind, _, _, version = 0, 0, 0, 0
if before then kind, _, _, version = head_of(before) end
if not is_mine() then return (kind == 2 and string.sub(before, 26, 33) == mark) and 1 or 0 end
if left > 0 and kind == 1 then
  redis.call('SET', record, struct.pack('>Bddd', 2, 0, until_at, version) .. mark .. string.sub(before, 26, 49) .. note)
  redis.call('PEXPIRE', record, left)
else
  redis.call('DEL', record)
end
hand_on()
return 1
"""
)

_TOUCH: Final = """
local function touch(at, idle, lifetime)
  local head = stored()
  if not head then return end
  local kind, created_at, accessed_at = head_of(head)
  if kind ~= 1 or accessed_at >= at then return end
  redis.call('SETRANGE', record, 9, struct.pack('>d', at))
  expire(created_at, at, idle, lifetime, at)
end
"""

RELEASE: Final = (
    _ALWAYS
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
    _ALWAYS
    + _COMMON
    + _TOUCH
    + """
if not redis.call('HGET', lock, 'token') then touch(tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])) end
"""
)

RENEW: Final = (
    _ALWAYS
    + _COMMON
    + """
if not is_mine() then return 0 end
local lease = tonumber(ARGV[4])
redis.call('HSET', lock, 'deadline', lease < 0 and 0 or now() + lease)
redis.call('PEXPIRE', lock, 86400000 + math.max(lease, 0))
return 1
"""
)

CHECK: Final = _ALWAYS + _COMMON + "return is_mine() and 1 or 0"

SWEEP: Final = (
    _ALWAYS
    + _COMMON
    + """
local idle, lifetime, at = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
if redis.call('HGET', lock, 'token') then return 0 end
local head = stored()
if not head then return 0 end
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

TIME: Final = _ALWAYS + "return redis.call('TIME')"

JOIN: Final = (
    _UNLESS_FULL
    + """
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
if tonumber(ARGV[3]) > 0 then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
"""
)
