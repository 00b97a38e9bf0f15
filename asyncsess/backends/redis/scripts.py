"""What Redis runs in one atomic step each: Lua, over three keys of one slot.

    record    a string: 1 or 2 (a tombstone), created at, accessed at (of a tombstone: until), version, the marks of the
              last four commits, payload (of a tombstone: note)
    lock      a string: the holder's token, lease, since when its process is gone, name; or ">", for whom the lock is
              kept, and until when
    queue     a sorted set: the tokens of those who wait, by when they came

A token begins with the name of its process, which listens on a channel of that name: whoever gives a lock to the next
tells him there, and learns at once whether anybody listens. In a cluster that can't be learned, so a lock is kept for
the next for a second, and a holder's process counts as there. Nor does a process answer that was stopped, or that a
network has swallowed: whoever is first in line behind a late holder has a second to come, then the next has. Times and
leases of locks are milliseconds of the server's clock; a lock lives on for a day beyond its lease, so its time to live
tells when that ends.

The server may read what a client has asked when that one has long given up, and grant a lock to nobody. So whoever
waits for a lock has its holder told each time he asks, and a process that does not know of a claim of its own gives it
back.

A client that lost its connection asks again, so each script may run twice. Who no longer has the lock when he commits
has lost it, or has committed before: the mark that his commit left tells, unless four others have followed. It tells
also whether one was stored whose repetition the server has refused.
"""

from __future__ import annotations

from hashlib import sha1
from typing import Final

from asyncsess.backends.redis import lua
from asyncsess.backends.redis.wire import begin

UNKNOWN: Final = 2  # an answer to a commit


class Script:
    """A script.

    Args:
        parts: Its text.
        keys: How many it is about; a packed tuple of arguments and a payload follow.

    Attributes:
        digest: What the server calls it.
        start: What a command that runs it begins with, packed.
    """

    def __init__(self, *parts: str, keys: int = 3) -> None:
        self.text = "".join(parts)
        self.digest = sha1(self.text.encode(), usedforsecurity=False).hexdigest()
        self.start = begin(3 + keys + 2, "EVALSHA", self.digest, keys)


TAKE: Final = Script(
    lua.ALWAYS,
    lua.given(*lua.ASKER, "is_name", "create"),
    lua.LOCK,
    lua.NOW,
    lua.GRANT,
    """
local first = redis.call('ZRANGE', queue, 0, 0)[1]
if not state and not first then
  local found = not is_name and redis.call('GET', record)
  if not is_name and not found and not create then return {2} end
  grant(0)
  return {1, 0, found}
end
""",
    lua.TELL,
    """
local function is_there(claim)
  return is_cluster or redis.call('PUBSUB', 'NUMSUB', channel_of(claim))[2] > 0
end

local function busy(who, pause, told)
  if not redis.call('ZSCORE', queue, token) then
    local time = redis.call('TIME')
    redis.call('ZADD', queue, time[1] * 1000000 + time[2], token)
    redis.call('PEXPIRE', queue, 3600000)
  end
  if told then is_told(told) end
  return {0, who or '', pause, redis.call('ZRANK', queue, token)}
end

if is_mine then return {1, 0, not is_name and redis.call('GET', record)} end
local at = now()
local kept_for, kept_until, held_by, leased, gone, who
local was_late, late_since = false, 0
if state and string.sub(state, 1, 1) == '>' then
  kept_for, kept_until = string.match(state, '^>(%S+) (%S+)$')
  if kept_for ~= token and tonumber(kept_until) > at then return busy(false, kept_until - at) end
elseif state then
  held_by, leased, gone, who = string.match(state, '^(%S+) (%S+) (%S+) (.*)$')
  gone = tonumber(gone)
  local left = tonumber(leased) < 0 and math.huge or redis.call('PTTL', lock) - DAY
  was_late, late_since = left <= 0, math.max(at + left, gone)
  if not was_late then
    local pause = math.min(1000, left)
    local is_gone = not is_there(held_by)
    if is_gone == (gone == 0) then
      gone = is_gone and at or 0
      redis.call('SET', lock, held_by .. ' ' .. leased .. ' ' .. gone .. ' ' .. who, 'KEEPTTL')
    end
    if not is_gone then return busy(who, pause, held_by) end
    if gone + 1000 > at then return busy(who, math.min(pause, gone + 1000 - at)) end
    was_late, late_since = true, gone + 1000
  end
end
if first and first ~= token and kept_for ~= token then
  local answer = busy(who, 1000)
  if not was_late then
    hand_on()
    return answer
  end
  is_told(first)
  if is_there(first) then
    if at < late_since + 1000 then return answer end
    redis.call('SET', lock, held_by .. ' ' .. leased .. ' ' .. at .. ' ' .. who, 'KEEPTTL')
  end
  redis.call('ZREM', queue, first)
  return {0, who, 0, 0}
end
local found = not is_name and redis.call('GET', record)
if first then redis.call('ZREM', queue, token) end
if not is_name and not found and not create then
  if state then hand_on() end
  return {2}
end
grant(0)
return {1, was_late and 1 or 0, found}
""",
)

LEAVE: Final = Script(
    lua.ALWAYS,
    lua.given(),
    lua.LOCK,
    lua.NOW,
    lua.TELL,
    """
redis.call('ZREM', queue, token)
if is_mine or (state and string.sub(state, 1, #token + 2) == '>' .. token .. ' ') then hand_on() end
""",
)

CREATE: Final = Script(
    lua.UNLESS_FULL,
    lua.given(*lua.VERSION, *lua.ASKER),
    lua.LOCK,
    lua.GRANT,
    lua.FOUND,
    lua.PUT,
    """
local before = stored()
if before then return is_mine and was_stored(before) or 0 end
if state and not is_mine then return 0 end
put(nil)
grant(0)
return 1
""",
)

COMMIT: Final = Script(
    lua.UNLESS_FULL,
    lua.given(*lua.VERSION, "is_last"),
    lua.LOCK,
    lua.NOW,
    lua.TELL,
    lua.FOUND,
    lua.PUT,
    """
local before = stored()
local was = was_stored(before)
if not is_mine then return was end
if was ~= 1 then
  if before and select(4, head_of(before)) >= version then return 2 end
  put(before)
end
if is_last then hand_on() end
return 1
""",
)

STORED: Final = Script(
    lua.READING,
    lua.given(*lua.VERSION),
    lua.FOUND,
    lua.PUT,
    "return was_stored(stored())",
)

DELETE: Final = Script(
    lua.ALWAYS,
    lua.given("mark", "until_at", "stands"),
    lua.LOCK,
    lua.NOW,
    lua.TELL,
    lua.FOUND,
    """
local before = stored()
local kind, _, _, version = 0, 0, 0, 0
if before then kind, _, _, version = head_of(before) end
if not is_mine then
  if kind == 0 and stands == 0 then return 1 end
  return (kind == 2 and string.sub(before, 26, 33) == mark) and 1 or 0
end
if stands > 0 and kind == 1 then
  local head = struct.pack('>Bddd', 2, 0, until_at, version)
  redis.call('SET', record, head .. mark .. string.sub(before, 26, 49) .. payload, 'PX', stands)
else
  redis.call('DEL', record)
end
hand_on()
return 1
""",
)

RELEASE: Final = Script(
    lua.ALWAYS,
    lua.given("used_at", "idle", "lifetime"),
    lua.LOCK,
    lua.NOW,
    lua.TELL,
    lua.FOUND,
    lua.TOUCHING,
    """
if not is_mine then return 0 end
if used_at then touch(used_at, idle, lifetime) end
hand_on()
return 1
""",
)

TOUCH: Final = Script(
    lua.ALWAYS,
    lua.given("used_at", "idle", "lifetime"),
    lua.FOUND,
    lua.TOUCHING,
    """
local state = redis.call('GET', lock)
if not state or string.sub(state, 1, 1) == '>' then touch(used_at, idle, lifetime) end
""",
)

RENEW: Final = Script(
    lua.ALWAYS,
    lua.given("lease"),
    lua.LOCK,
    """
if not is_mine then return 0 end
local gone, holder = string.match(state, '^%S+ %S+ (%S+) (.*)$')
""",
    lua.GRANT,
    """
grant(gone)
return 1
""",
)

CHECK: Final = Script(lua.ALWAYS, lua.given(), lua.LOCK, "return is_mine and 1 or 0")

SWEEP: Final = Script(
    lua.ALWAYS,
    lua.given("idle", "lifetime", "at"),
    lua.FOUND,
    """
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

DISCARD: Final = Script(
    lua.ALWAYS,
    lua.given(),
    "if redis.call('GET', record) == payload then redis.call('DEL', record) end",
)

TIME: Final = Script(lua.ALWAYS, "return redis.call('TIME')", keys=1)

JOIN: Final = Script(
    lua.UNLESS_FULL,
    """
local member, added_at, left = unpack(cmsgpack.unpack(ARGV[1]))
local is_new = redis.call('EXISTS', KEYS[1]) == 0
redis.call('HSET', KEYS[1], member, added_at)
if left == 0 then
  redis.call('PERSIST', KEYS[1])
elseif is_new then
  redis.call('PEXPIRE', KEYS[1], left)
else
  redis.call('PEXPIRE', KEYS[1], left, 'GT')
end
""",
    keys=1,
)
