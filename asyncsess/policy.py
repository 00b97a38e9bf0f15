"""`Policy`: what a store has been told once, and what a record means by it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from asyncsess.backends.base import Backend, Record
from asyncsess.codec import Codec
from asyncsess.errors import SessionTooLargeError
from asyncsess.expiry import Expiry
from asyncsess.session import Session


class Opening(Protocol):
    """A block that has a session open for writing, or waits for one."""

    def is_of(self, task: asyncio.Task[Any] | None) -> bool:
        """Tell whether a task opened this."""
        ...


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
        openings: The blocks that have a session open for writing, or wait for one.
    """

    backend: Backend
    codec: Codec
    expiry: Expiry
    max_size: int
    lease: float
    clock: Callable[[], float]
    openings: set[Opening] = field(default_factory=set[Opening])

    def seal(self, data: bytes, key: str) -> bytes:
        """Return encoded values as the payload for a key.

        Raises:
            SessionTooLargeError: It exceeds ``max_size``.
        """
        payload = self.codec.seal(data, key)
        if len(payload) > self.max_size:
            raise SessionTooLargeError(len(payload), self.max_size)
        return payload

    def load(self, session: Session, record: Record | None, key: str, now: float) -> bool:
        """Make a session hold what a record holds; return False if there is none, or it has expired."""
        if record is None:
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

    def has_expired(self, record: Record) -> bool:
        """Tell whether a record is that of an expired session."""
        return self.expiry.is_over(record.created_at, record.accessed_at, self.clock())
