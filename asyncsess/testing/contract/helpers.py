"""What the tests of the contract have in common: keys, times, and short ways to hold a key."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Any, Final

from asyncsess.backends.base import Backend, Found, Held, HeldName, Record
from asyncsess.errors import Holder

KEY: Final = "0a" * 32
OTHER_KEY: Final = "b1" * 32
NOW: Final = 1_700_000_000.0
Holding = AbstractAsyncContextManager[Held]


def create(
    backend: Backend,
    payload: bytes = b"payload",
    key: str = KEY,
    now: float = NOW,
    *,
    created_at: float | None = None,
    version: int = 1,
) -> Holding:
    """Create a record as the contract does."""
    begun_at = now if created_at is None else created_at
    return backend.create(key, payload, created_at=begun_at, now=now, holder=_holder("the maker"), version=version)


def hold(
    backend: Backend,
    key: str = KEY,
    *,
    timeout: float = 30.0,
    lease: float = math.inf,
    create: bool = False,
    task: str = "the holder",
) -> Holding:
    """Hold a key as the contract does."""
    return backend.hold(key, timeout=timeout, holder=_holder(task), lease=lease, create=create)


def hold_name(
    backend: Backend, name: str, *, key: str = KEY, timeout: float = 30.0, lease: float = math.inf
) -> AbstractAsyncContextManager[HeldName]:
    """Hold a name as the contract does."""
    return backend.hold_name(key, name, timeout=timeout, holder=_holder("the holder"), lease=lease)


async def put(backend: Backend, payload: bytes = b"payload", *, key: str = KEY, now: float = NOW) -> None:
    """Leave a record behind."""
    async with create(backend, payload, key, now):
        pass


def _holder(task: str) -> Holder:
    return Holder(os.getpid(), task, datetime.now(UTC), "contract.py:1")


async def look(backend: Backend, seen: list[Found], *, create: bool = False, timeout: float = 30.0) -> None:
    """Hold the key for a moment, and note what is there."""
    async with hold(backend, timeout=timeout, create=create) as held:
        seen.append(held.record)


async def keys_of(backend: Backend) -> list[str]:
    """Return the keys that have a record."""
    return [key async for key in backend.keys()]  # noqa: SIM118 - no mapping


def waiting(backend: Backend, other: Backend) -> int:
    """Return how many wait, in two backends or one."""
    return sum(each.statistics().waiting for each in {id(backend): backend, id(other): other}.values())


async def append(backend: Backend, text: bytes, times: int = 1) -> None:
    """Hold the key, and append to its record."""
    for _ in range(times):
        async with hold(backend, create=True) as held:
            before = held.record.payload if isinstance(held.record, Record) else b""
            await asyncio.sleep(0)
            await held.commit(before + text, now=NOW)


async def in_another_loop(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Run coroutines in an event loop of a thread."""

    async def work() -> None:
        await asyncio.gather(*coroutines)

    await asyncio.to_thread(asyncio.run, work())
