"""What clients saw while they were killed and cut off could have happened one after the other."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from asyncsess import SessionStore
from tests.linearizability import Operation, complaints
from tests.network.recording import FIRST, WAYS, histories
from tests.network.servers import Server
from tests.network.trials import ALL
from tests.processes.conftest import Worker
from tests.proxy import Cut, Proxy

PROCESSES: Final = 4
TASKS: Final = 2
SESSIONS: Final = 3
BLOWS: Final = 24
FEWEST: Final = 600
CUTS: Final = [where for where in Cut if where is not Cut.LATE]


class Clients:
    """Processes of clients, of which one that is killed is followed by another.

    Attributes:
        kills: How many were killed.
    """

    def __init__(self, start: Callable[..., Worker], port: int, directory: Path, sessions: list[str]) -> None:
        self.kills = 0
        self._lives = 0
        self._begin = lambda: self._start(start, port, directory, sessions)
        self._workers = [self._begin() for _ in range(PROCESSES)]

    def _start(self, start: Callable[..., Worker], port: int, directory: Path, sessions: list[str]) -> Worker:
        self._lives += 1
        return start("clients", f"p{self._lives}", TASKS, directory, *sessions, port=port)

    async def kill(self, dice: random.Random) -> None:
        """Kill one, and begin another in its place."""
        place = dice.randrange(PROCESSES)
        self.kills += 1
        self._workers[place].kill()
        await asyncio.to_thread(self._workers[place].wait)
        self._workers[place] = self._begin()

    async def stop(self) -> None:
        """Let all end what they are about, and no more."""
        for worker in self._workers:
            worker.tell("stop")
        assert [await asyncio.to_thread(worker.wait) for worker in self._workers] == [0] * PROCESSES


@pytest.mark.parametrize("seed", range(12 if ALL else 2))
async def test_a_history_of_clients_that_are_killed_and_cut_off_is_linearizable(
    server: Server, shared: SessionStore, start: Callable[..., Worker], tmp_path: Path, seed: int
) -> None:
    dice = random.Random(seed)
    sessions = [await shared.create(FIRST) for _ in range(SESSIONS)]
    async with Proxy("127.0.0.1", server.port) as proxy:
        clients = Clients(start, proxy.port, tmp_path, sessions)
        for number in range(1, BLOWS + 1):
            while _answered(tmp_path) < FEWEST * number / BLOWS:  # all of them have something to strike
                await asyncio.sleep(0.02)
            match dice.randrange(4):
                case 0:
                    await clients.kill(dice)
                case 1:
                    proxy.cut_all()
                case _:
                    for _ in range(3):
                        proxy.cut(dice.choice(CUTS), dice.randint(1, 40))
        proxy.heal()
        await clients.stop()
        cuts = proxy.cuts

    found = histories(path for path in tmp_path.iterdir() if path.is_file())
    for place, session_id in enumerate(sessions):
        end = await WAYS["read"](shared, session_id, "the end")
        found[place].append(Operation("the end", False, math.inf, version=end.version, writer=end.writer))
    wrong = [f"session {place}: {each}" for place, history in found.items() for each in complaints(history)]
    assert not wrong, f"seed {seed}\n" + "\n".join(wrong)

    everything = [each for history in found.values() for each in history]
    unknown = sum(each.is_write and math.isinf(each.ended) for each in everything)
    assert sum(each.version is not None for each in everything) >= FEWEST, "too little to prove anything"
    assert cuts > 0, "nothing was cut"
    assert unknown <= TASKS * clients.kills + cuts


def _answered(directory: Path) -> int:
    """Return how many operations have been answered until now."""
    return sum(path.read_bytes().count(b'"version"') for path in directory.iterdir())
