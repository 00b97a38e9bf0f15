"""`Keeper`: what a session needs from the block that opened it; and the states that it takes a session through."""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum
from typing import Final, Protocol

from asyncsess.errors import SessionClosedError


class State(Enum):
    """What may be done with a session."""

    EXCLUSIVE = "exclusive"
    OPTIMISTIC = "optimistic"
    READONLY = "readonly"
    RELEASED = "released"
    DESTROYED = "destroyed"
    CLOSED = "closed"


WRITABLE: Final = (State.EXCLUSIVE, State.OPTIMISTIC)
WHY_CLOSED: Final = {
    State.RELEASED: "the lock of this session was given back, so it can't be changed; open it again",
    State.DESTROYED: "the session was destroyed; open a new one",
    State.CLOSED: "the block of this session has ended; take what you need from it inside, or open it again",
}


class Keeper(Protocol):
    """Who does the I/O for a session: the block that opened it."""

    async def save(self) -> None:
        """Commit, and keep the lock."""

    async def release(self, variables: Collection[str] = ()) -> None:
        """Commit, and give back the locks of these variables, or of everything."""

    async def renew(self, lease: float | None) -> None:
        """Begin the lease anew, with so many seconds, or with as many as before."""

    async def rollback(self) -> None:
        """Drop what was not committed, and give the lock back."""

    async def refresh(self) -> None:
        """Load what is stored."""

    async def destroy(self) -> None:
        """Delete the session, and give the lock back."""

    async def regenerate_id(self, grace: float) -> None:
        """Move the session to a fresh id, and keep the lock; the old one leads there for ``grace`` seconds."""


class _NoKeeper:
    """The keeper of a session whose block has ended."""

    async def save(self) -> None:
        raise SessionClosedError(WHY_CLOSED[State.CLOSED])

    async def release(self, variables: Collection[str] = ()) -> None:
        await self.save()

    async def renew(self, lease: float | None) -> None:
        await self.save()

    async def regenerate_id(self, grace: float) -> None:
        await self.save()

    rollback = refresh = destroy = save


NO_KEEPER: Final = _NoKeeper()
