"""The sessions of an owner: which there are, and how to end them.

Each names its owner among its values, and is a member of the owner's group. It joins before it exists and is never
taken out while it lives, so whoever follows the group misses none; whether a member is a session of this owner is
judged by the session itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, auto
from typing import Any, Final, NamedTuple

from asyncsess.backends.base import Record, Tombstone
from asyncsess.errors import CodecError, CorruptSessionError, SessionError, SessionNotFoundError
from asyncsess.ids import group_of, handle_of, key_of
from asyncsess.openings.base import Caller, granted, holder_at
from asyncsess.policy import Policy
from asyncsess.succession import is_succession
from asyncsess.values import OWNER, owner_of

logger = logging.getLogger("asyncsess")

_LONGEST_LABEL: Final = 256
_PATIENCE: Final = 1.0  # seconds for which a login waits for somebody who holds an old session


@dataclass(frozen=True, slots=True)
class OwnedSession:
    """A session as its owner may see it.

    Attributes:
        handle: What names it; it opens nothing, so it may be shown. `Session.handle` is that of an open session.
        label: What was noted at the login, such as the browser.
        created_at: When it was first committed, in UTC.
        last_seen_at: When it was last used, in UTC.
    """

    handle: str
    label: str
    created_at: datetime
    last_seen_at: datetime


class _End(Enum):
    """What became of a member that was to be ended."""

    DESTROYED = auto()
    MOVED = auto()
    NONE = auto()


class _Joined(NamedTuple):
    """When a session joined its owner's."""

    at: float
    key: str


def ownership(owner: str, label: str | None) -> dict[str, Any]:
    """Return what a session holds of its owner."""
    group_of(owner)  # refuses what names none
    readable = (label or "").encode(errors="replace").decode()  # headers may bring what is no text
    return {"id": owner, "label": readable[:_LONGEST_LABEL]}


async def join(policy: Policy, owner: str, key: str) -> None:
    """Make a session that is about to be stored one of its owner's."""
    await policy.backend.add_member(group_of(owner), key, now=policy.clock())


async def sessions_of(policy: Policy, owner: str) -> list[OwnedSession]:
    """Return the live sessions of an owner, the one used last first."""
    return [session for _, session in await _living(policy, owner)]


async def destroy_all(policy: Policy, owner: str, *, spared: str | None, timeout: float, caller: Caller) -> int:
    """Destroy the sessions of an owner, save for that of one id; return how many there were.

    One that can't be destroyed does not keep the others alive; its error is raised in the end.
    """
    ended = {None if spared is None else await _key_now(policy, spared)}
    errors, destroyed = list[SessionError](), 0
    has_moved = True
    while has_moved:  # then the owner has a session that was perhaps not there yet when this looked
        has_moved = False
        for key in await policy.backend.members(group_of(owner)):
            if key in ended:
                continue
            try:
                end = await _end(policy, owner, key, timeout=timeout, caller=caller)
            except SessionError as error:
                errors.append(error)
                end = None
            destroyed += end is _End.DESTROYED
            has_moved |= end is _End.MOVED
            if end is not _End.NONE:
                ended.add(key)
    if errors:
        errors[0].add_note(f"{destroyed} sessions of this owner were destroyed, and {len(errors)} could not be")
        raise errors[0]
    return destroyed


async def _key_now(policy: Policy, session_id: str) -> str:
    """Return the key of a session, also if it has got another id a moment ago."""
    key = key_of(session_id)
    while isinstance(found := await policy.backend.read(key), Tombstone):
        try:
            session_id = policy.successor(session_id, found, policy.clock())
        except SessionNotFoundError:
            break
        key = key_of(session_id)
    return key


async def destroy_one(policy: Policy, owner: str, handle: str, *, timeout: float, caller: Caller) -> bool:
    """Destroy the session of an owner that has a handle; return whether there was one."""
    for key in await policy.backend.members(group_of(owner)):
        if handle_of(key) == handle:
            return await _end(policy, owner, key, timeout=timeout, caller=caller) is _End.DESTROYED
    return False


async def evict(policy: Policy, owner: str, newest: str, *, caller: Caller) -> None:
    """Destroy as many sessions of an owner as are too many: of those before a new one, then that, never a later one.

    So of several that come at once, which may not all have seen each other, neither too many are left nor too few.
    """
    if policy.max_sessions_per_owner is None:
        return
    try:
        while await _evict(policy, owner, newest, caller):  # then one has got another id meanwhile, and lives on
            pass
    except SessionError as error:  # who logs in has done nothing wrong, and another login will try again
        logger.warning("an owner has a session too many, which could not be ended: %s", error)


async def _evict(policy: Policy, owner: str, newest: str, caller: Caller) -> bool:
    living = await _living(policy, owner)
    mine = next((joined for joined, _ in living if joined.key == newest), None)
    before = [joined.key for joined, _ in reversed(living) if mine and joined < mine]
    assert policy.max_sessions_per_owner is not None
    victims = [*before, newest][: max(0, len(living) - policy.max_sessions_per_owner)]
    return _End.MOVED in [await _end(policy, owner, key, timeout=_PATIENCE, caller=caller) for key in victims]


async def _living(policy: Policy, owner: str) -> list[tuple[_Joined, OwnedSession]]:
    """Return the live sessions of an owner, the one used last first."""
    found: list[tuple[_Joined, OwnedSession]] = []
    for key, joined_at in (await policy.backend.members(group_of(owner))).items():
        try:
            record = await policy.backend.read(key)
            if isinstance(record, Record) and not policy.has_expired(record):
                values = _values(policy, key, record)
                if owner_of(values) == owner:
                    found.append((_Joined(joined_at, key), _seen(key, record, values)))
        except (CorruptSessionError, CodecError):  # nobody can open it; the one was reported where it was found
            continue
    return sorted(found, key=lambda each: (each[1].last_seen_at, each[0]), reverse=True)


def _seen(key: str, record: Record, values: Mapping[str, Any]) -> OwnedSession:
    created_at, accessed_at = (datetime.fromtimestamp(time, UTC) for time in (record.created_at, record.accessed_at))
    return OwnedSession(handle_of(key), values[OWNER].get("label", ""), created_at, accessed_at)


async def _end(policy: Policy, owner: str, key: str, *, timeout: float, caller: Caller) -> _End:
    holder = holder_at(asyncio.current_task(), caller)
    hold = policy.backend.hold(key, timeout=timeout, holder=holder, lease=policy.lease)
    held = await granted(policy, hold, "exclusive")
    try:
        found = held.record
        if isinstance(found, Tombstone):
            return _End.MOVED if is_succession(found.note) else _End.NONE
        if found is None or policy.has_expired(found) or not _may_be_of(policy, owner, key, found):
            return _End.NONE
        await held.delete(policy.destroyed(), now=policy.clock())
        return _End.DESTROYED
    finally:
        await hold.__aexit__(None, None, None)


def _may_be_of(policy: Policy, owner: str, key: str, record: Record) -> bool:
    try:
        return owner_of(_values(policy, key, record)) == owner
    except CodecError:  # sealed with another secret: better one too many
        return True


def _values(policy: Policy, key: str, record: Record) -> dict[str, Any]:
    return policy.codec.decode(policy.codec.unseal(record.payload, key))
