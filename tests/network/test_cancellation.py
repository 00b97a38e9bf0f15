"""A task may be cancelled at any moment of any operation on a server, and no answer is taken for another's."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable

import pytest

from asyncsess import SessionStore, StoreError, increment
from asyncsess.testing import until
from tests.conftest import stored
from tests.network.operations import OPERATIONS
from tests.network.servers import Server, leftovers
from tests.network.trials import ALL, Trial, dice
from tests.test_cancellation import CancelAt


class Cancellation:
    """Runs work, and cancels it at a step, or a little later.

    Attributes:
        has_met: Whether the work took so many steps.
        was_swallowed: Whether it went on to its end all the same.
    """

    def __init__(self, step: int, later: int) -> None:
        self._step = step
        self._later = later
        self.has_met = self.was_swallowed = False

    async def __call__(self, work: Awaitable[object]) -> None:
        stepper = CancelAt(work, self._step, later=self._later)

        async def walk() -> None:
            await stepper

        task = asyncio.create_task(walk())
        await asyncio.wait([task])
        self.has_met = stepper.steps >= self._step
        self.was_swallowed = not self._later and self.has_met and not task.cancelled()
        await task


@pytest.mark.parametrize("later", [0, 2], ids=["at once", "two turns of the loop later"])
@pytest.mark.parametrize("name", OPERATIONS)
async def test_a_cancellation_at_any_step_leaves_old_or_new(server: Server, name: str, later: int) -> None:
    found: list[str] = []
    step, has_met, chance = 1, True, dice(name, later)
    while has_met:
        cancellation = Cancellation(step, later)
        async with Trial(server, OPERATIONS[name]) as trial:
            found += [f"step {step}: {trial.outcome}: {each}" async for each in trial.run(cancellation)]
        has_met = cancellation.has_met
        step += 1 if ALL else chance.randint(1, 1 + step)
    assert not found, "\n".join(found)
    assert trial.outcome == "done"
    assert step > 2  # there was something to cancel


async def test_a_cancellation_at_any_step_comes_out(server: Server) -> None:
    for name in ("read", "touch", "change"):
        step, has_met = 1, True
        while has_met:
            cancellation = Cancellation(step, 0)
            async with Trial(server, OPERATIONS[name]) as trial:
                assert [each async for each in trial.run(cancellation)] == []
            assert not cancellation.was_swallowed, f"{name} at step {step}"
            has_met = cancellation.has_met
            step += 1


async def test_answers_are_never_mixed_up_however_many_commands_are_cancelled(shared: SessionStore) -> None:
    dice = random.Random(5)
    numbers = {await shared.create({"n": number}): number for number in range(8)}
    wrong: list[str] = []

    async def read() -> None:
        session_id, number = dice.choice([*numbers.items()])
        found = (await stored(shared, session_id))["n"]
        if found % 8 != number:
            wrong.append(f"{found} for {number}")

    async def add() -> None:
        session_id, number = dice.choice([*numbers.items()])
        (found,) = await shared.apply(session_id, increment("n", 8))
        if found % 8 != number:
            wrong.append(f"{found} for {number}")

    tasks = set[asyncio.Task[None]]()
    for _ in range(1500):
        tasks.add(asyncio.create_task(dice.choice((read, read, add))()))
        for _ in range(dice.randrange(4)):
            await asyncio.sleep(0)
        if len(tasks) > 20:
            victim = dice.choice(list(tasks))
            if dice.random() < 0.6:
                victim.cancel()
            await asyncio.wait([victim])
            tasks.discard(victim)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert not [each for each in results if isinstance(each, StoreError)]
    assert not wrong
    await until(lambda: not [*leftovers(shared)])
    for session_id, number in numbers.items():
        async with shared.open(session_id, timeout=5) as session:
            assert session["n"] % 8 == number
