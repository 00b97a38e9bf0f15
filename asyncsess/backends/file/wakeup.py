"""Who tells a waiter that a file may be free: inotify where there is one, a timer everywhere.

Closing a file that was open for writing raises an event also when its holder was killed, so a waiter sleeps until
then. The timer behind it makes the wait correct without any event: inotify buys latency and idle CPU, nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import sys
import threading
import weakref
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from itertools import repeat
from typing import Final

from asyncsess.backends.file import inotify
from asyncsess.backends.file.inotify import Inotify

logger = logging.getLogger("asyncsess")

_WATCHED: Final = inotify.CLOSE_WRITE | inotify.ATTRIB | inotify.DELETE_SELF | inotify.MOVE_SELF
# The kernel raises the event of a killed holder a moment before it drops its lock: look again soon after an event.
_AFTER_AN_EVENT: Final = (0.001, 0.005)
_BEHIND_EVENTS: Final = (0.05, 0.25)
_POLLING: Final = (0.001, 0.002, 0.004, 0.008, 0.016)
_LONGEST_POLL: Final = 0.02

_guard = threading.Lock()
_bells_of: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Bells] = weakref.WeakKeyDictionary()


class Bell:
    """Rings when a file may be free.

    Args:
        has_events: Whether anything but the timers will ring it.
    """

    def __init__(self, has_events: bool) -> None:
        self._has_events = has_events
        self._future: asyncio.Future[None] | None = None
        self._is_rung = False

    def ring(self) -> None:
        """Wake the waiter, now or at its next `wait`."""
        self._is_rung = True
        if self._future:
            _finish(self._future)

    async def wait(self, at_most: float) -> bool:
        """Wait for the bell, ``at_most`` seconds; return whether it rang."""
        if not self._is_rung:
            loop = asyncio.get_running_loop()
            self._future = loop.create_future()
            timer = loop.call_later(at_most, _finish, self._future)
            try:
                await self._future
            finally:
                timer.cancel()
                self._future = None
        is_rung, self._is_rung = self._is_rung, False
        return is_rung

    def pauses(self) -> Iterator[float]:
        """Yield the seconds after which to look at the file although the bell did not ring."""
        if self._has_events:
            yield from _AFTER_AN_EVENT
            while True:
                yield random.uniform(*_BEHIND_EVENTS)
        yield from _POLLING
        yield from repeat(_LONGEST_POLL)


class Bells:
    """The bells of one event loop, behind one inotify instance: closing one takes 13 ms, and a user has 128."""

    def __init__(self) -> None:
        self._inotify: Inotify | None = None
        self._watched: dict[int, set[Bell]] = {}
        self._has_warned = False

    @contextmanager
    def watch(self, fd: int) -> Generator[Bell]:
        """Ring while this open file is closed, unlocked, replaced or deleted by anyone."""
        watch = self._add(fd)
        bell = Bell(has_events=watch is not None)
        if watch is None:
            yield bell
            return
        bells = self._watched.setdefault(watch, set())
        bells.add(bell)
        try:
            yield bell
        finally:
            bells.discard(bell)
            if not bells:
                self._unwatch(watch)

    @property
    def watching(self) -> int:
        """Files that are watched."""
        return len(self._watched)

    def _add(self, fd: int) -> int | None:
        """Watch the very file that is open, whatever its name leads to; None if the system's limits are reached."""
        if sys.platform != "linux":
            return None
        try:
            if self._inotify is None:
                instance = Inotify()
                asyncio.get_running_loop().add_reader(instance.fd, self._on_events)
                self._inotify = instance
            return self._inotify.add(fd, _WATCHED)
        except OSError as error:
            if not self._has_warned:
                self._has_warned = True
                logger.warning(
                    "waiting for a session will poll its file, since inotify gives no more (%s); "
                    "see max_user_instances and max_user_watches in /proc/sys/fs/inotify",
                    error.strerror,
                )
            return None

    def _unwatch(self, watch: int) -> None:
        """Remove a watch when the loop comes to it: whoever was woken has waited long enough."""
        try:
            asyncio.get_running_loop().call_soon(self._remove_unused, watch)
        except RuntimeError:  # no loop runs: a waiting coroutine was thrown away
            self._remove_unused(watch)

    def _remove_unused(self, watch: int) -> None:
        if self._inotify is not None and self._watched.get(watch) == set():
            del self._watched[watch]
            self._inotify.remove(watch)

    def _on_events(self) -> None:
        assert self._inotify is not None
        for watch, events in self._inotify.read():
            if watch is None:
                bells = set[Bell]().union(*self._watched.values())
            elif events & inotify.IGNORED:
                bells = self._watched.pop(watch, set())
            else:
                bells = self._watched.get(watch, set())
            for bell in bells:
                bell.ring()

    def close(self) -> None:
        """Close the inotify instance without a word to the event loop, which may be a parent's or closed."""
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None
        self._watched.clear()


def running_bells() -> Bells:
    """Return the bells of the running event loop."""
    loop = asyncio.get_running_loop()
    bells = _bells_of.get(loop)
    if bells is None:
        with _guard:
            for ended in [other for other in _bells_of if other.is_closed()]:
                _bells_of.pop(ended).close()
            bells = _bells_of[loop] = Bells()
    return bells


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _close_the_parents() -> None:
    global _guard
    _guard = threading.Lock()
    for bells in _bells_of.values():
        bells.close()
    _bells_of.clear()


os.register_at_fork(after_in_child=_close_the_parents)
