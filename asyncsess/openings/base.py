"""What the ways to open a session share."""

from __future__ import annotations

import asyncio
import logging
import os
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import anyio

from asyncsess.backends.base import Record
from asyncsess.errors import Holder, SessionNotFoundError, StoreError
from asyncsess.policy import Policy
from asyncsess.session import Session

logger = logging.getLogger("asyncsess")

NOT_FOUND: Final = "there is no such session: it is unknown, expired or was destroyed"


class Caller(NamedTuple):
    """The line of code that opens a session, for those who wait for it in vain."""

    filename: str
    line: int


async def load_snapshot(policy: Policy, session: Session, key: str) -> Record:
    """Make a session hold the newest version, read without waiting for anybody; return its record.

    Raises:
        SessionNotFoundError: There is none, or it has expired.
    """
    record, now = await policy.backend.read(key), policy.clock()
    if record is None or not policy.load(session, record, key, now):
        raise SessionNotFoundError(NOT_FOUND)
    if policy.expiry.is_touch_due(record.accessed_at, now):
        try:
            await policy.backend.touch(key, now=now)
        except StoreError as error:  # a read-only disk can still be read
            logger.warning("that a session was read could not be recorded: %s", str(error))
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
