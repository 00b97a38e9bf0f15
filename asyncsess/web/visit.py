"""`Visit`: what one request, or one WebSocket, does with its visitor's session. It knows no framework."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from copy import deepcopy
from datetime import timedelta
from functools import partial
from typing import Any, Final

from asyncsess.errors import DeadlockError, SessionClosedError, SessionError, SessionNotFoundError
from asyncsess.keeper import WRITABLE, State
from asyncsess.merge import merge
from asyncsess.openings import AbsentOpening, EditOpening
from asyncsess.operations import Operation
from asyncsess.rules import Resolve
from asyncsess.session import Session
from asyncsess.web.block import Block, Limited, Opening
from asyncsess.web.settings import Settings
from asyncsess.web.visitor import Visitor

Timeout = float | timedelta | None

_ENDED: Final = "the request has ended, and its session with it; open the session by its id instead"


class Visit:
    """What one request does with its visitor's session: from the cookie that came to the cookie that goes.

    Args:
        settings: Those of the application.
        value: The cookie's; None if there was none.

    Attributes:
        visitor: Whose session it is.
        is_accessed: Whether the answer depends on the session.
        before_end: What is to be done before anything is committed.
        failure: What went wrong when the session was loaded beforehand; told to whoever asks for the session.
        has_stored: Whether anything was committed since the handler began, so that another run would do it twice.
    """

    def __init__(self, settings: Settings, value: str | None) -> None:
        self.settings = settings
        self.is_accessed = self.has_stored = False
        self.before_end: Callable[[], None] | None = None
        self.visitor = Visitor(settings, value)
        self._blocks: list[Block] = []
        self._main: Block | None = None
        self._is_used = self._are_others = self._is_last_try = self._has_ended = False
        self._earlier: tuple[dict[str, Any], dict[str, Any]] | None = None
        self.failure: SessionError | None = None
        self._opening = asyncio.Lock()

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

    def edit(self, *, resolve: Resolve = None, timeout: Timeout = None) -> Block:
        """Edit the visitor's session, or a new one, as `SessionStore.edit`."""

        def edit(session_id: str | None = None) -> Opening:
            return self.settings.store.edit(session_id, resolve=resolve, timeout=timeout)

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
        return await self.load(lock=self._is_last_try and not self._are_others)

    async def load(self, *, lock: bool = False) -> Session:
        """Return the session of the whole request, without noting that it is accessed.

        Args:
            lock: Whether to lock it, if it is not loaded yet.

        Raises:
            SessionClosedError: The headers have left, or the request has ended.
        """
        async with self._opening:  # else two at once would have two of it
            if self._main is None:
                self._check_whole()
                store = self.settings.store
                opens = store.open if lock else store.edit
                start = store.open if lock else partial(store.edit, None)
                block, are_others = Block(self, opens, start), self._are_others
                await block.enter(is_late_fine=True)
                self._main, self._are_others = block, are_others
            return self._main.session

    async def try_load(self) -> None:
        """Load the session of the whole request beforehand, for those who can't wait for it when they ask for it."""
        try:
            await self.load()
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
        if self.visitor.has_left:
            raise SessionClosedError(
                "the headers have left, so what get_session() gives would not be committed: call it before, or use "
                "open_session() for a block, such as for each message of a WebSocket"
            )

    async def apply(self, *operations: Operation, timeout: Timeout = None) -> tuple[Any, ...]:
        """Run operations on the visitor's session, or on a new one, as `SessionStore.apply`.

        In a session that a block of this request has locked or begun, they are part of what the block commits.
        """
        self.is_accessed = True
        async with self._opening:  # else several at once would begin as many
            if (mine := self._own()) is not None:
                return _run(operations, mine.session)
            if self.session_id is None:
                return await self._begin(operations)
        try:
            return await self.settings.store.apply(self.session_id, *operations, timeout=timeout)
        except SessionNotFoundError as error:
            self.visitor.forget(error)
        async with self._opening:
            return await self._begin(operations)

    async def _begin(self, operations: Sequence[Operation]) -> tuple[Any, ...]:
        async with self.open() as session:
            return _run(operations, session)

    def _own(self) -> Block | None:
        """Return the block of this request that keeps all others from changing the session, if there is one."""
        for block in self._blocks:
            if block.session.state is State.EXCLUSIVE or self._begins(block):
                return None if block.is_leaving else block
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
                if not is_failure:
                    self._check_not_late(block)
                await block.settle(is_failure=is_failure)
        except BaseException:
            while self._blocks:
                await self._blocks[0].settle(is_failure=True)
            raise

    def _check_not_late(self, block: Block) -> None:
        """Raise if what was begun is not to be stored: the visitor has another session by now, or none on purpose."""
        late = self.visitor.late
        if late is not None and block.is_begun and block.session.is_new and block.session.is_modified:
            raise late

    async def keep(self) -> None:
        """Commit the session of the whole request, and keep it open.

        Raises:
            SessionError: As `finish`.
        """
        if self.before_end is not None:
            self.before_end()
        main = self._main
        if main is not None and main.session.state in WRITABLE and main.session.is_modified:
            self._check_not_late(main)
            await main.session.save()
            self.has_stored = True

    async def finish(self, status: int) -> None:
        """Settle what is open, since the headers of an answer are about to leave.

        Raises:
            SessionError: Something could not be stored; what is to be answered is another matter.
        """
        if self.visitor.has_left:
            return
        if self.before_end is not None:
            self.before_end()
        if self.is_open:
            await self.settle(is_failure=not self.settings.commits(status))

    def leave(self) -> list[tuple[str, str]]:
        """Note that the headers leave now; return, once, what is to be among them."""
        self.visitor.has_left = True
        if not self.is_accessed:
            return []
        self.is_accessed = False
        return [("Vary", "Cookie"), *self.visitor.take_headers()]

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

    async def begin_try(self, number: int, times: int) -> None:
        """Get ready for a handler to run for the so-many-th time, of so many at most.

        The session of the whole request is begun anew, for those who have it from the scope, with what was changed in
        it before the handler ran for the first time. The last time it is locked, if the handler uses it, and opens the
        session in no other way, which would wait for it.
        """
        self._is_last_try, self.has_stored, main = 1 < number == times, False, self._main
        if number == 1:
            self._are_others = False
        if main is None:
            return
        if number == 1:
            session = main.session
            self._earlier = (session.stored(), deepcopy(dict(session))) if session.is_modified else None
            if session.state is not State.EXCLUSIVE:  # which another handler that was run again has left
                return
        if self.before_end is not None:
            self.before_end()
        self._main = None
        await main.settle(is_failure=True)
        await main.leave()
        session = await self.load(lock=self._is_last_try and self._is_used and not self._are_others)
        if self._earlier is not None:
            base, ours = self._earlier
            session.replace(merge(base, ours, session.stored()))

    # For the blocks.

    @property
    def session_id(self) -> str | None:
        """The id that leads to the visitor's session; None if there is none."""
        self.catch_up()
        return self.visitor.session_id

    def catch_up(self) -> None:
        """Note what blocks that are still open have made of the session: stored it, moved it or destroyed it."""
        for block in self._blocks:
            block.note()

    def check_alone(self) -> None:
        """Raise if another block of this request begins its session: there is but one."""
        if self.session_id is None and any(self._begins(block) for block in self._blocks):
            raise DeadlockError(
                "this request begins its session in another block that is still open; use that one, or leave it first",
                (),
            )

    def _begins(self, block: Block) -> bool:
        session = block.session
        is_open = block.is_leaving or session.state in WRITABLE
        return block.is_begun and session.is_new and is_open and block is not self._main

    def joined(self, block: Block) -> None:
        """Note a block that is open."""
        self._are_others |= not isinstance(block.opening, AbsentOpening)
        self._blocks.append(block)

    def left(self, block: Block) -> None:
        """Note that a block is settled."""
        if block in self._blocks:
            self._blocks.remove(block)

    def moved(self, block: Block, *, is_begun: bool) -> None:
        """Go on in all blocks under the id that one of them has given the session, or begun it under."""
        for other in self._blocks:
            if other is not block and isinstance(other.opening, EditOpening):
                other.opening.follow(block.session.id, is_begun=is_begun)


def _run(operations: Sequence[Operation], session: Session) -> tuple[Any, ...]:
    values = dict(session)
    results = tuple([operation(values) for operation in operations])
    session.unlock(key for operation in operations for key in operation.path[:1])
    session.replace(values)
    return results
