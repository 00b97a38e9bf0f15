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
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

import pytest

from asyncsess.backends.base import Backend, Held, Record
from asyncsess.errors import DeadlockError, Holder, LockLostError, LockTimeoutError, StoreError
from asyncsess.expiry import Expiry
from asyncsess.stores import MemoryStore

T = TypeVar("T")

KEY: Final = "0a" * 32
OTHER_KEY: Final = "b1" * 32
NOW: Final = 1_700_000_000.0
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
        return f"FakeClock({self.now})"

    def advance(self, by: float | timedelta) -> None:
        """Move the clock forward, or back by a negative duration."""
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
    """Let other tasks run until something is true, such as ``lambda: store.statistics().waiting == 1``.

    Raises:
        TimeoutError: It was not within half a minute.
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

    Override `other` as well if several backend objects, such as those of several processes, can share their records.
    """

    @pytest.fixture
    def other(self, backend: Backend) -> Backend:
        """Return another open backend with the same records and locks, or the same one if there is no other."""
        return backend

    # Records.

    async def test_each_commit_is_at_once_the_next_version_for_every_reader(
        self, backend: Backend, other: Backend
    ) -> None:
        payloads = (b"one", b"", b"\0\xff", b"4" * 300, b"5" * 100_000, b"six", b"7" * 20_000, b"8" * 20_001)
        snapshots = []
        async with create(backend, payloads[0]) as held:
            for version, payload in enumerate(payloads, 1):
                committed = held.record if version == 1 else await held.commit(payload, now=NOW + version - 1)
                assert committed == Record(payload, version, NOW, NOW + version - 1)
                assert held.record == committed
                snapshots += [await backend.read(KEY), await other.read(KEY)]  # while it is held
                assert snapshots[-2:] == [committed] * 2
        assert [snapshot.payload for snapshot in snapshots[::2] if snapshot] == list(payloads)

    async def test_create_never_overwrites(self, backend: Backend, other: Backend) -> None:
        await put(backend, b"theirs")
        for handle in (backend, other):
            with pytest.raises(StoreError):
                await put(handle, b"mine", now=NOW + 9)
        async with hold(other, timeout=1.0) as held:  # and the lock is free
            assert held.record == await backend.read(KEY) == Record(b"theirs", 1, NOW, NOW)

    async def test_a_key_without_a_record_has_nothing_to_read_or_hold(self, backend: Backend) -> None:
        assert await backend.read(KEY) is None
        async with hold(backend) as held:
            assert held.record is None
        assert await _keys(backend) == []

    async def test_keys_lists_what_has_a_record_and_nothing_else(self, backend: Backend, other: Backend) -> None:
        await put(backend)
        await put(backend, key=OTHER_KEY, now=1.0)
        async with hold(backend, "c2" * 32, create=True):
            assert sorted(await _keys(backend)) == sorted(await _keys(other)) == [KEY, OTHER_KEY]

    async def test_touch_moves_the_time_of_last_use_forward_only_and_revives_nothing(
        self, backend: Backend, other: Backend
    ) -> None:
        async with create(backend) as held:
            for now, expected in ((NOW + 7, NOW + 7), (NOW + 3, NOW + 7), (NOW + 8, NOW + 8)):
                await other.touch(KEY, now=now)  # needs no lock
                assert await backend.read(KEY) == Record(b"payload", 1, NOW, expected)
            await held.delete()
        await backend.touch(KEY, now=NOW + 9)
        assert (await backend.read(KEY), await _keys(backend)) == (None, [])

    # Holding.

    async def test_holders_come_in_the_order_in_which_they_asked(self, backend: Backend) -> None:
        order: list[int] = []

        async def visit(number: int) -> None:
            async with hold(backend, create=True):
                order.append(number)

        async with asyncio.TaskGroup() as tasks, hold(backend, create=True):
            for number in range(5):
                tasks.create_task(visit(number))
                await until(lambda: backend.statistics().waiting == len(tasks._tasks))
        assert order == [0, 1, 2, 3, 4]

    async def test_a_holder_excludes_every_other_of_the_same_key_only(self, backend: Backend, other: Backend) -> None:
        await put(backend)
        seen: list[Record | None] = []
        async with hold(backend) as held, hold(other, OTHER_KEY, create=True):
            waiters = [_start(_look(handle, seen)) for handle in (backend, other)]
            await until(lambda: _queue(backend, other) == 2)
            committed = await held.commit(b"mine", now=NOW + 1)
            assert seen == []
        await asyncio.gather(*waiters)
        assert [record and record.payload for record in seen] == [committed.payload] * 2

    async def test_a_missing_key_is_held_and_only_a_commit_leaves_something(
        self, backend: Backend, other: Backend
    ) -> None:
        seen: list[Record | None] = []
        async with hold(backend, create=True) as held:
            waiter = _start(_look(other, seen, create=True))
            await until(lambda: _queue(backend, other) == 1)
            assert (held.record, await other.read(KEY), seen) == (None, None, [])
        await waiter
        assert (seen, await backend.read(KEY), await _keys(backend)) == ([None], None, [])
        async with hold(backend, create=True) as held:
            assert await held.commit(b"first", now=NOW) == await other.read(KEY) == Record(b"first", 1, NOW, NOW)
            await held.commit(b"second", now=NOW + 1)
        assert await other.read(KEY) == Record(b"second", 2, NOW, NOW + 1)

    async def test_waiters_of_a_deleted_record_find_none(self, backend: Backend, other: Backend) -> None:
        await put(backend)
        seen: list[Record | None] = []
        async with hold(backend) as held:
            waiters = [_start(_look(backend, seen)), _start(_look(other, seen, create=True))]
            await until(lambda: _queue(backend, other) == 2)
            await held.delete()
            await asyncio.gather(*waiters)  # the lock went with the record, although this block has not ended
        assert (seen, await backend.read(KEY), await _keys(backend)) == ([None, None], None, [])
        async with create(backend, b"new", now=NOW + 5) as held:
            assert held.record == Record(b"new", 1, NOW + 5, NOW + 5)

    async def test_a_timeout_names_the_holder_and_leaves_the_queue(self, backend: Backend, other: Backend) -> None:
        seen: list[Record | None] = []
        async with hold(backend, create=True, name="the slow one"):
            for handle in (backend, other):
                with pytest.raises(LockTimeoutError) as caught:
                    await _start(_look(handle, seen, create=True, timeout=0.001))
                holder = caught.value.holder
                assert holder is not None
                assert (holder.pid, holder.task, holder.where) == (os.getpid(), "the slow one", "contract.py:1")
                assert isinstance(caught.value, TimeoutError)
                assert caught.value.waited >= 0.001
                assert _queue(backend, other) == 0
            waiter = _start(_look(backend, seen))
            await until(lambda: _queue(backend, other) == 1)
            assert seen == []
        await waiter

    async def test_a_task_that_would_wait_for_itself_is_told_at_once(self, backend: Backend) -> None:
        await put(backend)
        async with hold(backend) as held:
            with pytest.raises(DeadlockError):
                await hold(backend).__aenter__()
            await held.commit(b"still mine", now=NOW)

    async def test_cancelled_waiters_leave_the_queue_intact(self, backend: Backend) -> None:
        seen: list[Record | None] = []
        async with hold(backend, create=True) as held:
            waiters = [_start(_look(backend, seen, create=True)) for _ in range(4)]
            await until(lambda: backend.statistics().waiting == 4)
            waiters[1].cancel()
            await until(lambda: backend.statistics().waiting == 3)
            await held.release(now=NOW)
            waiters[0].cancel()  # it has been granted the key, and does not know yet
        results = await asyncio.gather(*waiters, return_exceptions=True)
        assert [isinstance(result, asyncio.CancelledError) for result in results] == [True, True, False, False]
        async with hold(backend, timeout=1.0):
            assert (len(seen), backend.statistics().waiting) == (2, 0)

    async def test_a_cancelled_commit_has_not_begun_or_is_complete(self, backend: Backend) -> None:
        for steps in range(40):
            key, large = f"{steps:064x}", b"new" * 1000
            async with create(backend, b"old", key) as held:
                commit = _start(held.commit(large, now=NOW + 1))
                for _ in range(steps):
                    await asyncio.sleep(0)
                commit.cancel()
                with suppress(asyncio.CancelledError):
                    await commit
                found = await backend.read(key)
                assert found in (Record(b"old", 1, NOW, NOW), Record(large, 2, NOW, NOW + 1))
                last = await held.commit(b"last" * 100, now=NOW + 2)
                assert last == Record(b"last" * 100, found.version + 1 if found else 0, NOW, NOW + 2)
                assert await backend.read(key) == last

    # Giving back.

    @pytest.mark.parametrize("end", ["release", "delete"])
    async def test_a_key_that_was_given_back_can_not_be_changed(self, backend: Backend, end: str) -> None:
        await put(backend)
        async with hold(backend) as held:
            await (held.release(now=NOW + 5) if end == "release" else held.delete())
            left = await backend.read(KEY)
            assert left == (Record(b"payload", 1, NOW, NOW + 5) if end == "release" else None)
            async with hold(backend, create=True):  # another has it, and keeps it
                await held.release(now=NOW + 9)
                for late in (held.commit(b"late", now=NOW + 9), held.delete()):
                    with pytest.raises(LockLostError):
                        await late
                with pytest.raises(LockTimeoutError):
                    await _start(_look(backend, [], timeout=0.001))
                assert await backend.read(KEY) == left

    @pytest.mark.parametrize("is_new", [True, False])
    async def test_the_end_of_the_block_gives_the_key_back(
        self, backend: Backend, other: Backend, is_new: bool
    ) -> None:
        if not is_new:
            await put(backend)
        with pytest.raises(ZeroDivisionError):
            async with create(backend) if is_new else hold(backend) as held:
                raise ZeroDivisionError
        with pytest.raises(LockLostError):
            await held.commit(b"late", now=NOW + 1)
        async with hold(other, timeout=1.0) as held:
            assert held.record == Record(b"payload", 1, NOW, NOW)

    # Expiry.

    @pytest.mark.parametrize("expiry", [Expiry(idle_timeout=60.0), Expiry(lifetime=60.0), Expiry(60.0, 90.0)])
    async def test_expired_records_are_deleted_unless_held(
        self, backend: Backend, other: Backend, expiry: Expiry
    ) -> None:
        old = [f"{number:064x}" for number in range(20)]
        for key in old:
            await put(backend, key=key)
        await put(backend, now=NOW + 1)
        async with hold(backend, old[0]), hold(other, old[1]):
            assert await backend.delete_expired(expiry, now=NOW + 60) == 18
            assert sorted(await _keys(other)) == [*old[:2], KEY]
        at_once = await asyncio.gather(*(handle.delete_expired(expiry, now=NOW + 60) for handle in (backend, other)))
        assert (sum(at_once), await _keys(backend)) == (2, [KEY])

    async def test_a_record_in_use_is_deleted_when_its_lifetime_is_over(self, backend: Backend) -> None:
        await put(backend)
        await backend.touch(KEY, now=NOW + 59)
        assert await backend.delete_expired(Expiry(), now=1e12) == 0
        assert await backend.delete_expired(Expiry(60.0, 90.0), now=NOW + 89) == 0
        assert await backend.delete_expired(Expiry(60.0, 90.0), now=NOW + 90) == 1

    # Closing, and several event loops.

    async def test_a_closed_backend_can_not_be_used_until_it_is_opened(self, backend: Backend) -> None:
        await put(backend)
        await backend.aclose()
        await backend.aclose()
        uses: tuple[Callable[[], Awaitable[object]], ...] = (
            lambda: backend.read(KEY),
            lambda: put(backend, key=OTHER_KEY),
            lambda: _look(backend, []),
            lambda: backend.touch(KEY, now=NOW),
            lambda: backend.delete_expired(Expiry(1.0), now=NOW + 9),
            lambda: _keys(backend),
        )
        for use in uses:
            with pytest.raises(StoreError):
                await use()
        await backend.open()
        assert await backend.read(KEY) == Record(b"payload", 1, NOW, NOW)

    async def test_closing_takes_the_locks_of_those_who_still_hold(self, backend: Backend, other: Backend) -> None:
        async with create(backend) as held:
            await backend.aclose()
            await backend.open()
            async with hold(backend, timeout=1.0) as again:
                with pytest.raises(LockLostError):
                    await held.commit(b"late", now=NOW)
                await held.release(now=NOW)
                await again.commit(b"in time", now=NOW)
        assert await other.read(KEY) == Record(b"in time", 2, NOW, NOW)

    async def test_event_loops_one_after_another_may_use_a_backend(self, backend: Backend) -> None:
        for _ in range(3):
            await _in_another_loop(lambda: _count(backend, 5))
            await _count(backend, 5)
        assert await backend.read(KEY) == Record(b"60", 60, NOW, NOW)

    async def test_event_loops_in_several_threads_lose_no_update(self, backend: Backend, other: Backend) -> None:
        handles = (backend, backend, other)
        await asyncio.gather(*(_in_another_loop(lambda handle=handle: _count(handle, 30)) for handle in handles))
        assert await backend.read(KEY) == Record(b"180", 180, NOW, NOW)


def create(
    backend: Backend, payload: bytes = b"payload", key: str = KEY, now: float = NOW
) -> AbstractAsyncContextManager[Held]:
    """Create a record as the contract does."""
    return backend.create(key, payload, created_at=now, holder=_holder())


def hold(
    backend: Backend, key: str = KEY, *, timeout: float = _PATIENCE, create: bool = False, name: str = "contract"
) -> AbstractAsyncContextManager[Held]:
    """Hold a key as the contract does."""
    return backend.hold(key, timeout=timeout, holder=_holder(name), create=create)


async def put(backend: Backend, payload: bytes = b"payload", *, key: str = KEY, now: float = NOW) -> None:
    """Leave a record behind."""
    async with create(backend, payload, key, now):
        pass


def _holder(name: str = "contract") -> Holder:
    return Holder(os.getpid(), name, datetime.now(UTC), "contract.py:1")


async def _look(
    backend: Backend, seen: list[Record | None], *, create: bool = False, timeout: float = _PATIENCE
) -> None:
    async with hold(backend, timeout=timeout, create=create) as held:
        seen.append(held.record)


async def _keys(backend: Backend) -> list[str]:
    return [key async for key in backend.keys()]


def _queue(backend: Backend, other: Backend) -> int:
    """Return how many tasks wait for a key that one task of `backend` holds."""
    ...


def _start(coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    return asyncio.create_task(coroutine)


async def _in_another_loop(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    def run() -> None:
        with asyncio.Runner(loop_factory=kind) as runner:
            runner.run(work())

    kind = type(asyncio.get_running_loop())
    await asyncio.to_thread(run)


async def _count(backend: Backend, times: int, tasks: int = 2) -> None:
    """Increment a record so many times by each of so many tasks."""

    async def count() -> None:
        for _ in range(times):
            async with hold(backend, create=True) as held:
                number = int(held.record.payload) if held.record else 0
                await asyncio.sleep(0)
                await held.commit(b"%d" % (number + 1), now=NOW)

    await asyncio.gather(*(count() for _ in range(tasks)))
