"""`ExclusiveOpening`: a session that nobody else may change meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any

from asyncsess.backends.base import Found, Held, Record
from asyncsess.errors import LockLostError, SessionError, SessionNotFoundError
from asyncsess.events import Mode
from asyncsess.ids import key_of, new_session_id
from asyncsess.keeper import State
from asyncsess.openings import owned
from asyncsess.openings.base import NOT_FOUND, Block, Caller, commit, holder_at, lock
from asyncsess.operations import Operation
from asyncsess.policy import Policy
from asyncsess.session import Session
from asyncsess.values import owner_of


async def destroy(policy: Policy, session_id: str, *, timeout: float, caller: Caller) -> bool:
    """Delete a session, once whoever holds it is done; return whether there was one."""
    holder, key = holder_at(asyncio.current_task(), caller), key_of(session_id)
    try:
        locked = await lock(
            policy, session_id, key, mode="exclusive", timeout=timeout, holder=holder, lease=policy.lease
        )
    except SessionNotFoundError:
        return False
    try:
        was_there = locked.record is not None and not policy.has_expired(locked.record)
        await locked.held.delete(policy.destroyed() if was_there else None, now=policy.clock())
    finally:
        await locked.hold.__aexit__(None, None, None)
    return was_there


class ExclusiveOpening(Block):
    """A session that nobody else may change meanwhile; committed at the end of the block.

    Args:
        policy, timeout, caller: As `Block`.
        session_id: None for a new session under a fresh id.
        create: Start a session under this id if there is none.
        lease: Seconds after which those who wait may take over; the policy's if None.
        mode: What it is opened for, to be counted.
    """

    __slots__ = ("_create", "_held", "_hold", "_is_fresh", "_lease", "_mode", "_newcomer")

    def __init__(
        self,
        policy: Policy,
        session_id: str | None,
        *,
        timeout: float,
        caller: Caller,
        create: bool = False,
        lease: float | None = None,
        mode: Mode = "exclusive",
    ) -> None:
        self._is_fresh = session_id is None
        session_id = session_id if session_id is not None else new_session_id()
        super().__init__(policy, session_id, timeout=timeout, caller=caller)
        self._session = Session(self, session_id, State.EXCLUSIVE, policy.codec)
        self._create = create
        self._lease = policy.lease if lease is None else lease
        self._mode: Mode = mode
        self._newcomer: str | None = None
        self._hold: AbstractAsyncContextManager[Held] | None = None
        self._held: Held | None = None

    async def __aenter__(self) -> Session:
        self._begin()
        try:
            if not self._is_fresh:  # nobody can know a fresh id, so there is nothing to lock before its first commit
                await self._lock()
        except BaseException:
            await self._leave()
            raise
        self._policy.observer.note_opened(self._mode)
        return self._session

    @property
    def record(self) -> Record:
        """What is stored, as of the grant, then as of the last commit.

        Raises:
            LockLostError: Nothing is held.
        """
        found = None if self._held is None else self._held.record
        if not isinstance(found, Record):
            raise LockLostError("the session is no longer held")
        return found

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
                with self._telling_of_loss():
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
            else:
                await self._load_snapshot()

    async def destroy(self) -> None:
        async with self._busy:
            self._session.check_writable()
            if self._held is not None:
                self._note_if_long(self._held, self._since)
                with self._telling_of_loss():
                    await self._held.delete(self._policy.destroyed(), now=self._policy.clock())
            self._session.load({}, None)
            self._session.becomes(State.DESTROYED)
            await self._leave()

    async def regenerate_id(self, grace: float) -> None:
        async with self._busy:
            self._session.check_writable()
            owner, before = self._session.owner, owner_of(self._policy.codec.decode(self._session.baseline))
            await self._regenerate_id(grace)
            self._newcomer = owner if owner != before else self._newcomer

    async def _regenerate_id(self, grace: float) -> None:
        session_id, session, policy = new_session_id(), self._session, self._policy
        key, data = key_of(session_id), session.encoded()
        payload = policy.seal(data, key)
        # The absolute limit counts from the first login on, not from each new id.
        now = policy.clock()
        before = None if self._held is None else self._held.record
        created_at = before.created_at if isinstance(before, Record) else now
        backend, old, old_hold = policy.backend, self._held, self._hold
        if session.owner is not None:
            await owned.join(policy, session.owner, key)
        new_hold = backend.create(key, payload, created_at=created_at, now=now, holder=self._holder, lease=self._lease)
        new = await new_hold.__aenter__()
        record, tombstone = new.record, policy.succeeded(session.id, session_id, grace)
        is_moved = True
        try:
            if old is not None:
                self._note_if_long(old, self._since)
                with self._telling_of_loss():
                    await old.delete(tombstone, now=policy.clock())
        except LockLostError:  # whatever lies under the old id is not this block's to move
            is_moved = False
            raise
        except BaseException:
            with suppress(SessionError):  # then both ids may lead to the session, which is better than neither
                is_moved = await backend.read(self._key) in (tombstone, None)
            raise
        finally:
            if is_moved:
                self._since = self._since if old else time.monotonic()
                self._hold, self._held = new_hold, new
                self._move(session_id, key)
                policy.observer.note_committed(len(payload))
                self._note(data, record)
                if old_hold is not None:
                    await old_hold.__aexit__(None, None, None)
            else:
                try:
                    await new.delete(now=policy.clock())
                finally:
                    await new_hold.__aexit__(None, None, None)

    async def _lock(self) -> None:
        """Lock the session and load it, or find that there is none."""
        policy = self._policy
        while True:
            self._hold, self._held, record, session_id, key = await lock(
                policy,
                self._session.id,
                self._key,
                mode=self._mode,
                timeout=self._timeout,
                holder=self._holder,
                lease=self._lease,
                create=self._create,
            )
            self._since = time.monotonic()
            if key is not self._key:
                self._move(session_id, key)
                self._create = False  # what an id led to is not begun anew
            if record is None and self._create:
                return
            if policy.load(self._session, record, key, policy.clock()):
                return
            if record is not None:  # expired: a session that begins anew begins with nothing of it
                await self._held.delete(now=policy.clock())
            await self._let_go()
            if not self._create:
                raise SessionNotFoundError(NOT_FOUND)

    async def _finish(self) -> None:
        await self._commit_and_release(State.CLOSED)

    async def _commit_and_release(self, then: State) -> None:
        """Store what was changed, and nothing that is changed from here on, which raises."""
        data = self._session.take_changes()
        self._session.becomes(then)
        if self._held is not None and data is not None:
            self._note_if_long(self._held, self._since)  # while it can still be told
        await self._commit(data, is_last=True)
        if self._held is not None:
            self._note_if_long(self._held, self._since)
            await self._held.release(now=self._policy.clock())

    async def _commit(self, data: bytes | None, *, is_last: bool = False) -> None:
        """Store encoded values, if there are any to store."""
        if data is None:
            return
        policy, key = self._policy, self._key
        try:
            if self._held is not None:
                record: Found = await commit(policy, self._held, data, key, self._holder, is_last=is_last)
            else:
                record = await self._store_first(policy.seal(data, key))
        except BaseException:
            self._session.not_committed()
            raise
        self._note(data, record)

    async def _store_first(self, payload: bytes) -> Found:
        """Store the first version of a session under a fresh id, and hold it."""
        now = self._policy.clock()
        hold = self._policy.backend.create(
            self._key, payload, created_at=now, now=now, holder=self._holder, lease=self._lease
        )
        self._held = await hold.__aenter__()
        self._hold, self._since = hold, time.monotonic()
        self._policy.observer.note_committed(len(payload))
        return self._held.record

    def _note(self, data: bytes, record: Found) -> None:
        """Tell the session what has been stored."""
        assert isinstance(record, Record)
        self._session.committed(data)
        self._policy.date(self._session, record)

    async def _let_go(self) -> None:
        hold, held, self._hold, self._held = self._hold, self._held, None, None
        if hold is not None and held is not None:
            self._note_if_long(held, self._since)
            await hold.__aexit__(None, None, None)

    async def _leave(self) -> None:
        self._policy.openings.discard(self)
        await self._let_go()
        newcomer, self._newcomer = self._newcomer, None
        if newcomer is not None:  # not before: two that log in could else wait for each other
            await owned.evict(self._policy, newcomer, self._key, caller=self._caller)


async def apply(opening: ExclusiveOpening, operations: Sequence[Operation]) -> tuple[Any, ...]:
    """Run operations on what is there, all of them or none; return their results."""
    async with opening as session:
        values = dict(session)
        results = tuple([operation(values) for operation in operations])
        session.replace(values)
    return results
