"""`EditOpening`: a session without a lock, merged into what others made of it."""

from __future__ import annotations

import asyncio
import random
import weakref
from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager, suppress
from types import TracebackType
from typing import Any, Final

from asyncsess.backends.base import Record
from asyncsess.errors import CodecError, ConflictError, SessionNotFoundError
from asyncsess.ids import key_of
from asyncsess.keeper import State
from asyncsess.merge import merge
from asyncsess.openings.base import NOT_FOUND, Caller, holder_at, load_snapshot, until_free
from asyncsess.openings.exclusive import ExclusiveOpening
from asyncsess.policy import Policy
from asyncsess.rules import Resolve
from asyncsess.session import Session

_FIRST_PAUSE: Final = 0.01


class EditOpening:
    """A session that is read at once and locked only to commit what was changed in it.

    Args:
        policy: The store's.
        session_id: Which session.
        resolve: What settles conflicts.
        timeout: Seconds to wait for the lock, at each commit.
        caller: Who opens it, for those who time out waiting for it.
    """

    __slots__ = ("_busy", "_caller", "_created_at", "_key", "_policy", "_resolve", "_session", "_task", "_timeout")

    def __init__(self, policy: Policy, session_id: str, *, resolve: Resolve, timeout: float, caller: Caller) -> None:
        self._policy = policy
        self._key = key_of(session_id)
        self._resolve = resolve
        self._timeout = timeout
        self._caller = caller
        self._busy = asyncio.Lock()
        self._task: weakref.ref[asyncio.Task[Any]] | None = None
        self._session = Session(self, session_id, State.OPTIMISTIC, policy.codec)

    def is_of(self, task: asyncio.Task[Any] | None) -> bool:
        """Tell whether a task opened this."""
        return self._task is not None and self._task() is task

    async def __aenter__(self) -> Session:
        task = asyncio.current_task()
        self._task = weakref.ref(task) if task else None
        await self._load()
        self._policy.openings.add(self)
        return self._session

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self._busy.locked():  # another task of the block is saving
                await until_free(self._busy)
            if kind is None and self._session.state is State.OPTIMISTIC:
                await self._commit(State.CLOSED)
            elif kind is None:
                self._session.check_unchanged()
        finally:
            self._session.becomes(State.CLOSED)
            self._policy.openings.discard(self)

    async def save(self) -> None:
        async with self._busy:
            self._session.check_writable()
            await self._commit(State.OPTIMISTIC)

    async def renew(self, lease: float | None) -> None:
        """Do nothing: there is no lock that others wait for."""

    async def release(self, variables: Collection[str] = ()) -> None:
        async with self._busy:
            self._session.check_writable()
            await self._commit(State.RELEASED)

    async def rollback(self) -> None:
        async with self._busy:
            self._session.check_writable()
            self._session.reset()
            self._session.becomes(State.RELEASED)

    async def refresh(self) -> None:
        async with self._busy:
            await self._load()

    async def destroy(self) -> None:
        async with self._busy:
            self._session.check_writable()
            async with self._exclusive() as session:
                await session.destroy()
            self._session.load({}, None)
            self._session.becomes(State.DESTROYED)

    async def regenerate_id(self) -> None:
        async with self._busy:
            self._session.check_writable()
            await self._commit(State.OPTIMISTIC)
            async with self._exclusive() as session:
                await session.regenerate_id()
            self._key = key_of(session.id)
            self._session.becomes(self._session.state, session.id)

    async def _load(self) -> None:
        record = await load_snapshot(self._policy, self._session, self._key)
        self._created_at = record.created_at

    def _exclusive(self) -> ExclusiveOpening:
        return ExclusiveOpening(
            self._policy,
            self._session.id,
            create=False,
            timeout=self._timeout,
            caller=self._caller,
        )

    async def _commit(self, then: State) -> None:
        """Store what was changed, merged into what others stored; nothing that is changed from here on."""
        session = self._session
        session.check_locked()
        data = session.take_changes()
        session.becomes(then)
        if data is None:
            return
        try:
            record, merged = await self._store(data)
        except BaseException:
            session.not_committed()
            raise
        session.committed(data)
        self._policy.date(session, record)
        with suppress(CodecError):  # what was put in meanwhile is for the next commit to refuse
            # What was changed meanwhile goes on from what we stored, and is merged with what others did then.
            if merged is not data and session.state is not State.CLOSED and session.changes() is None:
                session.rebase(self._policy.codec.decode(merged), merged)

    async def _store(self, ours: bytes) -> tuple[Record, bytes]:
        """Lock, merge and commit; return what is stored now, also as encoded values."""
        policy, key = self._policy, self._key
        holder = holder_at(asyncio.current_task(), self._caller)
        async with policy.backend.hold(key, timeout=self._timeout, holder=holder, lease=policy.lease) as held:
            record = held.record
            if record is None or record.created_at != self._created_at or policy.has_expired(record):
                raise SessionNotFoundError(NOT_FOUND)
            theirs = policy.codec.unseal(record.payload, key)
            merged = ours if theirs == self._session.baseline else self._merged(ours, theirs)
            if merged != theirs:
                record = await held.commit(policy.seal(merged, key), now=policy.clock())
            await held.release(now=policy.clock())
        return record, merged

    def _merged(self, ours: bytes, theirs: bytes) -> bytes:
        codec = self._policy.codec
        base = codec.decode(self._session.baseline)
        return codec.encode(merge(base, codec.decode(ours), codec.decode(theirs), self._resolve, self._check))

    def _check(self, value: Any) -> None:
        self._policy.codec.encode({"value": value})


class Attempt:
    """One of several tries at a block: a context manager that takes a conflict as the reason for another.

    Attributes:
        has_failed: Whether there was a conflict.
    """

    def __init__(self, opening: EditOpening) -> None:
        self._opening = opening
        self.has_failed = False

    async def __aenter__(self) -> Session:
        return await self._opening.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        try:
            await self._opening.__aexit__(kind, error, traceback)
        except ConflictError:
            self.has_failed = True
        else:
            self.has_failed = isinstance(error, ConflictError)
        return self.has_failed


async def attempts(
    policy: Policy, session_id: str, *, resolve: Resolve, times: int, timeout: float, caller: Caller
) -> AsyncIterator[AbstractAsyncContextManager[Session]]:
    """Yield edits, with growing pauses, until one meets no conflict; the last is no edit, but exclusive."""
    for number in range(times - 1):
        attempt = Attempt(EditOpening(policy, session_id, resolve=resolve, timeout=timeout, caller=caller))
        yield attempt
        if not attempt.has_failed:
            return
        await asyncio.sleep(random.uniform(0, _FIRST_PAUSE * 2**number))
    yield ExclusiveOpening(policy, session_id, create=False, timeout=timeout, caller=caller)
