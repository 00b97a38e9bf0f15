from __future__ import annotations

import asyncio
import os
import warnings
from datetime import UTC, datetime

import pytest

from asyncsess import DeadlockError, Holder, LockTimeoutError
from asyncsess.backends.turns import Turn, Turns, boot_time
from asyncsess.testing import until

PATIENCE = 30.0


def holder(name: str = "me") -> Holder:
    return Holder(os.getpid(), name, datetime.now(UTC), "tests.py:1")


async def take(turns: Turns, key: str = "a", timeout: float = PATIENCE, name: str = "me") -> Turn:
    return await turns.take(key, timeout=timeout, holder=holder(name))


def start(turns: Turns, key: str = "a", timeout: float = PATIENCE) -> asyncio.Task[Turn]:
    return asyncio.create_task(take(turns, key, timeout))


async def test_a_free_key_is_taken_at_once() -> None:
    turns = Turns()
    turn = await take(turns, timeout=0.0)
    assert turns.is_current(turn)
    assert (turns.holding, turns.waiting) == (1, 0)


async def test_turns_come_in_the_order_in_which_they_were_asked_for() -> None:
    turns, order = Turns(), list[int]()

    async def visit(number: int) -> None:
        turn = await take(turns)
        order.append(number)
        await asyncio.sleep(0)
        turns.give_back(turn)

    first = await take(turns)
    async with asyncio.TaskGroup() as tasks:
        for number in range(10):
            tasks.create_task(visit(number))
            await asyncio.sleep(0)
            assert turns.waiting == number + 1
        turns.give_back(first)
    assert order == [*range(10)]


async def test_keys_do_not_wait_for_each_other() -> None:
    turns = Turns()
    taken = [await take(turns, key, timeout=0.0) for key in "abc"]
    assert (turns.holding, all(map(turns.is_current, taken))) == (3, True)


async def test_a_key_that_nobody_uses_leaves_no_trace() -> None:
    turns = Turns()
    turn = await take(turns)
    waiters = [start(turns) for _ in range(3)]
    await until(lambda: turns.waiting == 3)
    waiters[1].cancel()
    turns.give_back(turn)
    for waiter in (waiters[0], waiters[2]):
        turns.give_back(await waiter)
    assert turns._lines == {}


async def test_a_turn_is_given_back_only_once() -> None:
    turns = Turns()
    first = await take(turns)
    second, third = start(turns), start(turns)
    await until(lambda: turns.waiting == 2)
    turns.give_back(first)
    turns.give_back(first)
    assert (turns.is_current(first), turns.is_current(await second), third.done()) == (False, True, False)
    turns.give_back(await second)
    turns.give_back(await third)


async def test_a_task_that_has_the_turn_is_told_instead_of_waiting_for_itself() -> None:
    turns = Turns()
    turn = await take(turns)
    with pytest.raises(DeadlockError, match=r"tests\.py:1"):
        await take(turns)
    assert (turns.is_current(turn), turns.waiting) == (True, 0)


async def test_a_timeout_names_the_holder_and_leaves_the_queue() -> None:
    turns = Turns()
    turn = await take(turns, name="the slow one")
    for timeout in (0.0, 0.001):
        with pytest.raises(LockTimeoutError) as caught:
            await start(turns, timeout=timeout)
        assert caught.value.holder == turn.holder
    assert turns.waiting == 0
    waiter = start(turns)
    await until(lambda: turns.waiting == 1)
    turns.give_back(turn)
    turns.give_back(await waiter)


async def test_a_turn_that_comes_together_with_the_timeout_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns()
    turn = await take(turns)

    async def wait(self: Turn, timeout: float) -> None:
        turns.give_back(turn)

    monkeypatch.setattr(Turn, "wait", wait)
    turns.give_back(await start(turns))
    assert turns._lines == {}


@pytest.mark.parametrize("is_granted", [False, True])
async def test_a_cancelled_waiter_passes_its_turn_on(is_granted: bool) -> None:
    turns = Turns()
    turn = await take(turns)
    first, second = start(turns), start(turns)
    await until(lambda: turns.waiting == 2)
    if is_granted:
        turns.give_back(turn)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    turns.give_back(turn)
    turns.give_back(await second)
    assert turns._lines == {}


async def test_trying_takes_only_what_is_free() -> None:
    turns = Turns()
    turn = turns.try_take("a", holder())
    assert turn is not None
    assert turns.try_take("a", holder()) is None
    assert (turns.holding, turns.waiting) == (1, 0)
    turns.give_back(turn)
    assert turns._lines == {}


async def test_a_waiter_whose_loop_was_closed_is_passed_over() -> None:
    turns = Turns()
    turn = await take(turns)
    waiter = start(turns)
    await until(lambda: turns.waiting == 1)

    async def wait_and_be_forgotten() -> None:
        start(turns)
        await until(lambda: turns.waiting == 2)

    def abandon() -> None:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(wait_and_be_forgotten())
        tasks = asyncio.all_tasks(loop)
        loop.close()
        for task in tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]

    await asyncio.to_thread(abandon)
    last = start(turns)
    await until(lambda: turns.waiting == 3)
    turns.give_back(turn)
    turns.give_back(await waiter)
    turns.give_back(await last)
    assert turns._lines == {}


async def test_tasks_of_several_loops_and_threads_share_one_queue() -> None:
    turns, inside, counts = Turns(), list[int](), list[int]()

    async def visit() -> None:
        for _ in range(50):
            turn = await take(turns)
            inside.append(1)
            counts.append(len(inside))
            await asyncio.sleep(0)
            inside.pop()
            turns.give_back(turn)

    async def visitors() -> None:
        await asyncio.gather(visit(), visit())

    await asyncio.gather(*(asyncio.to_thread(asyncio.run, visitors()) for _ in range(3)), visitors())
    assert (len(counts), set(counts), turns._lines) == (400, {1}, {})


async def test_the_child_of_a_fork_has_no_turn_and_no_queue() -> None:
    turns = Turns()
    turn = await take(turns)
    waiter = start(turns)
    await until(lambda: turns.waiting == 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a process with threads forks
        child = os.fork()
    if not child:
        os._exit(7 if (turns.is_current(turn), turns.holding, turns.waiting) == (False, 0, 0) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert turns.is_current(turn)
    turns.give_back(turn)
    turns.give_back(await waiter)


async def test_a_waiter_of_the_parent_leaves_a_queue_that_the_child_began_anew() -> None:
    turns = Turns()
    await take(turns)
    waiter = start(turns)
    await until(lambda: turns.waiting == 1)
    turns._reset()  # as in the child of a fork
    mine = await asyncio.create_task(take(turns))
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert turns.is_current(mine)


async def test_only_the_turn_that_was_found_late_is_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns()
    late = await take(turns)
    late.deadline = boot_time() + 0.02
    waiters = [start(turns), start(turns)]
    await until(lambda: turns.waiting == 2)
    is_late = Turn.is_late.fget  # type: ignore[attr-defined]

    def is_late_and_given_back_meanwhile(self: Turn) -> bool:
        was_late = is_late(self)
        if self is late and was_late:
            turns.give_back(late)  # by its owner, in another thread
        return bool(was_late)

    monkeypatch.setattr(Turn, "is_late", property(is_late_and_given_back_meanwhile))
    done, pending = await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
    assert (len(done), len(pending)) == (1, 1)
    (granted,) = done
    assert turns.is_current(granted.result())
    turns.give_back(granted.result())
    turns.give_back(await pending.pop())
    assert turns.holding == 0
