"""The contract of a backend, as a test class: see `asyncsess.backends.base`."""
# ruff: noqa: D102 - the names of the tests are the sentences

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager, suppress
from datetime import UTC, datetime
from typing import Any, Final

import pytest

from asyncsess.backends.base import Backend, Found, Held, HeldName, Record
from asyncsess.errors import DeadlockError, Holder, LockLostError, LockTimeoutError, StoreError
from asyncsess.expiry import Expiry
from asyncsess.testing.clock import until

KEY: Final = "0a" * 32
OTHER_KEY: Final = "b1" * 32
NOW: Final = 1_700_000_000.0
Holding = AbstractAsyncContextManager[Held]


def create(backend: Backend, payload: bytes = b"payload", key: str = KEY, now: float = NOW) -> Holding:
    """Create a record as the contract does."""
    return backend.create(key, payload, created_at=now, now=now, holder=_holder("the maker"))


def hold(
    backend: Backend, key: str = KEY, *, timeout: float = 30.0, lease: float = math.inf, create: bool = False
) -> Holding:
    """Hold a key as the contract does."""
    return backend.hold(key, timeout=timeout, holder=_holder("the holder"), lease=lease, create=create)


def hold_name(
    backend: Backend, name: str, *, key: str = KEY, timeout: float = 30.0
) -> AbstractAsyncContextManager[HeldName]:
    """Hold a name as the contract does."""
    return backend.hold_name(key, name, timeout=timeout, holder=_holder("the holder"))


async def put(backend: Backend, payload: bytes = b"payload", *, key: str = KEY, now: float = NOW) -> None:
    """Leave a record behind."""
    async with create(backend, payload, key, now):
        pass


def _holder(task: str) -> Holder:
    return Holder(os.getpid(), task, datetime.now(UTC), "contract.py:1")


class BackendContract:
    """What `asyncsess.backends.base` promises, as tests.

        class TestMyBackend(BackendContract):
            @pytest.fixture
            async def backend(self):
                backend = MyBackend()
                await backend.open()
                yield backend
                await backend.aclose()

    Override `other` too if several backend objects, such as those of several processes, can share their records.
    """

    @pytest.fixture
    def other(self, backend: Backend) -> Backend:
        """Return another open backend with the same records and locks, or the same one if there is no other."""
        return backend

    async def test_each_commit_is_at_once_the_next_version_for_all(self, backend: Backend, other: Backend) -> None:
        payloads = (b"one", b"", b"\0\xff", b"4" * 300, b"5" * 100_000, b"six", b"7" * 20_000, b"8" * 20_001)
        snapshots = []
        async with create(backend, payloads[0]) as held:
            for version, payload in enumerate(payloads, 1):
                committed = held.record if version == 1 else await held.commit(payload, now=NOW + version - 1)
                snapshots += [await backend.read(KEY), await other.read(KEY)]  # a reader does not wait for the holder
                assert [held.record, *snapshots[-2:]] == [committed] * 3
        expected = [Record(payload, version + 1, NOW, NOW + version) for version, payload in enumerate(payloads)]
        assert snapshots[::2] == expected

    async def test_create_never_overwrites(self, backend: Backend, other: Backend) -> None:
        await put(backend, b"theirs")
        for handle in (backend, other):
            with pytest.raises(StoreError):
                await put(handle, b"mine", now=NOW + 9)
            assert await backend.read(KEY) == Record(b"theirs", 1, NOW, NOW)
        await _look(other, [], timeout=1.0)  # the lock is free

    async def test_keys_are_those_that_have_a_record(self, backend: Backend, other: Backend) -> None:
        await put(backend)
        await put(backend, key=OTHER_KEY, now=1.0)
        async with hold(backend, "c2" * 32, create=True):
            assert sorted(await _keys(backend)) == sorted(await _keys(other)) == [KEY, OTHER_KEY]

    async def test_touch_moves_the_last_use_only_forward_and_revives_nothing(self, backend: Backend) -> None:
        await backend.touch(KEY, now=NOW)
        await put(backend)
        for now, expected in ((NOW + 7, NOW + 7), (NOW + 3, NOW + 7), (NOW + 8, NOW + 8)):
            await backend.touch(KEY, now=now)
            assert await backend.read(KEY) == Record(b"payload", 1, NOW, expected)
        async with hold(backend) as held:
            await backend.touch(KEY, now=NOW + 9)  # does not wait for the holder, who notes the use itself
            await held.delete()
        assert (await backend.read(KEY), await _keys(backend)) == (None, [])

    async def test_holders_come_in_the_order_in_which_they_asked(self, backend: Backend) -> None:
        async with asyncio.TaskGroup() as tasks, hold(backend, create=True):
            waiters = []
            for name in (b"a", b"b", b"c", b"d", b"e"):
                waiters.append(tasks.create_task(_append(backend, name)))
                await until(lambda: backend.statistics().waiting == len(waiters))
        assert await backend.read(KEY) == Record(b"abcde", 5, NOW, NOW)

    async def test_a_holder_excludes_all_others_of_the_same_key(self, backend: Backend, other: Backend) -> None:
        await put(backend)
        seen: list[Found] = []
        async with asyncio.TaskGroup() as tasks, hold(backend) as held, hold(other, OTHER_KEY, create=True):
            for handle in (backend, other):
                tasks.create_task(_look(handle, seen))
            await until(lambda: _waiting(backend, other) == 2)
            await held.commit(b"mine", now=NOW + 1)
            assert seen == []
        assert [isinstance(record, Record) and record.payload for record in seen] == [b"mine"] * 2

    async def test_only_a_commit_leaves_something_under_a_new_key(self, backend: Backend, other: Backend) -> None:
        seen: list[Found] = []
        async with asyncio.TaskGroup() as tasks, hold(backend, create=True) as held:
            tasks.create_task(_look(other, seen, create=True))
            await until(lambda: _waiting(backend, other) == 1)
            assert (held.record, await other.read(KEY), seen) == (None, None, [])
        async with hold(backend) as held:
            assert (held.record, seen, await other.read(KEY), await _keys(backend)) == (None, [None], None, [])
        async with hold(backend, create=True) as held:
            assert await held.commit(b"first", now=NOW) == await other.read(KEY) == Record(b"first", 1, NOW, NOW)
            await held.commit(b"second", now=NOW + 1)
        assert await other.read(KEY) == Record(b"second", 2, NOW, NOW + 1)

    async def test_waiters_of_a_deleted_record_find_none(self, backend: Backend, other: Backend) -> None:
        await put(backend)
        seen: list[Found] = []
        async with hold(backend) as held:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_look(backend, seen))
                tasks.create_task(_look(other, seen, create=True))
                await until(lambda: _waiting(backend, other) == 2)
                await held.delete()  # and the lock with it
            assert (seen, await backend.read(KEY), await _keys(backend)) == ([None, None], None, [])
        async with create(backend, b"new", now=NOW + 5) as held:
            assert held.record == Record(b"new", 1, NOW + 5, NOW + 5)

    @pytest.mark.parametrize("who", ["the holder", "the holder of what is new", "the maker"])
    async def test_a_timeout_names_the_holder(self, backend: Backend, other: Backend, who: str) -> None:
        if who == "the holder":
            await put(backend)
        async with asyncio.TaskGroup() as tasks, create(backend) if "maker" in who else hold(backend, create=True):
            for handle in (backend, other):
                with pytest.raises(LockTimeoutError) as caught:
                    await asyncio.create_task(_look(handle, [], create=True, timeout=0.001))
                assert f"process {os.getpid()}, task '{who[:10]}" in str(caught.value)
                assert caught.value.waited >= 0.001
                assert _waiting(backend, other) == 0
            tasks.create_task(_look(backend, []))  # comes to its turn

    async def test_a_task_that_would_wait_for_itself_is_told(self, backend: Backend) -> None:
        async with create(backend) as held:
            with pytest.raises(DeadlockError):
                await hold(backend).__aenter__()
            await held.commit(b"still mine", now=NOW)

    async def test_cancelled_waiters_leave_the_queue_intact(self, backend: Backend) -> None:
        seen: list[Found] = []
        async with hold(backend, create=True) as held:
            waiters = [asyncio.create_task(_look(backend, seen, create=True)) for _ in range(4)]
            await until(lambda: backend.statistics().waiting == 4)
            waiters[1].cancel()
            await until(lambda: backend.statistics().waiting == 3)
            await held.release(now=NOW)
            waiters[0].cancel()  # it has been granted the key, and does not know yet
        results = await asyncio.gather(*waiters, return_exceptions=True)
        assert [isinstance(result, asyncio.CancelledError) for result in results] == [True, True, False, False]
        assert (len(seen), backend.statistics().holding, backend.statistics().waiting) == (2, 0, 0)

    async def test_a_cancelled_commit_has_not_begun_or_is_complete(self, backend: Backend) -> None:
        old, new, steps, was_in_time = Record(b"old", 1, NOW, NOW), Record(b"new" * 999, 2, NOW, NOW + 1), 0, False
        while not was_in_time:
            async with create(backend, b"old") as held:
                commit = asyncio.create_task(held.commit(new.payload, now=NOW + 1))
                for _ in range(steps):
                    await asyncio.sleep(0)
                was_in_time = not commit.cancel()
                with suppress(asyncio.CancelledError):
                    await commit
                found = await backend.read(KEY) or Record(b"lost", 0, NOW, NOW)
                assert found in ([new] if was_in_time else [old, new])
                last = await held.commit(b"last" * 99, now=NOW + 2)
                assert last == await backend.read(KEY) == Record(b"last" * 99, found.version + 1, NOW, NOW + 2)
                await held.delete()
            steps += 1 + steps // 8

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
                    await asyncio.create_task(_look(backend, [], timeout=0.001))
                assert await backend.read(KEY) == left

    async def test_a_holder_is_followed_when_its_lease_is_over(self, backend: Backend, other: Backend) -> None:
        await put(backend)
        for handle, version in ((backend, 1), (other, 3)):
            async with hold(backend, lease=0.02) as held:
                await held.commit(b"before", now=NOW)
                await asyncio.create_task(_append(handle, b" and after"))
                for change in (held.commit(b"late", now=NOW), held.renew(1.0), held.delete()):
                    with pytest.raises(LockLostError):
                        await change
                await held.release(now=NOW + 1)
            assert await other.read(KEY) == Record(b"before and after", version + 2, NOW, NOW)

    async def test_a_holder_that_nobody_follows_may_be_late(self, backend: Backend, other: Backend) -> None:
        await put(backend)
        async with hold(backend, lease=0.01) as held:
            await asyncio.sleep(0.03)
            await held.commit(b"late", now=NOW)
            await held.renew(3600.0)
            with pytest.raises(LockTimeoutError):
                await asyncio.create_task(_look(other, [], timeout=0.05))
        assert await other.read(KEY) == Record(b"late", 2, NOW, NOW)

    async def test_a_name_is_held_beside_its_key_and_other_names(self, backend: Backend, other: Backend) -> None:
        await put(backend)
        for handle in (backend, other):
            async with (
                hold_name(backend, "a"),
                hold_name(handle, "b", timeout=0),
                hold_name(handle, "a", key=OTHER_KEY, timeout=0),
                hold(handle, timeout=0) as held,
            ):
                await held.commit(b"new", now=NOW)
        assert await backend.read(KEY) == Record(b"new", 3, NOW, NOW)

    async def test_holders_of_a_name_exclude_each_other(self, backend: Backend, other: Backend) -> None:
        inside = most = count = 0

        async def enter(handle: Backend) -> None:
            nonlocal inside, most, count
            async with hold_name(handle, "a"):
                inside, count = inside + 1, count + 1
                most = max(most, inside)
                await asyncio.sleep(0)
                inside -= 1

        await asyncio.gather(*(enter(handle) for _ in range(50) for handle in (backend, other)))
        assert (most, count, backend.statistics().holding, other.statistics().holding) == (1, 100, 0, 0)

    async def test_holders_of_a_name_come_in_the_order_in_which_they_asked(self, backend: Backend) -> None:
        came: list[int] = []

        async def enter(number: int) -> None:
            async with hold_name(backend, "a"):
                came.append(number)

        async with asyncio.TaskGroup() as tasks, hold_name(backend, "a"):
            for number in range(5):
                tasks.create_task(enter(number))
                await until(lambda: backend.statistics().waiting == number + 1)  # noqa: B023
        assert came == [*range(5)]

    async def test_waiting_for_a_name_ends_in_time_and_names_its_holder(self, backend: Backend, other: Backend) -> None:
        async def enter(handle: Backend, timeout: float) -> None:
            async with hold_name(handle, "a", timeout=timeout):
                raise AssertionError

        async with hold_name(backend, "a"):
            for handle in (backend, other):
                for timeout in (0.0, 0.02):
                    with pytest.raises(LockTimeoutError) as caught:
                        await asyncio.create_task(enter(handle, timeout))
                    assert caught.value.holder is not None
                    assert caught.value.holder.task == "the holder"
            with pytest.raises(DeadlockError):
                await enter(backend, 30.0)
        async with hold_name(other, "a", timeout=0):
            pass

    async def test_cancelled_waiters_for_a_name_leave_it_free(self, backend: Backend, other: Backend) -> None:
        async def enter(handle: Backend) -> None:
            async with hold_name(handle, "a"):
                raise AssertionError

        async with hold_name(backend, "a"):
            waiters = [asyncio.create_task(enter(handle)) for handle in (backend, other, backend)]
            await until(lambda: _waiting(backend, other) == 3)
            for waiter in waiters:
                waiter.cancel()
            await asyncio.wait(waiters)
        for handle in (backend, other):
            async with hold_name(handle, "a", timeout=0):
                pass

    async def test_the_end_of_the_block_gives_the_key_back(self, backend: Backend, other: Backend) -> None:
        for enter in (create(backend), hold(backend)):
            held = await enter.__aenter__()
            await enter.__aexit__(ZeroDivisionError, ZeroDivisionError(), None)
            with pytest.raises(LockLostError):
                await held.commit(b"late", now=NOW + 1)
            await _look(other, [], timeout=1.0)

    @pytest.mark.parametrize("expiry", [Expiry(idle_timeout=60.0), Expiry(lifetime=60.0), Expiry(60.0, 90.0)])
    async def test_what_has_expired_goes_unless_held(self, backend: Backend, other: Backend, expiry: Expiry) -> None:
        old = [f"{number:064x}" for number in range(9)]
        for key in old:
            await put(backend, key=key)
        await put(backend, now=NOW + 1)
        async with hold(backend, old[0]) as first, hold(other, old[1]) as second:
            assert await backend.delete_expired(expiry, now=NOW + 60) == 7
            assert sorted(await _keys(other)) == [*old[:2], KEY]
            for held in (first, second):
                await held.release(now=NOW)
        at_once = await asyncio.gather(*(handle.delete_expired(expiry, now=NOW + 60) for handle in (backend, other)))
        assert (sum(at_once), await _keys(backend)) == (2, [KEY])

    async def test_the_lifetime_ends_also_what_is_in_use(self, backend: Backend) -> None:
        await put(backend)
        await backend.touch(KEY, now=NOW + 59)
        assert await backend.delete_expired(Expiry(), now=1e12) == 0
        assert await backend.delete_expired(Expiry(60.0, 90.0), now=NOW + 89) == 0
        assert await backend.delete_expired(Expiry(60.0, 90.0), now=NOW + 90) == 1

    async def test_a_closed_backend_can_not_be_used_until_it_is_opened(self, backend: Backend) -> None:
        await put(backend)
        await backend.aclose()
        for use in (
            lambda: backend.read(KEY),
            lambda: put(backend, key=OTHER_KEY),
            lambda: _look(backend, []),
            lambda: backend.touch(KEY, now=NOW),
            lambda: backend.delete_expired(Expiry(1.0), now=NOW + 9),
            lambda: _keys(backend),
        ):
            with pytest.raises(StoreError):
                await use()
        await backend.open()
        assert await backend.read(KEY) == Record(b"payload", 1, NOW, NOW)

    async def test_closing_takes_the_locks_of_those_who_still_hold(self, backend: Backend) -> None:
        async with create(backend) as held:
            await backend.aclose()
            await backend.open()
            async with hold(backend, timeout=1.0) as again:
                with pytest.raises(LockLostError):
                    await held.commit(b"late", now=NOW)
                await held.release(now=NOW)
                await again.commit(b"in time", now=NOW)
        assert await backend.read(KEY) == Record(b"in time", 2, NOW, NOW)

    async def test_event_loops_one_after_another_may_use_a_backend(self, backend: Backend) -> None:
        for run in (_in_another_loop, asyncio.gather) * 3:
            await run(_append(backend, b"+", 5), _append(backend, b"+", 5))
        assert await backend.read(KEY) == Record(b"+" * 60, 60, NOW, NOW)

    async def test_event_loops_in_several_threads_lose_no_update(self, backend: Backend, other: Backend) -> None:
        handles = (backend, backend, other)
        works = [[_append(handle, b"+", 30), _append(handle, b"+", 30)] for handle in handles]
        await asyncio.gather(*(_in_another_loop(*work) for work in works))
        assert await backend.read(KEY) == Record(b"+" * 180, 180, NOW, NOW)


async def _look(backend: Backend, seen: list[Found], *, create: bool = False, timeout: float = 30.0) -> None:
    async with hold(backend, timeout=timeout, create=create) as held:
        seen.append(held.record)


async def _keys(backend: Backend) -> list[str]:
    return [key async for key in backend.keys()]  # noqa: SIM118 - no mapping


def _waiting(backend: Backend, other: Backend) -> int:
    return sum(each.statistics().waiting for each in {id(backend): backend, id(other): other}.values())


async def _append(backend: Backend, text: bytes, times: int = 1) -> None:
    for _ in range(times):
        async with hold(backend, create=True) as held:
            before = held.record.payload if isinstance(held.record, Record) else b""
            await asyncio.sleep(0)
            await held.commit(before + text, now=NOW)


async def _in_another_loop(*coroutines: Coroutine[Any, Any, None]) -> None:
    async def work() -> None:
        await asyncio.gather(*coroutines)

    await asyncio.to_thread(asyncio.run, work())
