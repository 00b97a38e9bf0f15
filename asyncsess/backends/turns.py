"""Turns: who may use a key next, within one process.

The queue is first come, first served across tasks, event loops and threads. Nothing in it outlives its use: a
key that nobody holds has no entry, and a waiter is bound to its loop only while it waits.
"""

from __future__ import annotations

import asyncio
import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

from asyncsess.errors import DeadlockError, Holder, LockTimeoutError

# Who has the turn may get a deadline later; on other systems than Linux, its clock is the one that comes closest.
_LOOK_EVERY: Final = 1.0
_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

_all_turns: weakref.WeakSet[Turns] = weakref.WeakSet()


def boot_time() -> float:
    """Return seconds of the clock of leases, which counts while the machine sleeps, and which nobody sets."""
    return time.clock_gettime(_CLOCK)


class Turn:
    """One task's place in the queue of a key, then its right to use the key."""

    __slots__ = ("_future", "_task", "deadline", "has_waited", "holder", "is_granted", "key", "was_late")

    def __init__(self, key: str, holder: Holder) -> None:
        self.key = key
        self.holder = holder
        task = asyncio.current_task()
        self._task = weakref.ref(task) if task else None  # an abandoned task must not live on for its turn
        self.is_granted = self.has_waited = False
        self.was_late = False  # who had it before, and did not give it back
        self.deadline = math.inf  # by `boot_time`, from which on the next may take the turn
        self._future: asyncio.Future[None] | None = None

    @property
    def task(self) -> asyncio.Task[Any] | None:
        """The task, unless it is gone."""
        return None if self._task is None else self._task()

    def is_same_task(self, other: Turn) -> bool:
        """Tell whether one task has both turns."""
        return self.task is not None and self.task is other.task

    async def wait(self, timeout: float) -> None:
        """Wait until `wake`, or for ``timeout`` seconds."""
        assert self._future is not None
        await asyncio.wait([self._future], timeout=timeout)

    @property
    def is_late(self) -> bool:
        """Whether it has lasted longer than it was to."""
        return self.deadline <= boot_time()

    def begins(self) -> None:
        """Count from now on for how long its task keeps others waiting."""
        self.holder = self.holder._replace(since=datetime.now(UTC))

    def queue(self) -> None:
        """Make this a waiter of the running loop."""
        self.has_waited = True
        self._future = asyncio.get_running_loop().create_future()

    def wake(self) -> bool:
        """Wake the waiter, in its own loop; return False if that loop is gone."""
        future = self._future
        assert future is not None
        try:
            future.get_loop().call_soon_threadsafe(_finish, future)
        except RuntimeError:  # the loop was closed with this waiter in it
            return False
        return True


class _Line:
    """Whose turn it is at a key, and those behind."""

    __slots__ = ("current", "waiters")

    def __init__(self, current: Turn) -> None:
        self.current = current
        self.waiters: deque[Turn] = deque()


class Turns:
    """The queues of all keys of one store."""

    def __init__(self) -> None:
        self._reset()
        _all_turns.add(self)

    def _reset(self) -> None:
        self._guard = threading.Lock()
        self._lines: dict[str, _Line] = {}
        self._blocked = weakref.WeakKeyDictionary[asyncio.Task[Any], Turn]()  # for which turn each task waits
        self._returned: deque[Turn] = deque()

    async def take(self, key: str, *, timeout: float, holder: Holder) -> Turn:
        """Wait for the turn at a key.

        Args:
            key: The key.
            timeout: Seconds to wait at most.
            holder: What to tell those who time out behind this turn.

        Raises:
            DeadlockError: This task has the turn already, or whoever has it waits for this task.
            LockTimeoutError: The turn did not come in time.
        """
        turn = Turn(key, holder)
        line = self._line_up(turn)
        if turn.is_granted:
            return turn
        until = time.monotonic() + timeout
        try:
            while True:
                current = line.current
                if current.is_late:
                    self.give_back(current)
                left = until - time.monotonic()
                if turn.is_granted or left <= 0:
                    break
                await turn.wait(min(left, _LOOK_EVERY, max(0.0, line.current.deadline - boot_time())))
        except BaseException:
            if self._leave(turn) is None:
                self.give_back(turn)
            raise
        ahead = None if turn.is_granted else self._leave(turn)
        if ahead is not None:
            raise LockTimeoutError(timeout, line.current.holder, ahead=ahead, state="running")
        turn.begins()
        return turn

    def try_take(self, key: str, holder: Holder) -> Turn | None:
        """Take the turn at a key if nobody has it."""
        turn = Turn(key, holder)
        with self._alone():
            turn.is_granted = self._lines.setdefault(key, _Line(turn)).current is turn
        return turn if turn.is_granted else None

    def give_back(self, turn: Turn) -> None:
        """Give the key to the next in its line.

        This also runs when the garbage collector finds an abandoned block, perhaps while this very thread has the
        guard: whoever has it does the rest.
        """
        self._returned.append(turn)
        self._serve_next()

    def _serve_next(self) -> None:
        while self._returned and self._guard.acquire(blocking=False):
            try:
                turn = self._returned.popleft() if self._returned else None
                granted = self._advance(turn) if turn else None
            finally:
                self._guard.release()
            if granted and not granted.wake():
                self._returned.append(granted)

    def _advance(self, turn: Turn) -> Turn | None:
        if not self.is_current(turn):
            return None
        line = self._lines[turn.key]
        if not line.waiters:
            del self._lines[turn.key]
            return None
        line.current = line.waiters.popleft()
        line.current.is_granted, line.current.was_late = True, turn.is_late
        self._unblock(line.current)
        return line.current

    def _unblock(self, turn: Turn) -> None:
        task = turn.task
        if task is not None and self._blocked.get(task) is turn:
            del self._blocked[task]

    def _line_up(self, turn: Turn) -> _Line:
        try:
            with self._guard:
                line = self._lines.get(turn.key)
                if line is None:
                    line = self._lines[turn.key] = _Line(turn)
                    turn.is_granted = True
                else:
                    self._refuse_cycle(turn, line)
                    turn.queue()
                    line.waiters.append(turn)
                    if (task := turn.task) is not None:
                        self._blocked[task] = turn
                return line
        finally:
            if self._returned:
                self._serve_next()

    def _refuse_cycle(self, turn: Turn, line: _Line) -> None:
        """Refuse to wait for a task that waits for this one, perhaps through others."""
        if line.current.is_late:  # it will be followed
            return
        cycle = [line.current]
        while not turn.is_same_task(cycle[-1]):
            task = cycle[-1].task
            blocked = self._blocked.get(task) if task else None
            if blocked is None or len(cycle) > len(self._blocked):
                return
            cycle.append(self._lines[blocked.key].current)
        holders = [held.holder for held in cycle]
        if len(cycle) == 1:
            raise DeadlockError(
                f"this task holds the session already, opened at {holders[0].where}; "
                "use that one, or release() it first",
                holders,
            )
        chain = ", which waits for ".join(f"task {holder.task!r} (opened at {holder.where})" for holder in holders)
        raise DeadlockError(
            f"this task would wait for {chain}, which is this task; "
            "open sessions in one order everywhere, or release() one before opening the next",
            holders,
        )

    @contextmanager
    def _alone(self) -> Generator[None]:
        """Keep other threads out, and do what they could not do meanwhile."""
        try:
            with self._guard:
                yield
        finally:
            self._serve_next()

    def is_current(self, turn: Turn) -> bool:
        """Tell whether it still is this turn; after a fork, it is none of the parent's."""
        line = self._lines.get(turn.key)
        return line is not None and line.current is turn

    def take_back(self) -> None:
        """Take every turn from whoever has it; those who wait come to theirs."""
        for line in list(self._lines.values()):
            self.give_back(line.current)

    def has_waiters(self, turn: Turn) -> bool:
        """Tell whether others wait behind a turn."""
        line = self._lines.get(turn.key)
        return line is not None and line.current is turn and bool(line.waiters)

    @property
    def holding(self) -> int:
        """Keys that are held."""
        return len(self._lines)

    @property
    def waiting(self) -> int:
        """Tasks that wait behind a holder."""
        with self._alone():
            return sum(len(line.waiters) for line in self._lines.values())

    def _leave(self, turn: Turn) -> int | None:
        """Leave the queue; return how many were ahead, None if the turn has been granted meanwhile."""
        with self._alone():
            if turn.is_granted:
                return None
            self._unblock(turn)
            line = self._lines.get(turn.key)
            if line is None or turn not in line.waiters:  # in the child of a fork
                return 0
            ahead = line.waiters.index(turn) + 1
            line.waiters.remove(turn)
            return ahead


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _forget_parents_turns() -> None:
    for turns in list(_all_turns):
        turns._reset()


os.register_at_fork(after_in_child=_forget_parents_turns)
