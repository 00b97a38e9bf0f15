"""What the scripts of Redis are made of: pieces of Lua, each over what those before it define."""

from __future__ import annotations

from typing import Final

# Locks are taken and given back, and sessions deleted, also on a server whose memory is full.
ALWAYS: Final = "#!lua flags=allow-oom\n"
UNLESS_FULL: Final = "#!lua\n"
READING: Final = "#!lua flags=no-writes\n"  # also on a server that takes no writes


def given(*names: str) -> str:
    """Return the beginning of a script that is given these arguments, besides those of every claim and a payload."""
    return f"""
local record, lock, queue, payload = KEYS[1], KEYS[2], KEYS[3], ARGV[2]
local {", ".join(("token", "channel", "is_cluster", *names))} = unpack(cmsgpack.unpack(ARGV[1]))
"""


# What scripts are given: the version to store and how long it lives, and who asks for a lock.
VERSION: Final = "created_at", "accessed_at", "version", "mark", "idle", "lifetime"
ASKER: Final = "lease", "holder"

LOCK: Final = """
local state = redis.call('GET', lock)
local is_mine = state and string.sub(state, 1, #token + 1) == token .. ' '
"""

NOW: Final = """
local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
"""

TELL: Final = """
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

GRANT: Final = """
local DAY = 86400000

local function grant(gone)
  redis.call('SET', lock, token .. ' ' .. lease .. ' ' .. gone .. ' ' .. holder, 'PX', DAY + math.max(lease, 0))
end
"""

# `left` tells for how many milliseconds a record lives on, -1 for ever.
FOUND: Final = """
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

# About the `VERSION` that a script is given. `was_stored` tells whether it is; `UNKNOWN` if it is too long ago.
PUT: Final = """
local function was_stored(before)
  if not before then return 0 end
  local _, _, _, newest = head_of(before)
  local since = newest - version
  if since < 0 then return 0 end
  if since > 3 then return 2 end
  return string.sub(before, 26 + 8 * since, 33 + 8 * since) == mark and 1 or 0
end

local function put(before)
  local marks = before and string.sub(before, 26, 49) or string.rep('\\0', 24)
  local lives = left(created_at, accessed_at, idle, lifetime)
  local data = struct.pack('>Bddd', 1, created_at, accessed_at, version) .. mark .. marks .. payload
  if lives > 0 then redis.call('SET', record, data, 'PX', lives) else redis.call('SET', record, data) end
end
"""

TOUCHING: Final = """
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
