"""`Visit`: what one request, or one WebSocket, does with its visitor's session. It knows no framework."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Final

from asyncsess.errors import DeadlockError, SessionClosedError, SessionError, SessionNotFoundError
from asyncsess.keeper import WRITABLE, State
from asyncsess.openings import AbsentOpening, EditOpening
from asyncsess.operations import Operation
from asyncsess.rules import Resolve
from asyncsess.session import Session
from asyncsess.web.block import Block, Limited, Opening
from asyncsess.web.settings import Settings

Timeout = float | timedelta | None

_ON_THE_WAY: Final = 30.0  # seconds for which a request may be
_ENDED: Final = "the request has ended, and its session with it; open the session by its id instead"


class Visit:
    """What one request does with its visitor's session: from the cookie that came to the cookie that goes.

    Args:
        settings: Those of the application.
        value: The cookie's; None if there was none.

    Attributes:
        is_accessed: Whether the answer depends on the session.
        before_end: What is to be done before anything is committed.
        failure: What went wrong when the session was loaded beforehand; told to whoever asks for the session.
        is_locking: Whether the session of the whole request will be locked, so that it meets no conflict.
    """

    def __init__(self, settings: Settings, value: str | None) -> None:
        self.settings = settings
        self.is_accessed = self.is_locking = False
        self.before_end: Callable[[], None] | None = None
        self._id = settings.cookie.session_id(value)
        self._began = settings.store.clock()
        self._blocks: list[Block] = []
        self._main: Block | None = None
        self._is_used = self._has_left = self._has_ended = False
        self._late: SessionNotFoundError | None = None
        self.failure: SessionError | None = None
        self._loading = asyncio.Lock()
        self._has_cookie = value is not None
        self._cookie = ""

    # The ways to open the session.

    def open(
        self, *, readonly: bool = False, touch: bool = True, timeout: Timeout = None, lease: Timeout = None
    ) -> Block:
        """Open the visitor's session, or a new one, as `SessionStore.open`; read-only, a missing one is empty."""
        store = self.settings.store
        if readonly:

            def read(session_id: str) -> Opening:
                return store.open(session_id, readonly=True, touch=touch)

            return Block(self, read, AbsentOpening, is_readonly=True)
        if not touch:
            raise ValueError("touch=False is for readonly=True: whoever may change a session uses it")
        return Block(self, lambda session_id: store.open(session_id, timeout=timeout, lease=lease), store.open)

    def edit(self, *, resolve: Resolve = None, touch: bool = True, timeout: Timeout = None) -> Block:
        """Edit the visitor's session, or a new one, as `SessionStore.edit`."""

        def edit(session_id: str | None = None) -> Opening:
            return self.settings.store.edit(session_id, resolve=resolve, touch=touch, timeout=timeout)

        return Block(self, edit, edit)

    def synchronize(
        self, *variables: str, resolve: Resolve = None, timeout: Timeout = None, lease: Timeout = None
    ) -> Block:
        """Lock variables of the visitor's session, or of a new one, as `SessionStore.synchronize`."""
        store = self.settings.store

        def synchronize(session_id: str) -> Opening:
            return store.synchronize(session_id, *variables, resolve=resolve, timeout=timeout, lease=lease)

        def start() -> Opening:
            return Limited(store.edit(None, timeout=timeout), variables)

        return Block(self, synchronize, start)

    async def session(self) -> Session:
        """Return the session of the whole request: the same each time, committed before the headers leave."""
        self.is_accessed = self._is_used = True
        return await self.load()

    async def load(self, *, touch: bool = True) -> Session:
        """Return the session of the whole request, without noting that it is accessed.

        Args:
            touch: Whether this counts as a use of the session already.

        Raises:
            SessionClosedError: The headers have left, or the request has ended.
        """
        async with self._loading:  # else two at once would have two of it
            if self._main is None:
                self._check_whole()
                block = self.open() if self.is_locking else self.edit(touch=touch)
                await block.enter(is_late_fine=True)
                self._main = block
            return self._main.session

    async def try_load(self) -> None:
        """Load the session of the whole request beforehand, for those who can't wait for it when they ask for it."""
        try:
            await self.load(touch=False)
        except SessionError as error:
            self.failure = error

    @property
    def loaded(self) -> Session:
        """The session of the whole request, which `load` has given.

        Raises:
            SessionClosedError: The request has ended.
            SessionError: `try_load` has failed.
        """
        if self._main is not None:
            return self._main.session
        raise SessionClosedError(_ENDED) if self._has_ended or self.failure is None else self.failure

    def use(self) -> Session:
        """Return the session of the whole request, which `load` has given, and note that it is used."""
        self.is_accessed = self._is_used = True
        return self.loaded

    def _check_whole(self) -> None:
        if self._has_ended:
            raise SessionClosedError(_ENDED)
        if self._has_left:
            raise SessionClosedError(
                "the headers have left, so what get_session() gives would not be committed: call it before, or use "
                "open_session() for a block, such as for each message of a WebSocket"
            )

    async def apply(self, *operations: Operation, timeout: Timeout = None) -> tuple[Any, ...]:
        """Run operations on the visitor's session, or on a new one, as `SessionStore.apply`.

        In a session that a block of this request has locked or begun, they are part of what the block commits.
        """
        self.is_accessed = True
        if (mine := self._own()) is not None:
            return _run(operations, mine.session)
        if self._id is not None:
            try:
                return await self.settings.store.apply(self._id, *operations, timeout=timeout)
            except SessionNotFoundError as error:
                self.forget(error)
        async with self.open() as session:
            return _run(operations, session)

    def _own(self) -> Block | None:
        """Return the block of this request that keeps all others from changing the session, if there is one."""
        for block in self._blocks:
            if block.session.state is State.EXCLUSIVE or (self._begins(block) and block.session.state in WRITABLE):
                return block
        return None

    # The end.

    @property
    def is_open(self) -> bool:
        """Whether there is something to settle or to close."""
        return bool(self._blocks) or self._main is not None

    async def settle(self, *, is_failure: bool = False) -> None:
        """Commit all that is open, or roll it back, and give back its locks: that of the whole request last.

        If something can't be stored, the rest is rolled back.
        """
        try:
            while self._blocks:
                block = next((block for block in self._blocks if block is not self._main), self._blocks[0])
                if (
                    block.is_begun
                    and block.session.is_new
                    and self._late
                    and not is_failure
                    and block.session.is_modified
                ):
                    raise self._late
                await block.settle(is_failure=is_failure)
        except BaseException:
            while self._blocks:
                await self._blocks[0].settle(is_failure=True)
            raise

    async def finish(self, status: int) -> None:
        """Settle what is open, since the headers of an answer are about to leave.

        Raises:
            SessionError: Something could not be stored; what is to be answered is another matter.
        """
        if self._has_left:
            return
        if self.before_end is not None:
            self.before_end()
        if self.is_open:
            if self._is_used and self._main is not None and isinstance(self._main.opening, EditOpening):
                await self._main.opening.note_use()
            await self.settle(is_failure=not self.settings.commits(status))

    def leave(self) -> list[tuple[str, str]]:
        """Note that the headers leave now; return, once, what is to be among them."""
        self._has_left = True
        if not self.is_accessed:
            return []
        cookie, self._cookie, self.is_accessed = self._cookie, "", False
        if not cookie:
            return [("Vary", "Cookie")]
        return [("Vary", "Cookie"), ("Set-Cookie", cookie), ("Cache-Control", "no-store")]

    @property
    def has_news(self) -> bool:
        """Whether the browser is to be told of its session."""
        return bool(self._cookie)

    async def close(self) -> None:
        """Roll back what was not committed by now, and leave the session of the whole request.

        Raises:
            SessionClosedError: Something inside it was changed after the headers had left, and is lost.
        """
        self._has_ended = True
        if self.is_open:
            await self._end()

    async def _end(self) -> None:
        block, self._main = self._main, None
        try:
            await self.settle(is_failure=True)
        finally:
            if block is not None:
                await block.leave()

    async def reload(self) -> None:
        """Begin the session of the whole request anew, if there is one, for those who have it from the scope."""
        if self._main is not None:
            await self._end()
            await self.load()

    # For the blocks.

    @property
    def session_id(self) -> str | None:
        """The id that leads to the visitor's session; None if there is none."""
        return self._id

    @property
    def has_left(self) -> bool:
        """Whether the headers have left, so that no cookie can be handed out any more."""
        return self._has_left

    def check_alone(self) -> None:
        """Raise if another block of this request begins its session: there is but one."""
        if self._id is None and any(self._begins(block) for block in self._blocks):
            raise DeadlockError(
                "this request begins its session in another block that is still open; use that one, or leave it first",
                (),
            )

    def _begins(self, block: Block) -> bool:
        return block.is_begun and block.session.is_new and block is not self._main

    def check_may_begin(self, *, is_late_fine: bool) -> None:
        """Raise if a new session would be out of place: nobody could be told, or the visitor has another by now."""
        if self._late is not None and not is_late_fine:
            raise self._late
        if self._has_left:
            raise SessionClosedError(
                "the headers have left, so the visitor can't be told of a new session; begin it before the response"
            )

    def forget(self, error: SessionNotFoundError) -> None:
        """Take the visitor for a new one, unless his session ended or moved while this request was on its way.

        A request that was sent before a login may arrive after it. If it began a session, its cookie would replace that
        of the login.
        """
        self._id = None
        if error.died_at is not None:
            died_at = error.died_at.timestamp()
            if died_at > (self._began - _ON_THE_WAY if error.was_replaced else self._began):
                self._late = error

    def joined(self, block: Block) -> None:
        """Note a block that is open."""
        self._blocks.append(block)

    def left(self, block: Block) -> None:
        """Note that a block is settled."""
        if block in self._blocks:
            self._blocks.remove(block)

    def note(self, block: Block, *, is_destroyed: bool = False) -> None:
        """Note what has become of the session, and what the browser is to be told of it.

        Whoever came with an id that was replaced a moment ago is not told the new one, which may have been made to keep
        him out.
        """
        cookie, session = self.settings.cookie, block.session
        is_begun = block.is_begun and self._id is None
        if is_destroyed:
            self._id, self._cookie = None, cookie.delete() if self._has_cookie else ""
        elif not session.is_new and (is_begun or (session.has_new_id and session.id != self._id)):
            self._id, self._cookie = session.id, cookie.issue(session.id, self._left(session))
            main = self._main
            if main is not None and main is not block and isinstance(main.opening, EditOpening):
                main.opening.follow(session.id, is_begun=is_begun)

    def _left(self, session: Session) -> float | None:
        store, created_at = self.settings.store, session.created_at
        if store.lifetime is None or created_at is None:
            return None
        return max(0.0, created_at.timestamp() + store.lifetime - store.clock())


def _run(operations: Sequence[Operation], session: Session) -> tuple[Any, ...]:
    values = dict(session)
    results = tuple([operation(values) for operation in operations])
    session.replace(values)
    return results
