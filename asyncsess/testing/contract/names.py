"""`NameContract`: what the contract promises of the exclusive right to a name inside a key."""
# ruff: noqa: D102 - the names of the tests are the sentences

from __future__ import annotations

import asyncio

import pytest

from asyncsess.backends.base import Backend, Record
from asyncsess.errors import DeadlockError, LockLostError, LockTimeoutError
from asyncsess.testing.clock import until
from asyncsess.testing.contract.helpers import KEY, NOW, OTHER_KEY, hold, hold_name, put, waiting


class NameContract:
    """What the contract promises of the exclusive right to a name inside a key."""

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
            await until(lambda: waiting(backend, other) == 3)
            for waiter in waiters:
                waiter.cancel()
            await asyncio.wait(waiters)
        for handle in (backend, other):
            async with hold_name(handle, "a", timeout=0):
                pass

    async def test_a_holder_of_a_name_is_followed_when_its_lease_is_over(
        self, backend: Backend, other: Backend
    ) -> None:
        for handle in (backend, other):
            async with hold_name(backend, "a", lease=0.02) as late:
                await late.check()
                assert not late.was_late

                async def follow(handle: Backend = handle) -> None:
                    async with hold_name(handle, "a") as held:
                        assert held.was_late
                        assert held.waited > 0
                        for change in (late.check(), late.renew(1.0)):
                            with pytest.raises(LockLostError):
                                await change
                        await held.check()
                    async with hold_name(handle, "a", timeout=0) as again:  # what the late one leaves is its own
                        assert not again.was_late

                await asyncio.create_task(follow())

    async def test_a_late_holder_of_a_name_takes_nothing_from_who_followed(
        self, backend: Backend, other: Backend
    ) -> None:
        for handle in (backend, other):
            late = hold_name(backend, "a", lease=0.02)
            await late.__aenter__()
            async with asyncio.TaskGroup() as tasks:
                follows, may_go = asyncio.Event(), asyncio.Event()

                async def follow(
                    handle: Backend = handle, follows: asyncio.Event = follows, may_go: asyncio.Event = may_go
                ) -> None:
                    async with hold_name(handle, "a") as held:
                        follows.set()
                        await may_go.wait()
                        await held.check()

                tasks.create_task(follow())
                await follows.wait()
                await late.__aexit__(None, None, None)
                for each in (backend, other):
                    with pytest.raises(LockTimeoutError):
                        await hold_name(each, "a", timeout=0.01).__aenter__()
                may_go.set()

    async def test_a_holder_of_a_name_that_nobody_follows_may_be_late(self, backend: Backend, other: Backend) -> None:
        async def enter() -> None:
            async with hold_name(other, "a", timeout=0.05):
                raise AssertionError

        async with hold_name(backend, "a", lease=0.01) as held:
            await asyncio.sleep(0.03)
            await held.check()
            await held.renew(3600.0)
            with pytest.raises(LockTimeoutError):
                await asyncio.create_task(enter())
            await held.check()

    async def test_the_first_who_follows_a_late_holder_knows_it_was_late(
        self, backend: Backend, other: Backend
    ) -> None:
        were_late: list[bool] = []

        async def follow(handle: Backend) -> None:
            async with hold_name(handle, "a") as held:
                were_late.append(held.was_late)

        async with hold_name(backend, "a", lease=0.05):
            await asyncio.gather(*(asyncio.create_task(follow(handle)) for handle in (backend, backend, other)))
        assert were_late == [True, False, False]
