"""What the ways to open a session share."""

from __future__ import annotations

import asyncio
import logging
import os
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import AbstractAsyncContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Final, NamedTuple, TypeVar

import anyio

from asyncsess.backends.base import Held, Hold, Record, Tombstone
from asyncsess.errors import Holder, LockLostError, LockTimeoutError, SessionNotFoundError, StoreError
from asyncsess.events import HeldLong, LeaseLost, Mode, TimedOut
from asyncsess.ids import key_of
from asyncsess.keeper import WRITABLE, State
from asyncsess.policy import Policy
from asyncsess.session import Session

H = TypeVar("H", bound=Hold)

logger = logging.getLogger("asyncsess")

NOT_FOUND: Final = "there is no such session: it is unknown, expired or was destroyed"


class Caller(NamedTuple):
    """The line of code that opens a session, for those who wait for it in vain."""

    filename: str
    line: int


class Block(ABC):
    """A block that has a session open for writing, or waits for one.

    Args:
        policy: The store's.
        session_id: Which session.
        timeout: Seconds to wait for a lock.
        caller: Who opens it, for those who time out waiting for it.
    """

    __slots__ = (
        "_busy", "_caller", "_has_told", "_holder", "_key", "_policy", "_session", "_since", "_task", "_timeout",
    )  # fmt: skip

    _holder: Holder
    _session: Session

    def __init__(self, policy: Policy, session_id: str, *, timeout: float, caller: Caller) -> None:
        self._policy = policy
        self._key = key_of(session_id)
        self._timeout = timeout
        self._caller = caller
        self._busy = asyncio.Lock()
        self._task: weakref.ref[asyncio.Task[Any]] | None = None
        self._since = 0.0
        self._has_told = False

    def is_of(self, task: asyncio.Task[Any] | None) -> bool:
        """Tell whether a task opened this."""
        return self._task is not None and self._task() is task

    def _begin(self) -> None:
        """Note the task that opens this."""
        task = asyncio.current_task()
        self._task = weakref.ref(task) if task else None
        self._holder = holder_at(task, self._caller)
        self._policy.openings.add(self)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self._busy.locked():  # another task of the block is saving
                await until_free(self._busy)
            if kind is None and self._session.state in WRITABLE:
                await self._finish()
            elif kind is None:
                self._session.check_unchanged()
        finally:
            self._session.becomes(State.CLOSED)
            await self._leave()

    @abstractmethod
    async def _finish(self) -> None:
        """Store what was changed, at the end of the block."""

    async def _leave(self) -> None:
        """Give back what is still held."""
        self._policy.openings.discard(self)

    @contextmanager
    def _telling_of_loss(self) -> Generator[None]:
        """Tell whoever watches that others have taken over."""
        try:
            yield
        except LockLostError:
            self._policy.observer.note(LeaseLost(self._holder))
            raise

    def _note_if_long(self, held: Hold, since: float) -> None:
        """Tell whoever watches, once, that others had to wait for too long."""
        seconds = time.monotonic() - since
        if seconds > self._policy.observer.slow_hold and not self._has_told and held.is_contended:
            self._has_told = True
            holder = self._holder._replace(since=datetime.now(UTC) - timedelta(seconds=seconds))
            self._policy.observer.note(HeldLong(holder, seconds))

    def _move(self, session_id: str, key: str) -> None:
        """Go on with the session under the id that leads to it now."""
        self._key = key
        self._session.becomes(self._session.state, session_id)

    async def _load_snapshot(self) -> Record:
        record, self._key = await load_snapshot(self._policy, self._session, self._key)
        return record


async def load_snapshot(policy: Policy, session: Session, key: str, *, touch: bool = True) -> tuple[Record, str]:
    """Make a session hold the newest version, read without waiting for anybody; return its record and its key.

    Args:
        policy: The store's.
        session: What is to hold it.
        key: The session's.
        touch: Whether this counts as a use of the session.

    Raises:
        SessionNotFoundError: There is none, or it has expired.
    """
    session_id = session.id
    record, now = await policy.backend.read(key), policy.clock()
    while isinstance(record, Tombstone):
        session_id = policy.successor(session_id, record, now)
        key = key_of(session_id)
        record, now = await policy.backend.read(key), policy.clock()
    if record is None or not policy.load(session, record, key, now):
        raise SessionNotFoundError(NOT_FOUND)
    session.becomes(session.state, session_id)
    if touch and policy.expiry.is_touch_due(record.accessed_at, now):
        try:
            await policy.backend.touch(key, now=now)
        except StoreError as error:  # a read-only disk can still be read
            logger.warning("that a session was read could not be recorded: %s", str(error))
    return record, key


async def granted(policy: Policy, hold: AbstractAsyncContextManager[H], mode: Mode) -> H:
    """Enter a hold, and count what it had to wait for."""
    try:
        held = await hold.__aenter__()
    except LockTimeoutError as error:
        policy.observer.note(TimedOut(mode, error.waited))
        raise
    if held.waited:
        policy.observer.note_waited(mode, held.waited)
    return held


class Locked(NamedTuple):
    """A session that is held, under the id that leads to it now."""

    hold: AbstractAsyncContextManager[Held]
    held: Held
    record: Record | None
    session_id: str
    key: str


async def lock(
    policy: Policy,
    session_id: str,
    key: str,
    *,
    mode: Mode,
    timeout: float,
    holder: Holder,
    lease: float,
    create: bool = False,
) -> Locked:
    """Hold a session, or that which it lives on in. The caller leaves `Locked.hold`.

    Raises:
        SessionNotFoundError: It was destroyed, a moment ago.
        LockTimeoutError and others: As `Backend.hold`.
    """
    until = time.monotonic() + timeout
    while True:
        hold = policy.backend.hold(key, timeout=timeout, holder=holder, lease=lease, create=create)
        held = await granted(policy, hold, mode)
        found = held.record
        if not isinstance(found, Tombstone):
            return Locked(hold, held, found, session_id, key)
        try:
            now = policy.clock()
            if found.until <= now:
                await held.delete(now=now)
            else:
                session_id = policy.successor(session_id, found, now)
                key, create = key_of(session_id), False
        finally:
            await hold.__aexit__(None, None, None)
        timeout = max(0.0, until - time.monotonic())


async def commit(
    policy: Policy,
    held: Held,
    data: bytes,
    key: str,
    holder: Holder,
    *,
    is_merged: bool = False,
    is_last: bool = False,
) -> Record:
    """Store encoded values as the next version of what is held, which is released next if ``is_last``."""
    payload = policy.seal(data, key)
    try:
        record = await held.commit(payload, now=policy.clock(), is_last=is_last)
    except LockLostError:
        policy.observer.note(LeaseLost(holder))
        raise
    policy.observer.note_committed(len(payload), is_merged=is_merged)
    return record


def holder_at(task: asyncio.Task[Any] | None, caller: Caller) -> Holder:
    """Return a task as the holder of what is opened at a line of code."""
    where = f"{caller.filename}:{caller.line}"
    return Holder(os.getpid(), task.get_name() if task else "", datetime.now(UTC), where)


async def until_free(lock: asyncio.Lock) -> None:
    """Wait until nobody has a lock, also when cancelled meanwhile; the cancellation comes out afterwards."""
    cancellation = None
    with anyio.CancelScope(shield=True):
        while lock.locked():
            try:
                async with lock:
                    pass
            except asyncio.CancelledError as error:
                cancellation = error
    if cancellation:
        raise cancellation
