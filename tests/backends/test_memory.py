"""What the contract does not say of the backend that keeps records in memory."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from asyncsess.backends.base import Record
from asyncsess.backends.memory import MemoryBackend
from asyncsess.expiry import Expiry
from asyncsess.testing.contract import KEY, NOW, OTHER_KEY, create, hold, put


class Records(dict[str, Record]):
    """A dict that lets another thread in after each look at it."""

    meanwhile: Callable[[], Any] | None = None

    def get(self, key: str, default: Any = None) -> Any:
        found = super().get(key, default)
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile:
            meanwhile()
        return found


async def test_backends_share_nothing() -> None:
    first, second = MemoryBackend(), MemoryBackend()
    await put(first)
    assert await second.read(KEY) is None
    async with hold(first), hold(second, timeout=1.0):
        pass


async def test_records_outlive_a_closing() -> None:
    backend = MemoryBackend()
    await put(backend)
    await backend.aclose()
    await backend.open()
    assert await backend.read(KEY) == Record(b"payload", 1, NOW, NOW)


async def test_the_repr_counts_records_and_shows_no_key() -> None:
    backend = MemoryBackend()
    await put(backend)
    await put(backend, key=OTHER_KEY)
    assert repr(backend) == "<MemoryBackend records=2>"


async def test_a_key_that_is_not_in_use_costs_nothing() -> None:
    backend = MemoryBackend()
    for number in range(100):
        async with create(backend, key=f"{number:064x}") as held:
            await held.delete(now=NOW)
        async with hold(backend, key=f"{number:064x}", create=True):
            pass
    assert (backend._records, backend._turns._lines) == ({}, {})


async def test_a_touch_undoes_no_commit_of_another_thread() -> None:
    backend = MemoryBackend()
    backend._records = records = Records()
    await put(backend)
    async with hold(backend) as held:
        other = threading.Thread(target=lambda: asyncio.run(held.commit(b"new", now=NOW + 1)))

        def meanwhile() -> None:
            other.start()
            other.join(0.05)  # unless it has to wait for the touch

        records.meanwhile = meanwhile
        await backend.touch(KEY, now=NOW + 5)
        other.join()
    record = await backend.read(KEY)
    assert record is not None
    assert (record.payload, record.version) == (b"new", 2)


async def test_a_sweep_that_lists_the_records_bears_with_other_threads() -> None:
    backend = MemoryBackend()
    for number in range(50):
        await put(backend, key=f"{number:064x}")

    async def churn() -> None:
        for number in range(50, 200):
            async with create(backend, key=f"{number:064x}") as held:
                await held.delete(now=NOW)

    async def sweep() -> int:
        return sum([await backend.delete_expired(Expiry(60.0), now=NOW + 1) for _ in range(50)])

    counts = await asyncio.gather(
        *(asyncio.to_thread(asyncio.run, work()) for work in (churn, sweep, churn, sweep)),
    )
    assert [count for count in counts if count] == []
    assert len(backend._records) == 50
