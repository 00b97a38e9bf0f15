"""`Session`: what a block works on: contents with an id and a life. It does no I/O of its own."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Final

from asyncsess.codec import Codec
from asyncsess.contents import Contents
from asyncsess.errors import CodecError, SessionClosedError
from asyncsess.expiry import seconds
from asyncsess.ids import handle_of, key_of
from asyncsess.keeper import NO_KEEPER, WRITABLE, Keeper, State
from asyncsess.values import owner_of

_LONGEST_GRACE: Final = 86400.0


class Session(Contents):
    """One opening of a session: a mapping of what it holds.

    Changes are found by comparing encoded values, so nested ones count:

        async with store.open(session_id) as session:
            session["cart"].append("tea")

    It belongs to the block that opened it; after the block, using it raises `SessionClosedError`.
    """

    __slots__ = (
        "__weakref__", "_created_at", "_ends_at", "_has_new_id", "_id", "_is_pinned", "_keeper", "_version",
    )  # fmt: skip

    def __init__(self, keeper: Keeper, session_id: str, state: State, codec: Codec) -> None:
        super().__init__(state, codec)
        self._keeper = keeper
        self._id = session_id
        self._has_new_id = self._is_pinned = False
        self._version = 0
        self._created_at = self._ends_at = math.nan

    def __repr__(self) -> str:
        try:
            modified = " modified" if self._state in WRITABLE and self.is_modified else ""
        except CodecError:
            modified = " not storable"
        return f"<Session {self._state.value} version={self._version}{modified}>"

    # What is known about it.

    @property
    def id(self) -> str:
        """The session id. Whoever knows it has the session: never log it."""
        return self._id

    @property
    def handle(self) -> str:
        """What names the session in public, as in `SessionStore.sessions_of`; it opens nothing."""
        return handle_of(key_of(self._id))

    @property
    def owner(self) -> str | None:
        """Who has logged in, see `asyncsess.web.login`; None if nobody has."""
        return owner_of(self._values)

    @property
    def has_new_id(self) -> bool:
        """Whether this block has given it the id that it has, so that its user is to be told."""
        return self._has_new_id

    @property
    def version(self) -> int:
        """The committed version that this is based on; 0 for a session that was never committed."""
        return self._version

    @property
    def is_new(self) -> bool:
        """Whether the session has never been committed."""
        return self._version == 0

    @property
    def created_at(self) -> datetime | None:
        """When the session was first committed, in UTC; None if it has not been."""
        return None if math.isnan(self._created_at) else datetime.fromtimestamp(self._created_at, UTC)

    @property
    def expires_at(self) -> datetime | None:
        """When the session ends unless it is used before, in UTC; None for never, or not committed yet."""
        if not math.isfinite(self._ends_at):
            return None
        return datetime.fromtimestamp(self._ends_at, UTC)

    # What can be done with it.

    async def save(self) -> None:
        """Commit now, and keep the lock. A new session is stored even if it is empty.

        Raises:
            CodecError: A value can't be stored; nothing was.
            LockLostError: The session was taken away; nothing was stored.
            StoreError: The store failed; nothing was stored.
        """
        await self._keeper.save()

    async def release(self, *variables: str) -> None:
        """Commit now, and let others in. What was read stays readable; writing raises from here on.

        Args:
            variables: Of a session opened by `SessionStore.synchronize`, those to give back; all of them if none is
                named.

        Raises:
            CodecError, LockLostError, StoreError: As `save`; the lock is gone in any case.
        """
        if variables and not set(variables) <= set(self._locked or ()):
            raise ValueError("only variables that synchronize() has locked can be released by name")
        if self._state not in (State.RELEASED, State.DESTROYED):
            await self._keeper.release(variables)

    async def renew(self, lease: float | timedelta | None = None) -> None:
        """Begin the lease anew: nobody takes the session over for so long from now on.

        Args:
            lease: Seconds; as many as it was opened with if None.

        Raises:
            LockLostError: Somebody has taken over.
        """
        if self._state not in (State.RELEASED, State.DESTROYED):
            await self._keeper.renew(None if lease is None else seconds(lease, "lease"))

    async def rollback(self) -> None:
        """Drop what was not committed, and let others in."""
        if self._state not in (State.RELEASED, State.DESTROYED):
            await self._keeper.rollback()

    async def refresh(self) -> None:
        """Drop what was not committed, and go on with what is stored now; a lock is kept.

        Raises:
            SessionNotFoundError: The session was destroyed or has expired.
        """
        if self._state is State.DESTROYED:
            raise self._closed()
        await self._keeper.refresh()

    async def destroy(self) -> None:
        """Delete the session and let others in, who will not find it."""
        await self._keeper.destroy()

    async def regenerate_id(self, *, grace: float | timedelta = 30.0) -> None:
        """Commit under a fresh id, in `id` from now on, to which the old one leads for a while; then that is dead.

        Do this at each change of privilege, such as a login, so that an id that somebody planted or saw before
        is worth nothing. If the process is killed in between, both ids lead to the session, never none.

        Args:
            grace: Seconds for which requests that are under way with the old id reach the session. With 0 it is dead at
                once: right where somebody may have planted it, as before a login.

        Raises:
            ValueError: ``grace`` is more than a day.
            CodecError, LockLostError, StoreError: As `save`; the old id leads to the session as before.
        """
        length = seconds(grace, "grace", or_zero=True)
        if length > _LONGEST_GRACE:
            raise ValueError(f"grace must be at most {_LONGEST_GRACE:g} seconds, not {length:g}")
        if self._is_pinned:
            raise SessionClosedError("the headers have left, so the visitor can't be told of another id; do it before")
        before = self._id
        try:
            await self._keeper.regenerate_id(length)
        finally:  # if it was cancelled once it was done, the user is to be told all the same
            self._has_new_id |= self._id != before

    # For the keeper.

    def pin(self) -> None:
        """Allow no other id: nobody could be told of it."""
        self._is_pinned = True

    def dated(self, version: int, created_at: float, ends_at: float) -> None:
        """Note the version and the times of what the store has."""
        self._version = version
        self._created_at = created_at
        self._ends_at = ends_at

    def becomes(self, state: State, session_id: str | None = None) -> None:
        """Change what may be done with it, or the id that leads to it."""
        self._state = state
        self._id = session_id or self._id
        if state is State.CLOSED:  # no cycle is left behind, so what it holds goes with the last reference to it
            self._keeper = NO_KEEPER
