"""A waiter takes over from a late holder: every order of their steps, on real files, with up to three changes of turn.

The holder's lease ends when the waiter begins; whoever is told that its commit was stored finds it in the end, and
whoever is told that it was not does not. Leaving a step of the protocol out shows that this would be noticed.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from asyncsess import CommitUnknownError, FileStore, LockLostError
from asyncsess.backends import turns
from asyncsess.backends.file import acquisition, layout, lease, lock
from asyncsess.backends.file.files import Files

STEPS = ("pwrite", "pread", "stat", "rename")
FOREVER = 10_000


class Actor:
    """A thread that stops before each step, until it is let go for some more."""

    def __init__(self, play: Callable[[], Coroutine[Any, Any, str]]) -> None:
        self.result = ""
        self._play = play
        self._left = 0
        self._may_go = threading.Semaphore(0)
        self._stands = threading.Semaphore(0)
        self.is_done = False
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        self._stands.acquire()

    def go(self, steps: int) -> None:
        """Let it do so many steps, or all that are left."""
        if not self.is_done:
            self._left = steps
            self._may_go.release()
            self._stands.acquire()

    def stop(self) -> None:
        """Called by its thread before each step."""
        while not self._left:
            self._stands.release()
            self._may_go.acquire()
        self._left -= 1

    def _run(self) -> None:
        self._stands.release()
        self._may_go.acquire()
        try:
            self.result = asyncio.run(self._play())
        except BaseException as error:
            self.result = repr(error)
        self.is_done = True
        self._stands.release()


class Stage:
    """The actors, and what they have in common: a directory, and the clock of leases."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._directory = directory
        self._actors: dict[threading.Thread, Actor] = {}
        self._now = 1000.0
        for module in (turns, lease, acquisition):
            monkeypatch.setattr(module, "boot_time", lambda: self._now)
        for name in STEPS:
            monkeypatch.setattr(os, name, self._stepwise(getattr(os, name)))
        monkeypatch.setattr(lock, "_flock", self._stepwise(lock._flock))
        self._template = directory / "template"
        self.session_id = asyncio.run(self._prepare())

    def _stepwise(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            actor = self._actors.get(threading.current_thread())
            if actor:
                actor.stop()
            return function(*args, **kwargs)

        return step

    async def _prepare(self) -> str:
        async with FileStore(self._template) as store:
            return await store.create({"late": 0, "next": 0})

    def play(self, turns_taken: tuple[int, int, int], fill: int) -> tuple[str, str, dict[str, Any]]:
        """Run the late holder and the waiter in turns; return what each was told, and what is stored."""
        directory = self._directory / "played"
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(self._template, directory)
        self._now = 1000.0
        holds, first = threading.Event(), threading.Event()

        async def be_late() -> str:
            async with FileStore(directory, io="loop", sweep_interval=None) as store:
                try:
                    async with store.open(self.session_id, lease=30) as session:
                        session["late"] += 1
                        session["fill"] = "x" * fill
                        holds.set()
                        first.wait()
                        self._actors[threading.current_thread()] = late
                    return "stored"
                except LockLostError:
                    return "lost"
                except CommitUnknownError:
                    return "unknown"
                finally:
                    self._actors.pop(threading.current_thread(), None)

        async def come_next() -> str:
            self._actors[threading.current_thread()] = following
            async with FileStore(directory, io="loop", sweep_interval=None) as store:
                async with store.open(self.session_id) as session:
                    session["next"] += 1
                self._actors.pop(threading.current_thread(), None)
            return "stored"

        late, following = Actor(be_late), Actor(come_next)
        starter = threading.Thread(target=late.go, args=(turns_taken[0],))
        starter.start()
        holds.wait()
        first.set()
        starter.join()
        self._now += 60
        following.go(turns_taken[1])
        late.go(turns_taken[2])
        while not (late.is_done and following.is_done):
            following.go(FOREVER if late.is_done else 50)
            late.go(FOREVER if following.is_done else 50)
        for actor in (late, following):
            actor.thread.join()
        return late.result, following.result, asyncio.run(self._look(directory))

    async def _look(self, directory: Path) -> dict[str, Any]:
        store = FileStore(directory, sweep_interval=None)
        async with store, store.open(self.session_id, readonly=True) as session:
            return dict(session)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path, monkeypatch)


Order = tuple[int, int, int]  # steps of the holder, then of the waiter, then of the holder; then both go on to the end
ORDERS: dict[int, list[Order]] = {
    0: [*itertools.product(range(7), range(30), range(0, 7, 2))],  # the commit is written in place
    5000: [*itertools.product(range(12), range(0, 30, 2), range(0, 9, 3))],  # the commit needs a new file
}


def faults(stage: Stage, fill: int, told: Counter[str]) -> Iterator[tuple[Order, str, str, Any]]:
    """Play every order; count what the holder was told, and yield where it was not the truth."""
    for order in ORDERS[fill]:
        late, following, values = stage.play(order, fill)
        told[late] += 1
        is_true = values["late"] in {"stored": (1,), "lost": (0,), "unknown": (0, 1)}.get(late, ())
        if not is_true or following != "stored" or values["next"] != 1:
            yield order, late, following, values


@pytest.mark.parametrize("fill", [0, 5000], ids=["in place", "growing"])
def test_whatever_the_order_everybody_is_told_the_truth(stage: Stage, fill: int) -> None:
    told = Counter[str]()
    assert [*faults(stage, fill, told)] == []
    assert told["stored"] > 10
    assert told["lost"] > 10
    assert told.total() == told["stored"] + told["lost"]


def without_looking_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease.Lease, "is_over", False)


def without_the_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "encode_note", lambda note: acquisition.NO_NOTE)


def without_looking_at_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock.FileLock, "leads_here", lambda self: True)


def without_the_lock_of_the_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    @asynccontextmanager
    async def naming(self: Files, key: str) -> AsyncIterator[None]:
        yield

    monkeypatch.setattr(Files, "naming", naming)


@pytest.mark.parametrize(
    ("leave_out", "fill"),
    [
        (without_looking_again, 0),
        (without_the_note, 0),
        (without_looking_at_the_name, 0),
        (without_looking_at_the_name, 5000),
        (without_the_lock_of_the_directory, 0),
        (without_the_lock_of_the_directory, 5000),
    ],
)
def test_leaving_a_step_out_would_be_noticed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, leave_out: Callable[[pytest.MonkeyPatch], None], fill: int
) -> None:
    leave_out(monkeypatch)
    assert next(faults(stage, fill, Counter()), None) is not None
