"""For tests: a store with a clock that stands still, and the backend contract as a test class.

Name this module in a conftest.py to have its fixtures, and to see the values when an assertion of the contract fails:

    pytest_plugins = ["asyncsess.testing"]

The contract needs a plugin that runs ``async def`` tests, such as pytest-asyncio in its auto mode.
"""
# ruff: noqa: D102 - the names of the tests are the sentences

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Final

import pytest

from asyncsess.backends.base import Backend, Held, Record
from asyncsess.errors import DeadlockError, Holder, LockLostError, LockTimeoutError, StoreError
from asyncsess.expiry import Expiry
from asyncsess.stores import MemoryStore

KEY: Final = "0a" * 32
OTHER_KEY: Final = "b1" * 32
_NOW: Final = 1_700_000_000.0
_PATIENCE: Final = 30.0


class FakeClock:
    """A clock that stands still until it is told otherwise; pass it to a store as ``clock``.

    Args:
        now: Seconds since the epoch at which it stands; the present, in whole seconds, if None.

    Attributes:
        now: Seconds since the epoch; may be set.
    """

    def __init__(self, now: float | None = None) -> None:
        self.now = float(int(time.time())) if now is None else now

    def __call__(self) -> float:
        return self.now

    def __repr__(self) -> str:
        return f"FakeClock({datetime.fromtimestamp(self.now, UTC).isoformat()})"

    def advance(self, by: float | timedelta) -> None:
        """Move the clock forward, or back by a negative number of seconds."""
        self.now += by.total_seconds() if isinstance(by, timedelta) else by


@pytest.fixture
def session_clock() -> FakeClock:
    """Return the clock of `session_store`."""
    return FakeClock()


@pytest.fixture
def session_store(session_clock: FakeClock) -> MemoryStore:
    """Return an empty store in memory. Its sessions expire by `session_clock`, and only then."""
    return MemoryStore(clock=session_clock, sweep_interval=None)


async def until(condition: Callable[[], object]) -> None:
    """Let other tasks run until something holds, such as ``lambda: store.statistics().waiting == 1``.

    Raises:
        TimeoutError: It did not hold within half a minute.
    """
    async with asyncio.timeout(_PATIENCE):
        while not condition():  # noqa: ASYNC110 - what a backend is doing shows in its statistics, not in an event
            await asyncio.sleep(0)


class BackendContract:
    """What `asyncsess.backends.base` promises, as tests. Inherit from this class, and add a fixture:

        class TestMyBackend(BackendContract):
            @pytest.fixture
            async def backend(self):
                backend = MyBackend()
                await backend.open()
                yield backend
                await backend.aclose()

    Override `other` too if several backend objects, such as those of several processes, can share one storage.
    """

    @pytest.fixture
    def other(self, backend: Backend) -> Backend:
        """Return another open backend with the same records and locks, or the same one if there is no other."""
        return backend

    # Records.

    async def test_a_key_without_a_record_reads_as_none(self, backend: Backend) -> None:
        assert await backend.read(KEY) is None
        assert await _keys(backend) == []

    async def test_each_commit_is_the_next_version_for_every_reader(self, backend: Backend, other: Backend) -> None:
        payloads = [b"one", b"", b"\0\xff", b"4" * 300, b"5" * 100_000, b"six", b"7" * 20_000, b"8" * 20_001]
        async with create(backend, payloads[0]) as held:
            for version, payload in enumerate(payloads, 1):
                if version > 1:
                    committed = await held.commit(payload, now=_NOW + version)
                    assert committed == Record(payload, version, _NOW, _NOW + version)
                assert held.record == await backend.read(KEY) == await other.read(KEY)
                assert held.record is not None
                assert (held.record.payload, held.record.version) == (payload, version)

    async def test_what_was_read_before_a_commit_stays_as_it_was(self, backend: Backend) -> None:
        async with create(backend, b"before") as held:
            snapshot = await backend.read(KEY)
            await held.commit(b"after!", now=_NOW + 1)
        assert snapshot == Record(b"before", 1, _NOW, _NOW)

    async def test_a_created_record_was_last_used_when_it_was_created(self, backend: Backend) -> None:
        async with create(backend) as held:
            assert held.record == Record(b"payload", 1, _NOW, _NOW)

    async def test_create_never_overwrites(self, backend: Backend, other: Backend) -> None:
        await put(backend, b"theirs")
        before = await backend.read(KEY)
        for handle in (backend, other):
            with pytest.raises(StoreError):
                await handle.create(KEY, b"mine", created_at=_NOW + 9, holder=_holder()).__aenter__()
        assert await backend.read(KEY) == before
        async with hold(other) as held:  # and the lock is free
            assert held.record == before

    async def test_a_new_record_of_a_deleted_key_begins_at_version_1(self, backend: Backend) -> None:
        await put(backend, b"old")
        async with hold(backend) as held:
            await held.delete()
        async with create(backend, b"new", now=_NOW + 5) as held:
            assert held.record == Record(b"new", 1, _NOW + 5, _NOW + 5)

    async def test_keys_lists_what_has_a_record_expired_ones_too(self, backend: Backend, other: Backend) -> None:
        await put(backend)
        await put(backend, key=OTHER_KEY, now=1.0)
        async with hold(backend, "c2" * 32, create=True):
            assert sorted(await _keys(backend)) == sorted(await _keys(other)) == [KEY, OTHER_KEY]

    async def test_touch_moves_the_time_of_last_use_forward_only(self, backend: Backend, other: Backend) -> None:
        await put(backend)
        for now, expected in ((_NOW + 7, _NOW + 7), (_NOW + 3, _NOW + 7), (_NOW + 8, _NOW + 8)):
            await other.touch(KEY, now=now)
            assert await backend.read(KEY) == Record(b"payload", 1, _NOW, expected)

    async def test_touch_needs_no_lock_and_revives_nothing(self, backend: Backend, other: Backend) -> None:
        async with create(backend) as held:
            await other.touch(KEY, now=_NOW + 5)
            assert await backend.read(KEY) == Record(b"payload", 1, _NOW, _NOW + 5)
            await held.delete()
        await backend.touch(KEY, now=_NOW + 9)
        assert await backend.read(KEY) is None
        assert await _keys(backend) == []

    # Holding.

    async def test_a_reader_never_waits_for_a_holder(self, backend: Backend, other: Backend) -> None:
        async with create(backend, b"1") as held:
            for version in range(2, 9):
                await held.commit(b"%d" % version * version, now=_NOW)
                for handle in (backend, other):
                    assert (await handle.read(KEY) or held.record) == held.record

    async def test_holders_come_in_the_order_in_which_they_asked(self, backend: Backend) -> None:
        order: list[int] = []
        await put(backend)

        async def visit(number: int) -> None:
            async with hold(backend):
                order.append(number)

        async with hold(backend), asyncio.TaskGroup() as tasks:
            for number in range(5):
                tasks.create_task(visit(number))
                await until(lambda expected=number + 1: backend.statistics().waiting == expected)
            tasks.create_task(_release_when(backend, waiting=5))
        assert order == [0, 1, 2, 3, 4]

    async def test_a_holder_excludes_every_other_of_the_same_key_only(self, backend: Backend, other: Backend) -> None:
        await put(backend)
        seen: list[Record | None] = []
        async with hold(backend) as held, hold(other, OTHER_KEY, create=True):
            waiters = [_start(_look(handle, seen)) for handle in (backend, other)]
            await until(lambda: backend.statistics().waiting and other.statistics().holding)
            committed = await held.commit(b"mine", now=_NOW + 1)
            assert seen == []
        await asyncio.gather(*waiters)
        assert seen == [committed, committed]

    async def test_create_holds_a_missing_key_and_leaves_nothing_behind(self, backend: Backend, other: Backend) -> None:
        seen: list[Record | None] = []
        async with hold(backend, create=True) as held:
            assert held.record is None
            waiter = _start(_look(other, seen, create=True))
            await until(lambda: backend.statistics().waiting or other.statistics().holding)
            assert (await other.read(KEY), seen) == (None, [])
        await waiter
        assert seen == [None]
        assert (await backend.read(KEY), await _keys(backend)) == (None, [])

    async def test_the_first_commit_of_a_missing_key_makes_its_record(self, backend: Backend, other: Backend) -> None:
        async with hold(backend, create=True) as held:
            first = await held.commit(b"first", now=_NOW + 2)
            assert first == held.record == await other.read(KEY) == Record(b"first", 1, _NOW + 2, _NOW + 2)
            await held.commit(b"second", now=_NOW + 3)
        assert await other.read(KEY) == Record(b"second", 2, _NOW + 2, _NOW + 3)

    async def test_a_missing_key_without_create_has_no_record_to_hold(self, backend: Backend) -> None:
        async with hold(backend) as held:
            assert held.record is None
        assert await _keys(backend) == []

    async def test_waiters_of_a_deleted_record_find_none(self, backend: Backend, other: Backend) -> None:
        await put(backend)
        seen: list[Record | None] = []
        async with hold(backend) as held:
            waiters = [_start(_look(handle, seen, create=is_new)) for handle, is_new in ((backend, 0), (other, 1))]
            await until(lambda: backend.statistics().waiting and other.statistics().holding)
            await held.delete()
            await asyncio.gather(*waiters)  # the lock went with the record, although this block has not ended
        assert seen == [None, None]
        assert (await backend.read(KEY), await _keys(backend)) == (None, [])

    async def test_a_timeout_names_the_holder_and_leaves_the_queue_intact(
        self, backend: Backend, other: Backend
    ) -> None:
        await put(backend)
        seen: list[Record | None] = []
        async with hold(backend, name="the slow one"):
            for handle in (backend, other):
                with pytest.raises(LockTimeoutError) as caught:
                    await _start(_look(handle, seen, timeout=0.001))
                assert isinstance(caught.value, TimeoutError)
                assert caught.value.waited >= 0.001
                assert caught.value.holder is not None
                assert (caught.value.holder.pid, caught.value.holder.task) == (os.getpid(), "the slow one")
                assert caught.value.holder.where == _holder().where
            assert backend.statistics().waiting == 0
            waiter = _start(_look(backend, seen))
            await until(lambda: backend.statistics().waiting == 1)
        await waiter
        assert len(seen) == 1

    async def test_a_task_that_waits_for_itself_is_told_at_once(self, backend: Backend) -> None:
        await put(backend)
        async with hold(backend) as held:
            with pytest.raises(DeadlockError):
                await hold(backend).__aenter__()
            await held.commit(b"still mine", now=_NOW)

    async def test_cancelled_waiters_leave_the_queue_intact(self, backend: Backend) -> None:
        await put(backend)
        seen: list[Record | None] = []
        async with hold(backend) as held:
            waiters = []
            for count in range(1, 5):
                waiters.append(_start(_look(backend, seen)))
                await until(lambda expected=count: backend.statistics().waiting == expected)
            waiters[1].cancel()
            await until(lambda: backend.statistics().waiting == 3)
            await held.release(now=_NOW)
            waiters[0].cancel()  # it has been granted the key, and does not know yet
        results = await asyncio.gather(*waiters, return_exceptions=True)
        assert [isinstance(result, asyncio.CancelledError) for result in results] == [True, True, False, False]
        assert len(seen) == 2
        async with hold(backend, timeout=1.0):
            assert backend.statistics().waiting == 0

    async def test_a_cancelled_commit_has_not_begun_or_is_complete(self, backend: Backend) -> None:
        for steps in range(40):
            key, large = f"{steps:064x}", b"new" * 1000
            async with create(backend, b"old", key) as held:
                commit = _start(held.commit(large, now=_NOW + 1))
                for _ in range(steps):
                    await asyncio.sleep(0)
                commit.cancel()
                with suppress(asyncio.CancelledError):
                    await commit
                found = await backend.read(key)
                assert found in (Record(b"old", 1, _NOW, _NOW), Record(large, 2, _NOW, _NOW + 1))
                last = await held.commit(b"last" * 100, now=_NOW + 2)
                assert last.version == (2 if found and found.version == 1 else 3)
                assert await backend.read(key) == last

    # Giving back.

    async def test_release_moves_the_time_of_last_use(self, backend: Backend, other: Backend) -> None:
        await put(backend)
        async with hold(backend) as held:
            await held.release(now=_NOW + 5)
            assert await other.read(KEY) == Record(b"payload", 1, _NOW, _NOW + 5)

    @pytest.mark.parametrize("end", ["release", "delete"])
    async def test_a_key_that_was_given_back_can_not_be_changed(self, backend: Backend, end: str) -> None:
        await put(backend)
        async with hold(backend) as held:
            await (held.release(now=_NOW) if end == "release" else held.delete())
            before = await backend.read(KEY)
            async with hold(backend, create=True):  # another has it, and release is not in its way
                await held.release(now=_NOW + 1)
                with pytest.raises(LockLostError):
                    await held.commit(b"late", now=_NOW + 1)
                with pytest.raises(LockLostError):
                    await held.delete()
                with pytest.raises(LockTimeoutError):
                    await _start(_look(backend, [], timeout=0.001))
            await held.release(now=_NOW + 1)
        assert await backend.read(KEY) == before

    async def test_the_end_of_the_block_gives_the_key_back(self, backend: Backend, other: Backend) -> None:
        for make in (create, hold):
            with pytest.raises(ZeroDivisionError):
                async with make(backend) as held:
                    raise ZeroDivisionError
            with pytest.raises(LockLostError):
                await held.commit(b"late", now=_NOW + 1)
            async with hold(other, timeout=1.0) as held:
                assert held.record == Record(b"payload", 1, _NOW, _NOW)

    # Expiry.

    @pytest.mark.parametrize("expiry", [Expiry(idle_timeout=60.0), Expiry(lifetime=60.0), Expiry(60.0, 90.0)])
    async def test_expired_records_are_deleted_unless_held(
        self, backend: Backend, other: Backend, expiry: Expiry
    ) -> None:
        old = [f"{number:064x}" for number in range(20)]
        for key in old:
            await put(backend, key=key)
        await put(backend, now=_NOW + 1)
        async with hold(backend, old[0]), hold(other, old[1]):
            assert sum([await handle.delete_expired(expiry, now=_NOW + 60) for handle in (backend, other)]) == 18
            assert sorted(await _keys(other)) == sorted([*old[:2], KEY])
        at_once = await asyncio.gather(*(handle.delete_expired(expiry, now=_NOW + 60) for handle in (backend, other)))
        assert (sum(at_once), await _keys(backend)) == (2, [KEY])

    async def test_a_record_in_use_is_deleted_when_its_lifetime_is_over(self, backend: Backend) -> None:
        await put(backend)
        await backend.touch(KEY, now=_NOW + 59)
        assert await backend.delete_expired(Expiry(60.0, 90.0), now=_NOW + 89) == 0
        assert await backend.delete_expired(Expiry(60.0, 90.0), now=_NOW + 90) == 1
        assert await backend.delete_expired(Expiry(), now=1e12) == 0

    # Closing, and several event loops.

    async def test_a_closed_backend_can_not_be_used_until_it_is_opened(self, backend: Backend) -> None:
        await put(backend)
        await backend.aclose()
        await backend.aclose()
        uses = (
            lambda: backend.read(KEY),
            lambda: put(backend, key=OTHER_KEY),
            lambda: _look(backend, []),
            lambda: backend.touch(KEY, now=_NOW),
            lambda: backend.delete_expired(Expiry(1.0), now=_NOW + 9),
            lambda: _keys(backend),
        )
        for use in uses:
            with pytest.raises(StoreError):
                await use()
        await backend.open()
        assert await backend.read(KEY) == Record(b"payload", 1, _NOW, _NOW)
        await put(backend, key=OTHER_KEY)

    async def test_closing_takes_the_locks_of_those_who_still_hold(self, backend: Backend, other: Backend) -> None:
        async with create(backend) as held:
            await backend.aclose()
            await backend.open()
            with pytest.raises(LockLostError):
                await held.commit(b"late", now=_NOW)
            async with hold(backend, timeout=1.0) as again:
                with pytest.raises(LockLostError):
                    await held.commit(b"late", now=_NOW)
                await held.release(now=_NOW)
                await again.commit(b"in time", now=_NOW)
        assert await other.read(KEY) == Record(b"in time", 2, _NOW, _NOW)

    async def test_event_loops_may_use_a_backend_one_after_another(self, backend: Backend) -> None:
        for _ in range(3):
            await _in_another_loop(lambda: _count(backend, 5, tasks=3))
            await _count(backend, 5, tasks=3)
        assert await backend.read(KEY) == Record(b"90", 90, _NOW, _NOW)

    async def test_event_loops_in_several_threads_lose_no_update(self, backend: Backend, other: Backend) -> None:
        handles = (backend, backend, other)
        await asyncio.gather(*(_in_another_loop(lambda handle=handle: _count(handle, 30)) for handle in handles))
        assert await backend.read(KEY) == Record(b"180", 180, _NOW, _NOW)
