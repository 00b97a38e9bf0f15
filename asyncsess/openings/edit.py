"""`EditOpening`: a session without a lock, merged into what others made of it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from types import TracebackType
from typing import Any, Final

from asyncsess.backends.base import Record
from asyncsess.errors import CodecError, ConflictError, SessionNotFoundError
from asyncsess.events import Conflicted, Mode, Retried
from asyncsess.ids import key_of, new_session_id
from asyncsess.keeper import State
from asyncsess.merge import merge
from asyncsess.openings import owned
from asyncsess.openings.base import NOT_FOUND, Block, Caller, commit, holder_at, lock
from asyncsess.openings.exclusive import ExclusiveOpening
from asyncsess.policy import Policy
from asyncsess.rules import Resolve
from asyncsess.session import Session
from asyncsess.values import CSRF

_FIRST_PAUSE: Final = 0.01


class EditOpening(Block):
    """A session that is read at once and locked only to commit what was changed in it.

    Args:
        policy, caller: As `Block`.
        session_id: None for a new session under a fresh id.
        resolve: What settles conflicts.
        timeout: Seconds to wait for the lock, at each commit.
        mode: What it is opened for, to be counted.
    """

    __slots__ = ("_created_at", "_is_fresh", "_mode", "_resolve")

    def __init__(
        self,
        policy: Policy,
        session_id: str | None,
        *,
        resolve: Resolve,
        timeout: float,
        caller: Caller,
        mode: Mode = "edit",
    ) -> None:
        self._is_fresh = session_id is None
        session_id = session_id if session_id is not None else new_session_id()
        super().__init__(policy, session_id, timeout=timeout, caller=caller)
        self._session = Session(self, session_id, State.OPTIMISTIC, policy.codec)
        self._resolve = resolve
        self._created_at: float | None = None
        self._mode: Mode = mode

    async def __aenter__(self) -> Session:
        self._begin()
        try:
            await self._enter()
        except BaseException:
            await self._leave()
            raise
        self._policy.observer.note_opened(self._mode)
        return self._session

    async def _enter(self) -> None:
        """Read the session."""
        if not self._is_fresh:
            await self._load()

    async def _finish(self) -> None:
        await self._commit(State.CLOSED)

    async def save(self) -> None:
        async with self._busy:
            self._session.check_writable()
            if self._is_fresh:  # it is stored even if it is empty
                await self._exchange(self._session.take_changes() or self._session.encoded(), self._store_first)
            else:
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
            if self._is_fresh:
                self._session.reset()
            else:
                await self._load()

    async def destroy(self) -> None:
        async with self._busy:
            self._session.check_writable()
            if not self._is_fresh:
                async with self._exclusive() as session:
                    await session.destroy()
            self._session.load({}, None)
            self._session.becomes(State.DESTROYED)

    async def regenerate_id(self, grace: float) -> None:
        async with self._busy:
            session = self._session
            session.check_writable()
            session.check_locked()
            # What was changed is stored under the new id alone: a login would else be that of the old one as well.
            data = session.take_changes() or session.baseline
            if self._is_fresh:
                session_id = new_session_id()
                self._move(session_id, key_of(session_id))
                await self._exchange(data, self._store_first)
            else:
                await self._exchange(data, partial(self._store_anew, grace))

    def follow(self, session_id: str, *, is_begun: bool) -> None:
        """Go on under another id, to which others have moved the session, or under which they have begun it."""
        if is_begun:
            self._is_fresh, self._created_at = False, None
        self._move(session_id, key_of(session_id))

    async def _load(self) -> None:
        self._created_at = (await self._load_snapshot()).created_at

    def _exclusive(self) -> ExclusiveOpening:
        return ExclusiveOpening(self._policy, self._session.id, timeout=self._timeout, caller=self._caller)

    async def _commit(self, then: State) -> None:
        """Store what was changed, merged into what others stored; nothing that is changed from here on."""
        session = self._session
        session.check_locked()
        data = session.take_changes()
        session.becomes(then)
        if data is not None:
            await self._exchange(data, self._store_first if self._is_fresh else self._store)

    async def _exchange(self, data: bytes, store: Callable[[bytes], Awaitable[tuple[Record, bytes]]]) -> None:
        """Store encoded values, merged into what others stored, and go on with both."""
        session = self._session
        try:
            record, merged = await store(data)
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
        policy, holder = self._policy, holder_at(asyncio.current_task(), self._caller)
        hold, held, record, session_id, key = await lock(
            policy,
            self._session.id,
            self._key,
            mode=self._mode,
            timeout=self._timeout,
            holder=holder,
            lease=policy.lease,
        )
        try:
            self._move(session_id, key)
            await self._check_locks()
            if record is None or not self._is_mine(record) or policy.has_expired(record):
                raise SessionNotFoundError(NOT_FOUND)
            theirs = policy.codec.unseal(record.payload, key)
            merged = self._merged(ours, theirs)
            if merged != theirs:
                is_merged = merged is not ours
                record = await commit(policy, held, merged, key, holder, is_merged=is_merged, is_last=True)
            await held.release(now=policy.clock())
        finally:
            await hold.__aexit__(None, None, None)
        return record, merged

    async def _store_first(self, ours: bytes) -> tuple[Record, bytes]:
        """Store the first version of a session, under its fresh id."""
        policy, owner, now = self._policy, self._session.owner, self._policy.clock()
        payload = policy.seal(ours, self._key)
        if owner is not None:
            await owned.join(policy, owner, self._key)
        async with policy.backend.create(
            self._key, payload, created_at=now, now=now, holder=self._holder, lease=policy.lease
        ) as held:
            await held.release(now=now)
        policy.observer.note_committed(len(payload))
        self._is_fresh, self._created_at = False, now
        if owner is not None:
            await owned.evict(policy, owner, self._key, caller=self._caller)
        return Record(payload, 1, now, now), ours

    async def _store_anew(self, grace: float, ours: bytes) -> tuple[Record, bytes]:
        """Lock, merge and commit under a fresh id; return what is stored now, also as encoded values."""
        opening = self._exclusive()
        async with opening as session:
            await self._check_locks()
            if not self._is_mine(opening.record):
                raise SessionNotFoundError(NOT_FOUND)
            merged = self._merged(ours, session.baseline)
            if merged != session.baseline:
                owner = session.owner
                session.replace(self._policy.codec.decode(merged))
                if session.owner != owner:  # its forms need another token, whoever stored one meanwhile
                    session.pop(CSRF, None)
                    merged = session.encoded()
            try:
                await session.regenerate_id(grace=grace)
            finally:  # which may have been cancelled once it was done
                self._move(session.id, key_of(session.id))
            return opening.record, merged

    def _is_mine(self, record: Record) -> bool:
        """Tell whether a record is of the session that was opened, and of none that began under its id since."""
        return self._created_at is None or record.created_at == self._created_at

    async def _check_locks(self) -> None:
        """Make sure that what this holds beside the session has not been taken over."""

    def _merged(self, ours: bytes, theirs: bytes) -> bytes:
        if theirs == self._session.baseline:
            return ours
        codec = self._policy.codec
        base = codec.decode(self._session.baseline)
        try:
            return codec.encode(merge(base, codec.decode(ours), codec.decode(theirs), self._resolve, self._check))
        except ConflictError as error:
            self._policy.observer.note(Conflicted(tuple(conflict.path for conflict in error.conflicts)))
            raise

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
        policy.observer.note(Retried(number + 2))
    yield ExclusiveOpening(policy, session_id, timeout=timeout, caller=caller)
