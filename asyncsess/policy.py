"""`Policy`: what a store has been told once, and what a record means by it."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from asyncsess import succession
from asyncsess.backends.base import Backend, Found, Record, Tombstone
from asyncsess.codec import Codec
from asyncsess.errors import SessionNotFoundError, SessionTooLargeError
from asyncsess.events import PredecessorUsed
from asyncsess.expiry import Expiry
from asyncsess.observer import Observer
from asyncsess.session import Session
from asyncsess.succession import Succession

# A request in flight is over by then, or its lease.
_STANDS: Final = 60.0
_LONGEST_STAND: Final = 86400.0


class Opening(Protocol):
    """A block that has a session open for writing, or waits for one."""

    def is_of(self, task: asyncio.Task[Any] | None) -> bool:
        """Tell whether a task opened this."""
        ...


class Openings(set[Opening]):
    """The blocks of a store that have a session open for writing, or wait for one."""

    def __init__(self) -> None:
        super().__init__()
        self.begin()

    def begin(self) -> None:
        """Make them those of this process, if they were of the one that it was forked from."""
        self._pid = os.getpid()

    async def until_others_end(self, timeout: float) -> None:
        """Wait until no other task has a block, ``timeout`` seconds at most."""
        me, until = asyncio.current_task(), time.monotonic() + timeout
        # The blocks may belong to other event loops, so there is no event of this one to wait for.
        while self._pid == os.getpid() and any(not opening.is_of(me) for opening in self):
            if time.monotonic() >= until:
                return
            await asyncio.sleep(0.005)


@dataclass(frozen=True, slots=True)
class Policy:
    """What a store has been told once, and all openings need.

    Attributes:
        backend: Where records are.
        codec: How values become payloads.
        expiry: When sessions end.
        max_size: Bytes that a payload may have.
        lease: Seconds for which a holder may keep others waiting.
        clock: Returns seconds since the epoch.
        observer: Who counts what happens.
        max_sessions_per_owner: How many an owner may have; None for any number.
        openings: The blocks that have a session open for writing, or wait for one.
    """

    backend: Backend
    codec: Codec
    expiry: Expiry
    max_size: int
    lease: float
    clock: Callable[[], float]
    observer: Observer
    max_sessions_per_owner: int | None = None
    openings: Openings = field(default_factory=Openings)

    def seal(self, data: bytes, key: str) -> bytes:
        """Return encoded values as the payload for a key.

        Raises:
            SessionTooLargeError: It exceeds ``max_size``.
        """
        payload = self.codec.seal(data, key)
        if len(payload) > self.max_size:
            raise SessionTooLargeError(len(payload), self.max_size)
        return payload

    def load(self, session: Session, record: Found, key: str, now: float) -> bool:
        """Make a session hold what a record holds; return False if there is none, or it has expired."""
        if not isinstance(record, Record):
            return False
        ends_at = self.expiry.ends_at(record.created_at, record.accessed_at)
        if ends_at <= now:
            return False
        data = self.codec.unseal(record.payload, key)
        session.load(self.codec.decode(data), data)
        session.dated(record.version, record.created_at, ends_at)
        return True

    def date(self, session: Session, record: Record) -> None:
        """Tell a session the version and the times of what has been stored."""
        ends_at = self.expiry.ends_at(record.created_at, record.accessed_at)
        session.dated(record.version, record.created_at, ends_at)

    def has_expired(self, record: Record | Tombstone) -> bool:
        """Tell whether a record is that of an expired session, or a tombstone that has had its time."""
        if isinstance(record, Tombstone):
            return record.until <= self.clock()
        return self.expiry.is_over(record.created_at, record.accessed_at, self.clock())

    def destroyed(self) -> Tombstone:
        """Return what is left of a session that is destroyed."""
        now = self.clock()
        return Tombstone(succession.destroyed(now), now + self._stand())

    def succeeded(self, session_id: str, successor_id: str, grace: float) -> Tombstone:
        """Return what is left under the old id of a session that got a new one.

        It stands as long as the session would have, unused, so that somebody who uses the old id late is noticed.
        """
        now, idle = self.clock(), self.expiry.idle_timeout or _LONGEST_STAND
        note = succession.seal(session_id, Succession(now + grace, successor_id))
        return Tombstone(note, now + max(grace, self._stand(), min(idle, _LONGEST_STAND)))

    def _stand(self) -> float:
        lease = self.lease if math.isfinite(self.lease) else 0.0  # nobody takes over then
        return max(_STANDS, min(lease, _LONGEST_STAND))

    def successor(self, session_id: str, tombstone: Tombstone, now: float) -> str:
        """Return the id under which a session lives on.

        Raises:
            SessionNotFoundError: It was destroyed, or the grace of the old id is over, which is reported.
        """
        found = succession.unseal(session_id, tombstone.note)
        died_at = datetime.fromtimestamp(succession.died_at(tombstone.note), UTC)
        if found is None:
            raise SessionNotFoundError(
                "there is no such session: it was destroyed, and so that no request in flight brings it back, its id "
                f"stays dead for {max(0.0, tombstone.until - now):.0f} s more",
                died_at,
            )
        if found.grace_ends > now:
            return found.successor_id
        self.observer.note(PredecessorUsed(died_at, found.successor_id))
        raise SessionNotFoundError(
            "there is no such session: it got another id, and the grace of this one is over",
            died_at,
            was_replaced=True,
        )
