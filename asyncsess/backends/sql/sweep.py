"""Deleting what is over, in steps of a few hundred rows: no lock of a row is held for longer than one such step."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy.sql.base import Executable

from asyncsess.backends.sql.connections import Connections
from asyncsess.backends.sql.locks import LockStatements
from asyncsess.backends.sql.sessions import AT_ONCE, MemberStatements, SessionStatements
from asyncsess.expiry import Expiry

MEMBER_AGE: Final = 60.0
_NEVER: Final = 1e15  # seconds


async def sweep(
    connections: Connections,
    sessions: SessionStatements,
    names: LockStatements,
    members: MemberStatements,
    expiry: Expiry,
    now: float,
) -> int:
    """Delete what is over, and return how many records that were."""
    idle = _NEVER if expiry.idle_timeout is None else expiry.idle_timeout
    lifetime = _NEVER if expiry.lifetime is None else expiry.lifetime
    limits = {"idle": idle, "lifetime": lifetime, "at": now, "made_until": now - min(idle, lifetime)}
    deleted = await _delete(connections, sessions.expired, sessions.delete_expired, limits)
    await _delete(connections, sessions.buried, sessions.delete_buried, {"at": now})
    await _remove_members(connections, members, now - MEMBER_AGE)
    await connections.repeat(names.sweep)
    return deleted


async def _delete(connections: Connections, find: Executable, delete: Executable, limits: dict[str, Any]) -> int:
    deleted, after = 0, ""
    while True:
        found = await connections.repeat(find, {**limits, "after": after})
        keys = [key for (key,) in found.rows]
        if keys:
            deleted += (await connections.repeat(delete, {**limits, "keys": keys})).matched
        if len(keys) < AT_ONCE:
            return deleted
        after = keys[-1]


async def _remove_members(connections: Connections, members: MemberStatements, before: float) -> None:
    after, after_key = "", ""
    while True:
        limits = {"before": before, "after": after, "after_key": after_key}
        pairs = [tuple(row) for row in (await connections.repeat(members.old, limits)).rows]
        if pairs:
            await connections.repeat(members.remove_old, {"before": before, "pairs": pairs})
        if len(pairs) < AT_ONCE:
            return
        after, after_key = pairs[-1]
