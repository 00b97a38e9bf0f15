"""`ReadonlyOpening`: a session as it is right now; `AbsentOpening`: none."""

from __future__ import annotations

from collections.abc import Collection
from types import TracebackType

from asyncsess.codec import Codec, MsgpackCodec
from asyncsess.ids import key_of
from asyncsess.keeper import State
from asyncsess.openings.base import load_snapshot
from asyncsess.policy import Policy
from asyncsess.session import Session


class AbsentOpening:
    """The session of somebody who has none: empty, and not to be changed. Its id is the empty string."""

    __slots__ = ("_session",)

    def __init__(self, session_id: str = "", codec: Codec | None = None) -> None:
        self._session = Session(self, session_id, State.READONLY, codec or MsgpackCodec())

    async def __aenter__(self) -> Session:
        await self.refresh()
        return self._session

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._session.check_unchanged()
        finally:
            self._session.becomes(State.CLOSED)

    async def save(self) -> None:
        self._session.check_writable()

    async def renew(self, lease: float | None) -> None:
        """Do nothing: there is no lock."""

    async def release(self, variables: Collection[str] = ()) -> None:
        """Do nothing: there is no lock."""

    async def rollback(self) -> None:
        """Drop what was changed inside; there is no lock."""
        await self.refresh()

    async def refresh(self) -> None:
        """Load what is stored: nothing."""

    async def destroy(self) -> None:
        self._session.check_writable()

    async def regenerate_id(self, grace: float) -> None:
        self._session.check_writable()


class ReadonlyOpening(AbsentOpening):
    """A snapshot: one committed version, read without waiting for anybody.

    Args:
        policy: The store's.
        session_id: Which session.
        touch: Whether this counts as a use of the session.
    """

    __slots__ = ("_key", "_policy", "_touch")

    def __init__(self, policy: Policy, session_id: str, *, touch: bool) -> None:
        self._policy = policy
        self._key = key_of(session_id)
        self._touch = touch
        super().__init__(session_id, policy.codec)

    async def __aenter__(self) -> Session:
        session = await super().__aenter__()
        self._policy.observer.note_opened("readonly")
        return session

    async def refresh(self) -> None:
        _, self._key = await load_snapshot(self._policy, self._session, self._key, touch=self._touch)
