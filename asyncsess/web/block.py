"""`Block`: a session that a visit has open."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

from asyncsess.errors import CodecError, SessionNotFoundError
from asyncsess.keeper import WRITABLE, State
from asyncsess.session import Session

if TYPE_CHECKING:
    from asyncsess.web.visit import Visit

Opening = AbstractAsyncContextManager[Session]

logger = logging.getLogger("asyncsess")


class Block:
    """A session that a visit has open, for the block of an ``async with``.

    The visit may settle it before the block ends, when the headers leave; what is changed from then on raises.

    Args:
        visit: Whose.
        resume: Opens the session of an id.
        start: Opens a session for a visitor who has none.
        is_readonly: Whether nothing is stored, so that no session begins.

    Attributes:
        session: The session, once the block is entered.
        opening: What holds it.
        is_begun: Whether this block begins it.
        is_leaving: Whether it is being stored.
    """

    session: Session
    opening: Opening

    def __init__(
        self, visit: Visit, resume: Callable[[str], Opening], start: Callable[[], Opening], *, is_readonly: bool = False
    ) -> None:
        self._visit = visit
        self._resume = resume
        self._start = start
        self._is_readonly = is_readonly
        self.is_begun = False
        self._failure: BaseException | None = None
        self._was_destroyed = self.is_leaving = False
        self._told = ""

    def __await__(self) -> NoReturn:
        raise TypeError(
            "this opens a session for a block: async with open_session(request) as session: ...; what lasts for the "
            "whole request is: session = await get_session(request)"
        )

    async def __aenter__(self) -> Session:
        self._visit.is_accessed = True
        return await self.enter()

    async def enter(self, *, is_late_fine: bool = False) -> Session:
        """Enter the visitor's session, or a new one.

        Args:
            is_late_fine: Begin a session although the visitor had one a moment ago; it is refused once it is stored.
        """
        visit = self._visit
        if visit.failure is not None:
            raise visit.failure
        if not self._is_readonly:
            visit.check_alone()
        if (session_id := visit.session_id) is not None:
            self.opening = self._resume(session_id)
            try:
                return self._entered(await self.opening.__aenter__())
            except SessionNotFoundError as error:
                visit.visitor.forget(error)
        if not self._is_readonly:
            visit.visitor.check_may_begin(is_late_fine=is_late_fine)
        self.opening, self.is_begun = self._start(), not self._is_readonly
        return self._entered(await self.opening.__aenter__())

    def _entered(self, session: Session) -> Session:
        self.session, self._told = session, "" if self.is_begun else session.id
        if self._visit.visitor.has_left:
            session.pin()
        self._visit.joined(self)
        return session

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        settings = self._visit.settings
        status = None if error is None else settings.status_of(error)
        is_fine = status is not None and settings.commits(status)
        await self.leave(*((None, None, None) if is_fine else (kind, error, traceback)))

    async def leave(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        """Leave the session; without an error, commit it."""
        self._visit.catch_up()
        self.is_leaving = True
        if error is None and self._failure is not None:  # it was told then, and there is nothing more to commit
            kind, error = type(self._failure), self._failure
        try:
            await self.opening.__aexit__(kind, error, traceback)
        finally:
            self._left()

    async def settle(self, *, is_failure: bool) -> None:
        """Commit, or roll back, and give the lock back; the block may still read."""
        self._visit.catch_up()
        self.is_leaving, session = True, self.session
        try:
            if session.state in WRITABLE:
                await (self._drop() if is_failure else session.release())
        except BaseException as error:
            self._failure = error
            raise
        finally:
            self._left()

    def _left(self) -> None:
        self._visit.left(self)
        self.is_leaving = False
        self.note()

    async def _drop(self) -> None:
        try:
            is_modified = self.session.is_modified
        except CodecError:  # what can't be stored is dropped like the rest
            is_modified = True
        if is_modified:
            logger.info("what a request changed in its session was dropped, since its answer is an error")
        await self.session.rollback()

    def note(self) -> None:
        """Tell the visit what has become of the session: each id that this gave it, and its end, once.

        Whoever came with an id that was replaced a moment ago is not told the new one, which may have been made to keep
        him out.
        """
        session, visitor = self.session, self._visit.visitor
        if self._was_destroyed or (session.is_new and session.state is not State.DESTROYED):
            return
        if session.state is State.DESTROYED:
            self._was_destroyed = True
            visitor.loses()
        elif session.id != self._told and (session.has_new_id or (self.is_begun and visitor.session_id is None)):
            is_begun, self._told = visitor.session_id is None, session.id
            visitor.gets(session)
            self._visit.moved(self, is_begun=is_begun and self.is_begun)


class Limited:
    """An opening of a new session in which certain variables can be changed."""

    def __init__(self, opening: Opening, variables: tuple[str, ...]) -> None:
        self._opening = opening
        self._variables = variables

    async def __aenter__(self) -> Session:
        session = await self._opening.__aenter__()
        session.lock(self._variables)
        return session

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._opening.__aexit__(kind, error, traceback)
