"""`HoldContract`: what the contract promises of the exclusive right to a key."""
# ruff: noqa: D102 - the names of the tests are the sentences

from __future__ import annotations

import asyncio
import os

import pytest

from asyncsess.backends.base import Backend, Found, Record, Tombstone
from asyncsess.errors import DeadlockError, LockLostError, LockTimeoutError
from asyncsess.testing.clock import until
from asyncsess.testing.contract.helpers import (
    KEY,
    NOW,
    OTHER_KEY,
    append,
    create,
    hold,
    in_another_loop,
    keys_of,
    look,
    put,
    waiting,
)


class HoldContract:
    """What the contract promises of the exclusive right to a key."""

    async def test_holders_come_in_the_order_in_which_they_asked(self, backend: Backend) -> None:
        async with asyncio.TaskGroup() as tasks, hold(backend, create=True):
            waiters = []
            for name in (b"a", b"b", b"c", b"d", b"e"):
                waiters.append(tasks.create_task(append(backend, name)))
                await until(lambda: backend.statistics().waiting == len(waiters))
        assert await backend.read(KEY) == Record(b"abcde", 5, NOW, NOW)

    async def test_a_holder_excludes_all_others_of_the_same_key(self, backend: Backend, other: Backend) -> None:
        await put(backend)
        seen: list[Found] = []
        async with asyncio.TaskGroup() as tasks, hold(backend) as held, hold(other, OTHER_KEY, create=True):
            for handle in (backend, other):
                tasks.create_task(look(handle, seen))
            await until(lambda: waiting(backend, other) == 2)
            await held.commit(b"mine", now=NOW + 1)
            assert seen == []
        assert [isinstance(record, Record) and record.payload for record in seen] == [b"mine"] * 2

    async def test_waiters_of_a_deleted_record_find_none(self, backend: Backend, other: Backend) -> None:
        await put(backend)
        seen: list[Found] = []
        async with hold(backend) as held:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(look(backend, seen))
                tasks.create_task(look(other, seen, create=True))
                await until(lambda: waiting(backend, other) == 2)
                await held.delete(now=NOW)  # and the lock with it
            assert (seen, await backend.read(KEY), await keys_of(backend)) == ([None, None], None, [])
        async with create(backend, b"new", now=NOW + 5) as held:
            assert held.record == Record(b"new", 1, NOW + 5, NOW + 5)

    @pytest.mark.parametrize("who", ["the holder", "the holder of what is new", "the maker"])
    async def test_a_timeout_names_the_holder(self, backend: Backend, other: Backend, who: str) -> None:
        if who == "the holder":
            await put(backend)
        async with asyncio.TaskGroup() as tasks, create(backend) if "maker" in who else hold(backend, create=True):
            for handle in (backend, other):
                with pytest.raises(LockTimeoutError) as caught:
                    await asyncio.create_task(look(handle, [], create=True, timeout=0.001))
                assert f"process {os.getpid()}, task '{who[:10]}" in str(caught.value)
                assert caught.value.waited >= 0.001
                assert waiting(backend, other) == 0
            tasks.create_task(look(backend, []))  # comes to its turn

    async def test_a_holder_may_have_a_name_that_no_text_can_have(self, backend: Backend, other: Backend) -> None:
        await put(backend)
        async with hold(backend, task="the \udc80 holder"):
            with pytest.raises(LockTimeoutError) as caught:
                await asyncio.create_task(look(other, [], timeout=0.001))
        assert caught.value.holder is not None
        assert caught.value.holder.task.startswith("the ")

    async def test_a_task_that_would_wait_for_itself_is_told(self, backend: Backend) -> None:
        async with create(backend) as held:
            with pytest.raises(DeadlockError):
                await hold(backend).__aenter__()
            await held.commit(b"still mine", now=NOW)

    async def test_cancelled_waiters_leave_the_queue_intact(self, backend: Backend) -> None:
        seen: list[Found] = []
        async with hold(backend, create=True) as held:
            waiters = [asyncio.create_task(look(backend, seen, create=True)) for _ in range(4)]
            await until(lambda: backend.statistics().waiting == 4)
            waiters[1].cancel()
            await until(lambda: backend.statistics().waiting == 3)
            await held.release(now=NOW)
            waiters[0].cancel()  # it has been granted the key, and does not know yet
        results = await asyncio.gather(*waiters, return_exceptions=True)
        assert [isinstance(result, asyncio.CancelledError) for result in results] == [True, True, False, False]
        assert (len(seen), backend.statistics().holding, backend.statistics().waiting) == (2, 0, 0)

    @pytest.mark.parametrize("end", ["release", "delete"])
    async def test_a_key_that_was_given_back_can_not_be_changed(self, backend: Backend, end: str) -> None:
        await put(backend)
        async with hold(backend) as held:
            await (held.release(now=NOW + 5) if end == "release" else held.delete(now=NOW))
            left = await backend.read(KEY)
            assert left == (Record(b"payload", 1, NOW, NOW + 5) if end == "release" else None)
            async with hold(backend, create=True):  # another has it, and keeps it
                await held.release(now=NOW + 9)
                for late in (held.commit(b"late", now=NOW + 9), held.delete(now=NOW)):
                    with pytest.raises(LockLostError):
                        await late
                with pytest.raises(LockTimeoutError):
                    await asyncio.create_task(look(backend, [], timeout=0.001))
                assert await backend.read(KEY) == left

    async def test_a_holder_is_followed_when_its_lease_is_over(self, backend: Backend, other: Backend) -> None:
        await put(backend)
        for handle, version in ((backend, 1), (other, 3)):
            async with hold(backend, lease=0.02) as held:
                await held.commit(b"before", now=NOW)
                await asyncio.create_task(append(handle, b" and after"))
                tombstone = Tombstone(b"", NOW)
                for change in (
                    held.commit(b"late", now=NOW),
                    held.renew(1.0),
                    held.delete(now=NOW),
                    held.delete(tombstone, now=NOW),
                ):
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
                await asyncio.create_task(look(other, [], timeout=0.05))
        assert await other.read(KEY) == Record(b"late", 2, NOW, NOW)

    async def test_the_end_of_the_block_gives_the_key_back(self, backend: Backend, other: Backend) -> None:
        for enter in (create(backend), hold(backend)):
            held = await enter.__aenter__()
            await enter.__aexit__(ZeroDivisionError, ZeroDivisionError(), None)
            with pytest.raises(LockLostError):
                await held.commit(b"late", now=NOW + 1)
            await look(other, [], timeout=1.0)

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
        for run in (in_another_loop, asyncio.gather) * 3:
            await run(append(backend, b"+", 5), append(backend, b"+", 5))
        assert await backend.read(KEY) == Record(b"+" * 60, 60, NOW, NOW)

    async def test_event_loops_in_several_threads_lose_no_update(self, backend: Backend, other: Backend) -> None:
        handles = (backend, backend, other)
        works = [[append(handle, b"+", 30), append(handle, b"+", 30)] for handle in handles]
        await asyncio.gather(*(in_another_loop(*work) for work in works))
        assert await backend.read(KEY) == Record(b"+" * 180, 180, NOW, NOW)

    async def test_who_waited_knows_for_how_long(self, backend: Backend, other: Backend) -> None:
        waited: list[float] = []

        async def wait(handle: Backend) -> None:
            async with hold(handle) as held:
                waited.append(held.waited)

        await put(backend)
        async with hold(backend) as held:
            assert (held.waited, held.is_contended) == (0.0, False)
        for handle in (backend, other):
            async with asyncio.TaskGroup() as tasks, hold(backend) as held:
                tasks.create_task(wait(handle))
                await until(lambda: held.is_contended)
                await asyncio.sleep(0.01)
            assert waited.pop() >= 0.005

    async def test_a_timeout_tells_how_many_were_ahead(self, backend: Backend) -> None:
        await put(backend)
        async with asyncio.TaskGroup() as tasks, hold(backend):
            for number in range(1, 4):
                tasks.create_task(look(backend, []))
                await until(lambda: backend.statistics().waiting == number)  # noqa: B023
            with pytest.raises(LockTimeoutError, match="behind 4 others") as caught:
                await asyncio.create_task(look(backend, [], timeout=0.01))
            assert (caught.value.ahead, caught.value.state) == (4, "running")

    async def test_tasks_that_would_wait_for_each_other_in_a_ring_are_told(self, backend: Backend) -> None:
        first = ["0" * 64, "1" * 64, "2" * 64]
        both, told = asyncio.Barrier(3), []

        async def take(number: int) -> None:
            async with hold(backend, first[number], create=True):
                await both.wait()
                for _ in range(number):  # one after the other
                    await until(lambda: backend.statistics().waiting >= number)
                try:
                    async with hold(backend, first[(number + 1) % 3], create=True):
                        pass
                except DeadlockError as error:
                    told.append((number, [holder.task for holder in error.cycle]))

        await asyncio.gather(*(take(number) for number in range(3)))
        assert told == [(2, ["the holder"] * 3)]
        assert (backend.statistics().holding, backend.statistics().waiting) == (0, 0)
