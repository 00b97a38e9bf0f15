"""`ExclusiveOpening`: a session that nobody else may change meanwhile."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Collection
from contextlib import AbstractAsyncContextManager, suppress
from types import TracebackType
from typing import Any

from asyncsess.backends.base import Held, Record
from asyncsess.errors import SessionNotFoundError, StoreError
from asyncsess.ids import key_of, new_session_id
from asyncsess.keeper import State
from asyncsess.openings.base import NOT_FOUND, Caller, holder_at, until_free
from asyncsess.policy import Policy
from asyncsess.session import Session


class ExclusiveOpening:
    """A session that nobody else may change meanwhile; committed at the end of the block.

    Args:
        policy: The store's.
        session_id: None for a new session under a fresh id.
        create: Start a session under this id if there is none.
        timeout: Seconds to wait for the lock.
        caller: Who opens it, for those who time out waiting for it.
        lease: Seconds after which those who wait may take over; the policy's if None.
    """

    __slots__ = (
        "_busy", "_caller", "_create", "_held", "_hold", "_holder", "_is_fresh", "_key", "_lease", "_policy",
        "_session", "_task", "_timeout",
    )  # fmt: skip

    def __init__(
        self,
        policy: Policy,
        session_id: str | None,
        *,
        create: bool,
        timeout: float,
        caller: Caller,
        lease: float | None = None,
    ) -> None:
        self._is_fresh = session_id is None
        session_id = session_id if session_id is not None else new_session_id()
        self._policy = policy
        self._key = key_of(session_id)
        self._create = create
        self._timeout = timeout
        self._lease = policy.lease if lease is None else lease
        self._caller = caller
        self._busy = asyncio.Lock()
        self._task: weakref.ref[asyncio.Task[Any]] | None = None
        self._session = Session(self, session_id, State.EXCLUSIVE, policy.codec)
        self._hold: AbstractAsyncContextManager[Held] | None = None
        self._held: Held | None = None

    def is_of(self, task: asyncio.Task[Any] | None) -> bool:
        """Tell whether a task opened this."""
        return self._task is not None and self._task() is task

    async def __aenter__(self) -> Session:
        task = asyncio.current_task()
        self._task = weakref.ref(task) if task else None
        self._holder = holder_at(task, self._caller)
        self._policy.openings.add(self)
        try:
            if not self._is_fresh:  # nobody can know a fresh id, so there is nothing to lock before its first commit
                await self._lock()
        except BaseException:
            await self._leave()
            raise
        return self._session

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self._busy.locked():  # another task of the block is saving
                await until_free(self._busy)
            if kind is None and self._session.state is State.EXCLUSIVE:
                await self._commit_and_release(State.CLOSED)
            elif kind is None:
                self._session.check_unchanged()
        finally:
            self._session.becomes(State.CLOSED)
            await self._leave()

    async def save(self) -> None:
        async with self._busy:
            self._session.check_writable()
            data = self._session.take_changes()
            if data is None and self._session.is_new:
                data = self._session.encoded()
            await self._commit(data)

    async def renew(self, lease: float | None) -> None:
        async with self._busy:
            self._session.check_writable()
            self._lease = self._lease if lease is None else lease
            if self._held is not None:
                await self._held.renew(self._lease)

    async def release(self, variables: Collection[str] = ()) -> None:
        async with self._busy:
            self._session.check_writable()
            try:
                await self._commit_and_release(State.RELEASED)
            finally:
                await self._leave()

    async def rollback(self) -> None:
        async with self._busy:
            self._session.check_writable()
            self._session.reset()
            self._session.becomes(State.RELEASED)
            await self._leave()

    async def refresh(self) -> None:
        async with self._busy:
            if self._held is not None or self._session.is_new:
                self._session.reset()
                return
            record = await self._policy.backend.read(self._key)
            if not self._policy.load(self._session, record, self._key, self._policy.clock()):
                raise SessionNotFoundError(NOT_FOUND)

    async def destroy(self) -> None:
        async with self._busy:
            self._session.check_writable()
            if self._held is not None:
                await self._held.delete()
            self._session.load({}, None)
            self._session.becomes(State.DESTROYED)
            await self._leave()

    async def regenerate_id(self) -> None:
        async with self._busy:
            self._session.check_writable()
            await self._regenerate_id()

    async def _regenerate_id(self) -> None:
        session_id, session = new_session_id(), self._session
        key, data = key_of(session_id), session.encoded()
        payload = self._policy.seal(data, key)
        # The absolute limit counts from the first login on, not from each new id.
        now = self._policy.clock()
        before = None if self._held is None else self._held.record
        created_at = now if before is None else before.created_at
        backend, old, old_hold = self._policy.backend, self._held, self._hold
        new_hold = backend.create(key, payload, created_at=created_at, now=now, holder=self._holder, lease=self._lease)
        new = await new_hold.__aenter__()
        is_moved = True
        try:
            if old is not None:
                await old.delete()
        except BaseException:
            with suppress(StoreError):  # then both ids may lead to the session, which is better than neither
                is_moved = await backend.read(self._key) is None
            raise
        finally:
            if is_moved:
                self._hold, self._held, self._key = new_hold, new, key
                session.becomes(session.state, session_id)
                self._note(data, new.record)
                if old_hold is not None:
                    await old_hold.__aexit__(None, None, None)
            else:
                try:
                    await new.delete()
                finally:
                    await new_hold.__aexit__(None, None, None)

    async def _lock(self) -> None:
        """Lock the session and load it, or find that there is none."""
        policy = self._policy
        while True:
            hold = policy.backend.hold(
                self._key, timeout=self._timeout, holder=self._holder, lease=self._lease, create=self._create
            )
            held = await self._enter(hold)
            record = held.record
            if record is None and self._create:
                return
            if policy.load(self._session, record, self._key, policy.clock()):
                return
            if record is not None:  # expired: a session that begins anew begins with nothing of it
                await held.delete()
            await self._let_go()
            if not self._create:
                raise SessionNotFoundError(NOT_FOUND)

    async def _commit_and_release(self, then: State) -> None:
        """Store what was changed, and nothing that is changed from here on, which raises."""
        data = self._session.take_changes()
        self._session.becomes(then)
        await self._commit(data)
        if self._held is not None:
            await self._held.release(now=self._policy.clock())

    async def _commit(self, data: bytes | None) -> None:
        """Store encoded values, if there are any to store."""
        if data is None:
            return
        try:
            payload, now = self._policy.seal(data, self._key), self._policy.clock()
            if self._held is not None:
                record: Record | None = await self._held.commit(payload, now=now)
            else:
                create = self._policy.backend.create
                held = await self._enter(
                    create(self._key, payload, created_at=now, now=now, holder=self._holder, lease=self._lease)
                )
                record = held.record
        except BaseException:
            self._session.not_committed()
            raise
        self._note(data, record)

    def _note(self, data: bytes, record: Record | None) -> None:
        """Tell the session what has been stored."""
        assert record is not None
        self._session.committed(data)
        self._policy.date(self._session, record)

    async def _enter(self, hold: AbstractAsyncContextManager[Held]) -> Held:
        self._held = await hold.__aenter__()
        self._hold = hold
        return self._held

    async def _let_go(self) -> None:
        hold, self._hold, self._held = self._hold, None, None
        if hold is not None:
            await hold.__aexit__(None, None, None)

    async def _leave(self) -> None:
        self._policy.openings.discard(self)
        await self._let_go()
