"""Every interleaving of several actors' system calls, on real files, with the real functions.

Each actor stands for a process: it has an event loop and a backend of its own, and stops before each call that others
could notice. The exploration plays one order after another, and goes on from each state that it has not met before. A
state is what lies on the disk, who has which lock, and what each actor has seen so far: two orders that lead to the
same state have the same future.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from asyncio import events
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, Final

import pytest
from greenlet import getcurrent, greenlet
from portalocker.constants import LockFlags

from asyncsess.backends import turns
from asyncsess.backends.file import FileBackend, acquisition, files, layout, lease, lock, wakeup
from asyncsess.backends.file.acquisition import Acquisition

Play = Callable[[FileBackend], Coroutine[Any, Any, str]]
LATER: Final = 60.0
_CALLS: Final = ("open", "pread", "pwrite", "stat", "rename", "unlink")


class Abandoned(BaseException):
    """Raised in an actor that would wait in a play that nobody looks at any more."""


class Actor:
    """A process, as it were, that stops before each call that others could notice.

    Attributes:
        is_watched: Whether it stops at all.
        seen: What its calls have returned: its state, as far as others made it.
        result: What it said in the end; empty until then.
    """

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.is_watched = False
        self.seen: list[object] = []
        self.result = ""
        self._waits: object = None
        self._mark = 0
        self._loop = asyncio.new_event_loop()
        self._backend = FileBackend(directory, io="loop")
        self._director = self._thread = getcurrent()

    def begin(self, play: Play) -> None:
        """Have it play, up to its first stop."""
        self.is_watched, self.seen, self.result, self._waits = False, [], "", None
        self._thread = greenlet(self._play)
        self._director = getcurrent()
        self._thread.switch(play)

    def go(self) -> None:
        """Let it go to its next stop."""
        self._thread.switch()

    def stop(self) -> None:
        """Called by itself: let others go first."""
        events._set_running_loop(None)
        self._director.switch()
        events._set_running_loop(self._loop)

    def pause(self, where: object) -> None:
        """Called by itself where it would wait: each time it is here, it is as it was the first time."""
        if not self.is_watched:
            raise Abandoned
        if where is self._waits:
            del self.seen[self._mark :]
        else:
            self._waits, self._mark = where, len(self.seen)

    def start_over(self, knows: object) -> None:
        """Called by itself where it forgets all that it has seen, save for this."""
        self.seen, self._waits = [knows], None

    def abandon(self) -> None:
        """End the play: it goes on, but no longer than to where it would wait."""
        if not self.result:
            self.is_watched = False
            self.go()

    def close(self) -> None:
        """Give back what it has."""
        self._loop.run_until_complete(self._backend.aclose())
        if bells := wakeup._bells_of.pop(self._loop, None):
            bells.close()
        self._loop.close()

    def _play(self, play: Play) -> None:
        try:
            self.result = self._loop.run_until_complete(play(self._backend))
        except BaseException as error:
            self.result = repr(error)


class Exploration:
    """All orders in which actors can act.

    Args:
        directory: Where.
        monkeypatch: Stops the actors at their calls.
        plays: What each actor does, by its name. The first begins `LATER` seconds before the others, and goes on to
            where it is watched.
        template: The files that each play begins with.
        without_marks: Whether it makes no difference that somebody waits.

    Attributes:
        states: How many states were met.
        noted: What the actors noted in the present play, in this order.
    """

    def __init__(
        self,
        directory: Path,
        monkeypatch: pytest.MonkeyPatch,
        plays: Mapping[str, Play],
        template: Mapping[str, bytes],
        *,
        without_marks: bool,
    ) -> None:
        self.states = 0
        self.noted: list[str] = []
        self._directory = directory
        self._now = 0.0
        self._plays = plays
        self._template = template
        self._without_marks = without_marks
        self._actors = {name: Actor(name, directory) for name in plays}
        self._tokens = {actor: 1000 * number for number, actor in enumerate(self._actors.values(), 1)}
        self._current: Actor | None = None
        self._labels: dict[int, str] = {}
        self._private: set[int] = set()
        self._locked: dict[str, str] = {}
        self._looks: dict[str, int] = {}
        self._open_files: dict[int, int] = {}
        self._names: set[str] = set()
        self._open, self._pread, self._stat = os.open, os.pread, os.stat
        self._hooks = sys.get_asyncgen_hooks()
        self._patch(monkeypatch)

    def _patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in (turns, lease, acquisition):
            monkeypatch.setattr(module, "boot_time", lambda: self._now)
        monkeypatch.setattr(turns, "datetime", SimpleNamespace(now=lambda _: datetime.fromtimestamp(self._now, UTC)))
        for name in _CALLS:
            monkeypatch.setattr(os, name, self._stepwise(name, getattr(os, name)))
        monkeypatch.setattr(lock, "_flock", self._stepwise("flock", lock._flock))
        monkeypatch.setattr(os, "close", self._closing(os.close))
        monkeypatch.setattr(lease, "_tokens", self)
        monkeypatch.setattr(wakeup.Bell, "wait", lambda bell, _: self._pause(bell))
        again = SimpleNamespace(sleep=lambda _: self._start_over(sys._getframe(1).f_locals["self"]))
        monkeypatch.setattr(acquisition, "asyncio", again)
        monkeypatch.setattr(files, "asyncio", SimpleNamespace(sleep=lambda _: self._pause(sys._getframe(1))))
        clock = SimpleNamespace(time=time.time, monotonic=lambda: 0.0, sleep=lambda _: self._sleep(sys._getframe(1)))
        monkeypatch.setattr(files, "time", clock)
        monkeypatch.setattr(files, "_TRIES", 10**9)

    def watch(self) -> None:
        """Called by an actor: from here on, it stops."""
        assert self._current is not None
        self._current.is_watched = True

    async def _pause(self, where: object) -> bool:
        self._sleep(where)
        return False

    def _sleep(self, where: object) -> None:
        assert self._current is not None
        self._current.pause(where)

    async def _start_over(self, acquisition: Acquisition) -> None:
        assert self._current is not None
        self._current.start_over(("again", getattr(acquisition, "was_late", None)))

    def __next__(self) -> int:
        """Return a token for a lease: the same in each play, and one that no file tells of."""
        assert self._current is not None
        told = set[int]()
        for label in self._living():
            data = self._pread(self._looks[label], layout.SECTOR, 0).ljust(layout.SECTOR, b"\0")
            told |= {layout.decode_claim(data, layout.MARK_AT).token, layout.decode_note(data).token}
        return next(token for token in count(self._tokens[self._current]) if token not in told)

    # The calls.

    def _stepwise(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            actor = self._current
            if actor is None:
                return call(*args, **kwargs)
            is_noticed = actor.is_watched and self._is_noticed(name, args)
            if is_noticed:
                actor.stop()
            try:
                result = self._note(actor, name, args, lambda: call(*args, **kwargs))
            except OSError as error:
                if is_noticed:
                    actor.seen.append((name, type(error)))
                raise
            if is_noticed:
                actor.seen.append((name, self._plain(name, args, result)))
            return result

        return step

    def _is_noticed(self, name: str, args: tuple[Any, ...]) -> bool:
        if name in ("pread", "pwrite") and self._without_marks and args[2] == layout.MARK_AT and _length(args[1]) == 8:
            return False
        if name in ("pread", "pwrite", "flock"):
            return os.fstat(args[0]).st_ino not in self._private
        return name == "rename" or _is_public(args[0])

    def _note(self, actor: Actor, name: str, args: tuple[Any, ...], call: Callable[[], Any]) -> Any:
        """Make a call, and note which file is which, and who has which lock."""
        was_there = name == "open" and self._leads_to(args[0]) is not None
        moved = self._stat(self._directory / args[0]).st_ino if name == "rename" else None
        result = call()
        if name == "open":
            self._open_files[result] = os.fstat(result).st_ino
            if not was_there:
                self._label(actor, args[0], os.fstat(result).st_ino)
        elif name == "flock":
            label = self._labels[os.fstat(args[0]).st_ino]
            if args[1] & LockFlags.UNBLOCK:
                self._locked.pop(label, None)
            else:
                self._locked[label] = actor.name
        if moved:
            self._private.discard(moved)
        if name == "open" and _is_public(args[0]):
            self._names.add(args[0])
        return result

    def _label(self, actor: Actor, name: str, number: int) -> None:
        """Give a new file a label that no other has which is there."""
        living = self._living()
        label = next(label for label in map(f"{actor.name}{{}}".format, count(1)) if label not in living)
        for old, its_label in list(self._labels.items()):
            if its_label == label:
                del self._labels[old]
                os.close(self._looks.pop(label))
        self._labels[number] = label
        self._looks[label] = self._open(self._directory / name, os.O_RDONLY)
        if not _is_public(name):
            self._private.add(number)

    def _living(self) -> set[str]:
        """Return the labels of the files that have a name, or that an actor has open."""
        opened = set(self._open_files.values())
        statuses = {label: os.fstat(fd) for label, fd in self._looks.items()}
        return {label for label, status in statuses.items() if status.st_nlink or status.st_ino in opened}

    def _closing(self, close: Callable[[int], None]) -> Callable[[int], None]:
        def closing(fd: int) -> None:
            self._open_files.pop(fd, None)
            close(fd)

        return closing

    def _plain(self, name: str, args: tuple[Any, ...], result: Any) -> object:
        """Return what a call tells, in words that mean the same in every play."""
        if name == "open":
            return self._labels[os.fstat(result).st_ino]
        if name == "stat":
            return self._labels[result.st_ino]
        return self._unmarked(result, args[2]) if name == "pread" else result

    def _unmarked(self, data: bytes, offset: int = 0) -> bytes:
        start = layout.MARK_AT - offset
        return data[:start] + data[start + 8 :] if self._without_marks else data

    # The orders.

    def outcomes(self) -> Iterator[tuple[str, dict[str, str]]]:
        """Play every order; yield each way in which all comes to an end, and what every actor said.

        Raises:
            AssertionError: There is a way to where nobody can go on.
        """
        met, ends, chance = set[int](), set[int](), Random(1)
        comes_from: dict[int, set[int]] = defaultdict(set)
        ahead: list[tuple[str, int]] = [("", 0)]
        while ahead:
            last = chance.randrange(len(ahead))  # so that a fault is met early, wherever it is
            ahead[last], ahead[-1] = ahead[-1], ahead[last]
            order, before = ahead.pop()
            try:
                self._begin()
                for name in order:
                    self._go(self._actors[name])
                while True:
                    state = self._state()
                    comes_from[state].add(before)
                    if state in met:
                        break
                    met.add(state)
                    ready = self._ready(order)
                    if not ready:
                        ends.add(state)
                        yield order, {name: actor.result for name, actor in self._actors.items()}
                        break
                    ahead += [(order + actor.name, state) for actor in ready[1:]]
                    order, before = order + ready[0].name, state
                    self._go(ready[0])
            finally:
                self._end()
        self.states = len(met)
        assert met <= _reached(ends, comes_from), "there is a way to where nobody can go on"

    def _ready(self, order: str) -> list[Actor]:
        """Return who can go on. Followers do the same, so it makes no difference which of them goes first."""
        late, *followers = self._actors.values()
        begun = sum(follower.name in order for follower in followers)
        return [actor for actor in (late, *followers[: begun + 1]) if not actor.result]

    def _go(self, actor: Actor) -> None:
        self._current = actor
        actor.go()
        self._current = None

    def _begin(self) -> None:
        for name, content in self._template.items():
            fd = self._open(self._directory / name, os.O_RDWR | os.O_CREAT, 0o600)
            os.pwrite(fd, content, 0)
            self._looks[name] = fd
            self._names.add(name)
        for path in (self._directory, *map(self._directory.joinpath, os.listdir(self._directory)), *self._names):
            self._labels[self._stat(self._directory / path).st_ino] = str(path)
        self.noted.clear()
        self._now = 0.0
        for actor in self._actors.values():
            self._current = actor
            actor.begin(self._plays[actor.name])
            self._now = LATER
        self._current = None

    def _end(self) -> None:
        for actor in self._actors.values():
            self._current = actor
            actor.abandon()
        self._current = None
        for fd in self._looks.values():
            os.close(fd)
        for name in (*self._names, *(f"tmp/{name}" for name in os.listdir(self._directory / "tmp"))):
            with suppress(FileNotFoundError):
                (self._directory / name).unlink()
        for known in (self._labels, self._looks, self._open_files, self._locked, self._private, self._names):
            known.clear()

    def _state(self) -> int:
        """Return what tells this moment from all that have another future."""
        named = tuple((name, self._leads_to(name)) for name in sorted(self._names))
        living = self._living()
        contents = frozenset((label, self._unmarked(self._pread(self._looks[label], 1 << 16, 0))) for label in living)
        said = tuple((actor.result, tuple(actor.seen)) for actor in self._actors.values())
        return hash((named, contents, frozenset(self._locked.items()), said, tuple(sorted(self.noted))))

    def _leads_to(self, name: str) -> str | None:
        try:
            return self._labels[self._stat(self._directory / name).st_ino]
        except FileNotFoundError:
            return None

    def close(self) -> None:
        """Give back what the actors have."""
        for actor in self._actors.values():
            actor.close()
        sys.set_asyncgen_hooks(*self._hooks)


def _length(size_or_data: int | bytes) -> int:
    return size_or_data if isinstance(size_or_data, int) else len(size_or_data)


def _is_public(name: object) -> bool:
    """Tell whether a name leads to a file that others may have open, and not to one that is being made."""
    return isinstance(name, str) and "/" in name and not name.startswith(("tmp/", "/"))


def _reached(beginning: set[int], leads_to: Mapping[int, set[int]]) -> set[int]:
    reached, ahead = set(beginning), list(beginning)
    while ahead:
        new = leads_to[ahead.pop()] - reached
        reached |= new
        ahead += new
    return reached
