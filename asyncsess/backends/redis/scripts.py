"""What Redis runs in one atomic step each: Lua, over three keys of one slot.

    record    a string: 1 or 2 (a tombstone), created at, accessed at (of a tombstone: until), version, the marks of the
              last four commits, payload (of a tombstone: note)
    lock      a string: the holder's token, end of its lease, since when its process is gone, name; or ">", for whom the
              lock is kept, and until when
    queue     a sorted set: the tokens of those who wait, by when they came

A token begins with the name of its process, which listens on a channel of that name: whoever gives a lock to the next
tells him there, and learns at once whether anybody listens. In a cluster that can't be learned, so a lock is kept for
the next for a second, and a holder's process counts as there. Times of locks are milliseconds of the server's clock.

The server may read what a client has asked when that one has long given up, and grant a lock to nobody. So whoever
waits for a lock has its holder told, and a process that does not know of a claim of its own gives it back.

A client that lost its connection asks again, so each script may run twice. Who no longer has the lock when he commits
has lost it, or has committed before: the mark that his commit left tells, unless four others have followed.
"""

from __future__ import annotations

from hashlib import sha1
from typing import Final

UNKNOWN: Final = 2  # an answer to a commit


class Script:
    """A script.

    Args:
        parts: Its text.

    Attributes:
        digest: What the server calls it.
    """

    def __init__(self, *parts: str) -> None:
        self.text = "".join(parts)
        self.digest = sha1(self.text.encode(), usedforsecurity=False).hexdigest()


# Locks are taken and given back, and sessions deleted, also on a server whose memory is full.
_ALWAYS: Final = "#!lua flags=allow-oom\n"
_UNLESS_FULL: Final = "#!lua\n"

_KEYS: Final = """
local record, lock, queue = KEYS[1], KEYS[2], KEYS[3]
local token, channel, is_cluster = ARGV[1], ARGV[2], ARGV[3] == '1'
"""

_LOCK: Final = """
local state = redis.call('GET', lock)
local is_mine = state and string.sub(state, 1, #token + 1) == token .. ' '
"""

_NOW: Final = """
local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
"""

_TELL: Final = """
local function channel_of(claim)
  return channel .. string.match(claim, '^[^.]*')
end

local function is_told(claim)
  return redis.call('PUBLISH', channel_of(claim), claim .. ' ' .. lock) > 0 or is_cluster
end

local function hand_on()
  local first = redis.call('ZRANGE', queue, 0, 0)[1]
  while first do
    redis.call('ZREM', queue, first)
    if is_told(first) then
      redis.call('SET', lock, '>' .. first .. ' ' .. now() + 1000, 'PX', 60000)
      return
    end
    first = redis.call('ZRANGE', queue, 0, 0)[1]
  end
  redis.call('DEL', lock)
end
"""

_GRANT: Final = """
local function grant(at, lease, gone, holder)
  local deadline, left = 0, 86400000
  if lease >= 0 then deadline, left = at + lease, left + lease end
  redis.call('SET', lock, token .. ' ' .. deadline .. ' ' .. gone .. ' ' .. holder, 'PX', left)
end
"""

# `left` tells for how many milliseconds a record lives on, -1 for ever.
_FOUND: Final = """
local function head_of(data)
  return struct.unpack('>Bddd', data)
end

local function stored()
  local before = redis.call('GETRANGE', record, 0, 56)
  if #before == 57 then return before end
end

local function left(created_at, accessed_at, idle, lifetime)
  local seconds = -1
  if idle >= 0 then seconds = idle end
  if lifetime >= 0 then
    local rest = created_at + lifetime - accessed_at
    if seconds < 0 or rest < seconds then seconds = rest end
  end
  if idle < 0 and lifetime < 0 then return -1 end
  return math.max(1, math.ceil(seconds * 1000))
end
"""

# `was_stored` tells whether a version is that of a mark; `UNKNOWN` if it is too long ago.
_PUT: Final = """
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
  local _, created_at, accessed_at = head_of(head)
  local lives = left(created_at, accessed_at, idle, lifetime)
  local data = head .. mark .. marks .. payload
  if lives > 0 then redis.call('SET', record, data, 'PX', lives) else redis.call('SET', record, data) end
end
"""

_TOUCH: Final = """
local function touch(at, idle, lifetime)
  local before = stored()
  if not before then return end
  local kind, created_at, accessed_at = head_of(before)
  if kind ~= 1 or accessed_at >= at then return end
  redis.call('SETRANGE', record, 9, struct.pack('>d', at))
  local lives = left(created_at, at, idle, lifetime)
  if lives > 0 then redis.call('PEXPIRE', record, lives) end
end
"""

TAKE: Final = Script(
    _ALWAYS,
    _KEYS,
    """
local lease, holder, is_name, create = tonumber(ARGV[4]), ARGV[5], ARGV[6] == '1', ARGV[7] == '1'
""",
    _LOCK,
    _NOW,
    _TELL,
    _GRANT,
    """
local function is_there(claim)
  return is_cluster or redis.call('PUBSUB', 'NUMSUB', channel_of(claim))[2] > 0
end

local function busy(who, pause, held_by)
  if not redis.call('ZSCORE', queue, token) then
    local time = redis.call('TIME')
    redis.call('ZADD', queue, time[1] * 1000000 + time[2], token)
    redis.call('PEXPIRE', queue, 3600000)
    if held_by then is_told(held_by) end
  end
  return {0, who or '', pause, redis.call('ZRANK', queue, token)}
end

if is_mine then return {1, 0, not is_name and redis.call('GET', record)} end
local at = now()
local first = redis.call('ZRANGE', queue, 0, 0)[1]
local kept_for, kept_until, who
local was_late = false
if state and string.sub(state, 1, 1) == '>' then
  kept_for, kept_until = string.match(state, '^>(%S+) (%S+)$')
  if kept_for ~= token and tonumber(kept_until) > at then return busy(false, kept_until - at) end
elseif state then
  local held_by, deadline, gone
  held_by, deadline, gone, who = string.match(state, '^(%S+) (%S+) (%S+) (.*)$')
  deadline, gone = tonumber(deadline), tonumber(gone)
  was_late = deadline > 0 and deadline <= at
  if not was_late then
    local pause = 1000
    if deadline > 0 then pause = math.min(pause, deadline - at) end
    local is_gone = not is_there(held_by)
    if is_gone == (gone == 0) then
      gone = is_gone and at or 0
      redis.call('SET', lock, held_by .. ' ' .. deadline .. ' ' .. gone .. ' ' .. who, 'KEEPTTL')
    end
    if not is_gone then return busy(who, pause, held_by) end
    if gone + 1000 > at then return busy(who, math.min(pause, gone + 1000 - at)) end
    was_late = true
  end
end
if first and first ~= token and kept_for ~= token then
  local answer = busy(who, 1000)
  if not was_late then
    hand_on()
    return answer
  end
  is_told(first)
  if is_there(first) then return answer end
  redis.call('ZREM', queue, first)
  return {0, who, 0, 0}
end
local found = not is_name and redis.call('GET', record)
if first then redis.call('ZREM', queue, token) end
if not is_name and not found and not create then
  if state then hand_on() end
  return {2}
end
grant(at, lease, 0, holder)
return {1, was_late and 1 or 0, found}
""",
)

LEAVE: Final = Script(
    _ALWAYS,
    _KEYS,
    _LOCK,
    _NOW,
    _TELL,
    """
redis.call('ZREM', queue, token)
if is_mine or (state and string.sub(state, 1, #token + 2) == '>' .. token .. ' ') then hand_on() end
""",
)

CREATE: Final = Script(
    _UNLESS_FULL,
    _KEYS,
    _LOCK,
    _NOW,
    _GRANT,
    _FOUND,
    _PUT,
    """
local head, mark = ARGV[6], ARGV[7]
local _, _, _, version = head_of(head)
local before = stored()
if before then return is_mine and was_stored(before, version, mark) or 0 end
if state and not is_mine then return 0 end
put(head, mark, ARGV[8], nil, tonumber(ARGV[9]), tonumber(ARGV[10]))
grant(now(), tonumber(ARGV[4]), 0, ARGV[5])
return 1
""",
)

COMMIT: Final = Script(
    _UNLESS_FULL,
    _KEYS,
    _LOCK,
    _NOW,
    _TELL,
    _FOUND,
    _PUT,
    """
local head, mark = ARGV[4], ARGV[5]
local _, _, _, version = head_of(head)
local before = stored()
local was = was_stored(before, version, mark)
if not is_mine then return was end
if was == 0 then put(head, mark, ARGV[6], before, tonumber(ARGV[7]), tonumber(ARGV[8])) end
if ARGV[9] == '1' then hand_on() end
return 1
""",
)

DELETE: Final = Script(
    _ALWAYS,
    _KEYS,
    _LOCK,
    _NOW,
    _TELL,
    _FOUND,
    """
local mark, until_at, note, stands = ARGV[4], tonumber(ARGV[5]), ARGV[6], tonumber(ARGV[7])
local before = stored()
local kind, _, _, version = 0, 0, 0, 0
if before then kind, _, _, version = head_of(before) end
if not is_mine then return (kind == 2 and string.sub(before, 26, 33) == mark) and 1 or 0 end
if stands > 0 and kind == 1 then
  local head = struct.pack('>Bddd', 2, 0, until_at, version)
  redis.call('SET', record, head .. mark .. string.sub(before, 26, 49) .. note, 'PX', stands)
else
  redis.call('DEL', record)
end
hand_on()
return 1
""",
)

RELEASE: Final = Script(
    _ALWAYS,
    _KEYS,
    _LOCK,
    _NOW,
    _TELL,
    _FOUND,
    _TOUCH,
    """
if not is_mine then return 0 end
if ARGV[4] ~= '' then touch(tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])) end
hand_on()
return 1
""",
)

TOUCH: Final = Script(
    _ALWAYS,
    _KEYS,
    _FOUND,
    _TOUCH,
    """
local state = redis.call('GET', lock)
if not state or string.sub(state, 1, 1) == '>' then touch(tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])) end
""",
)

RENEW: Final = Script(
    _ALWAYS,
    _KEYS,
    _LOCK,
    _NOW,
    _GRANT,
    """
if not is_mine then return 0 end
local gone, holder = string.match(state, '^%S+ %S+ (%S+) (.*)$')
grant(now(), tonumber(ARGV[4]), gone, holder)
return 1
""",
)

CHECK: Final = Script(_ALWAYS, _KEYS, _LOCK, "return is_mine and 1 or 0")

SWEEP: Final = Script(
    _ALWAYS,
    _KEYS,
    _FOUND,
    """
local idle, lifetime, at = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
if redis.call('EXISTS', lock) == 1 then return 0 end
local before = stored()
if not before then return 0 end
local kind, created_at, accessed_at = head_of(before)
if kind == 2 then
  if accessed_at <= at then redis.call('DEL', record) end
  return 0
end
if (idle >= 0 and accessed_at + idle <= at) or (lifetime >= 0 and created_at + lifetime <= at) then
  redis.call('DEL', record)
  return 1
end
return 0
""",
)

TIME: Final = Script(_ALWAYS, "return redis.call('TIME')")

JOIN: Final = Script(
    _UNLESS_FULL,
    """
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
if tonumber(ARGV[3]) > 0 then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
""",
)
