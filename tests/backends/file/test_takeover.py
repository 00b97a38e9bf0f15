"""Two waiters follow a late holder: every order of their steps, on real files.

Whoever is told that its commit was stored finds it in the end, and whoever is told that it was not does not. Leaving a
step of the protocol out shows that this would be noticed.
"""

from __future__ import annotations

import asyncio
import errno
import math
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest

from asyncsess import CommitUnknownError, Holder, LockLostError
from asyncsess.backends.base import Held, Tombstone
from asyncsess.backends.file import FileBackend, layout, lease, lock, session_lock
from asyncsess.backends.file.acquisition import Acquisition
from asyncsess.backends.file.directory import make_directory, name_of
from asyncsess.backends.file.files import Files, record_of
from asyncsess.backends.file.name_lock import NameLock
from asyncsess.backends.file.waiting import Outcome
from tests.backends.file.exploration import LATER, Exploration, Play

KEY: Final = "0a" * 32
NOW: Final = 1_700_000_000.0
LEASE: Final = LATER / 2
PATIENCE: Final = 1e9
Act = Callable[[Held], Coroutine[Any, Any, object]]


def holder(name: str) -> Holder:
    return Holder(os.getpid(), name, datetime.fromtimestamp(NOW, UTC), "here:1")


# What the late holder does; each says whether it was stored.


async def commit(late: Held) -> None:
    await late.commit(b"H", now=NOW)


async def grow(late: Held) -> None:
    await late.commit(b"H" + b"." * 2000, now=NOW)


async def commit_twice(late: Held) -> None:
    await late.commit(b"", now=NOW)
    await late.commit(b"H", now=NOW)


async def renew(late: Held) -> None:
    await late.renew(2 * LATER)
    await late.commit(b"H", now=NOW)


async def leave(late: Held) -> None:
    raise LockLostError


async def destroy(late: Held) -> None:
    await late.delete(Tombstone(b"H", NOW), now=NOW)


ACTS: dict[str, Act] = {act.__name__: act for act in (commit, grow, commit_twice, renew, leave, destroy)}
# With two that follow, others have up to 900,000 states, which takes half an hour: they have one, unless asked for.
BRIEF = ("leave",)
IS_COMPLETE = bool(os.environ.get("ASYNCSESS_ALL_ORDERS"))


class Sessions:
    """A late holder of a session, and those that follow."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, act: Act, followers: str) -> None:
        self._path = directory / name_of(KEY)
        asyncio.run(self._prepare(directory))
        self.exploration = Exploration(
            directory,
            monkeypatch,
            {"H": self._late(act), **{name: self._follow(name) for name in followers}},
            {name_of(KEY): self._path.read_bytes()},
            without_marks=True,
        )

    async def _prepare(self, directory: Path) -> None:
        backend = FileBackend(directory)
        async with backend.create(KEY, b"", created_at=NOW, now=NOW, holder=holder("maker"), lease=LEASE):
            pass
        await backend.aclose()

    def _late(self, act: Act) -> Play:
        async def play(backend: FileBackend) -> str:
            async with backend.hold(KEY, timeout=0, holder=holder("H"), lease=LEASE) as late:
                self.exploration.watch()
                try:
                    await act(late)
                except LockLostError:
                    said = "lost"
                except CommitUnknownError:
                    said = "unknown"
                else:
                    said = "stored"
                await late.release(now=NOW)
            return said

        return play

    def _follow(self, name: str) -> Play:
        async def play(backend: FileBackend) -> str:
            self.exploration.watch()
            async with backend.hold(KEY, timeout=PATIENCE, holder=holder(name), lease=math.inf) as follower:
                found = follower.record
                if isinstance(found, Tombstone) or found is None:
                    return "found none"
                await follower.commit(found.payload.rstrip(b".") + name.encode(), now=NOW)
                await follower.release(now=NOW)
            return "stored"

        return play

    def faults(self) -> Iterator[str]:
        """Play every order; yield where somebody was not told the truth."""
        for order, said in self.exploration.outcomes():
            found = record_of(layout.decode_file(self._path.read_bytes(), KEY))
            assert found is not None
            left = found.note if isinstance(found, Tombstone) else found.payload.rstrip(b".")
            is_ended = isinstance(found, Tombstone)
            for name, word in said.items():
                times = left.decode().count(name)
                right = {"stored": (1,), "lost": (0,), "unknown": (0, 1), "found none": (0,) if is_ended else ()}
                if times not in right.get(word, ()) and not (is_ended and name != "H" and word == "stored"):
                    yield f"{order}: {name} was told {word!r}, and it is there {times} times: {said}"


class Names:
    """A late holder of a variable, and those that follow."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, followers: str) -> None:
        self._directory = directory
        (directory / KEY[:2]).mkdir(0o700)
        self.exploration = Exploration(
            directory,
            monkeypatch,
            {"H": self._check, **{name: self._follow(name) for name in followers}},
            {},
            without_marks=False,
        )

    async def _check(self, backend: FileBackend) -> str:
        noted = self.exploration.noted
        async with backend.hold_name(KEY, "v", timeout=0, holder=holder("H"), lease=LEASE) as late:
            self.exploration.watch()
            noted.append("H checks, and was followed" if "followed" in noted else "H checks")
            try:
                await late.check()
            except LockLostError:
                return "lost"
            finally:
                noted.append("H leaves")
        return "held"

    def _follow(self, name: str) -> Play:
        async def play(backend: FileBackend) -> str:
            noted = self.exploration.noted
            self.exploration.watch()
            async with backend.hold_name(KEY, "v", timeout=PATIENCE, holder=holder(name)) as follower:
                if "held" in noted:
                    noted.append("two at once")
                if not follower.was_late and not {"H leaves", "followed"} & {*noted}:
                    noted.append("nobody knew that H is late")
                noted += ["held", "followed"]
                await follower.check()
                noted.remove("held")
            return "held"

        return play

    def faults(self) -> Iterator[str]:
        """Play every order; yield where two held at once, the truth was not told to somebody, or a file was left."""
        for order, said in self.exploration.outcomes():
            noted, left = self.exploration.noted, os.listdir(self._directory / "locks")
            is_betrayed = "H checks, and was followed" in noted and said["H"] != "lost"
            is_unknown = "nobody knew that H is late" in noted
            if "two at once" in noted or is_betrayed or is_unknown or {*said.values()} - {"held", "lost"} or left:
                yield f"{order}: {noted}, {said}, {left}"


Make = Callable[[str, str], Sessions | Names]


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    made: list[Sessions | Names] = []

    def make(act: str, followers: str) -> Sessions | Names:
        if act in ACTS:
            made.append(Sessions(tmp_path, monkeypatch, ACTS[act], followers))
        else:
            made.append(Names(tmp_path, monkeypatch, followers))
        return made[0]

    yield make
    for each in made:
        each.exploration.close()


@pytest.mark.parametrize("act", [*ACTS, "check"])
def test_whatever_the_order_everybody_is_told_the_truth(stage: Make, act: str) -> None:
    sessions = stage(act, "ab" if act in BRIEF or IS_COMPLETE else "a")
    assert [*sessions.faults()] == []
    assert sessions.exploration.states > 100


def without_looking_at_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease.Lease, "is_over", False)


def without_the_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "encode_note", lambda note: session_lock.NO_NOTE)


def without_looking_at_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    look = lock.FileLock.leads_here
    monkeypatch.setattr(lock.FileLock, "leads_here", lambda self: look(self) or True)


def without_looking_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Acquisition, "_make_sure", lambda self: Outcome.HELD)


def without_the_lock_of_the_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    @asynccontextmanager
    async def naming(self: Files, key: str) -> AsyncIterator[None]:
        make_directory(key[:2], self.directory.fd)
        yield

    monkeypatch.setattr(Files, "naming", naming)


@pytest.mark.parametrize(
    ("leave_out", "act"),
    [
        (without_looking_at_the_clock, "commit"),
        (without_the_note, "commit"),
        (without_looking_at_the_name, "commit"),
        (without_looking_at_the_name, "grow"),
        (without_looking_at_the_name, "check"),
        (without_looking_again, "leave"),
        (without_looking_again, "check"),
        (without_the_lock_of_the_directory, "commit"),
        (without_the_lock_of_the_directory, "grow"),
        (without_the_lock_of_the_directory, "leave"),
        (without_the_lock_of_the_directory, "check"),
    ],
)
def test_leaving_a_step_out_would_be_noticed(
    stage: Make, monkeypatch: pytest.MonkeyPatch, leave_out: Callable[[pytest.MonkeyPatch], None], act: str
) -> None:
    leave_out(monkeypatch)
    assert next(stage(act, "ab").faults(), None) is not None


async def test_nobody_comes_between_a_late_holder_of_a_variable_and_who_takes_over(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever did would not know that the late holder may be committing what it has not checked."""
    could_lock: list[bool] = []
    replace = NameLock._replace

    def replace_and_look(self: NameLock, late: lock.FileLock) -> Outcome:
        outcome = replace(self, late)
        with closing(lock.FileLock(late.name, self._files.directory.fd)) as newcomer:
            could_lock.append(newcomer.try_lock())
        return outcome

    monkeypatch.setattr(NameLock, "_replace", replace_and_look)
    first, second = FileBackend(directory), FileBackend(directory)
    try:
        late = first.hold_name(KEY, "v", timeout=0, holder=holder("H"), lease=0.01)
        async with late, second.hold_name(KEY, "v", timeout=10, holder=holder("a")) as follower:
            assert follower.was_late
    finally:
        await first.aclose()
        await second.aclose()
    assert could_lock == [False]


async def test_a_late_holder_of_a_variable_is_followed_on_a_full_disk(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Files) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    first, second = FileBackend(directory), FileBackend(directory)
    try:
        late = first.hold_name(KEY, "v", timeout=0, holder=holder("H"), lease=0.01)
        async with late:
            monkeypatch.setattr(Files, "_new_file", full)
            async with second.hold_name(KEY, "v", timeout=10, holder=holder("a")) as follower:
                assert follower.was_late
    finally:
        await first.aclose()
        await second.aclose()
