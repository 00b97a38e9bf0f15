"""Where blocking calls run: on the event loop while the disk answers from memory, in threads when it does not.

Reading a small file from the page cache takes 2 to 8 µs, a hop to a thread 80 to 90 µs.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Literal, TypeVar, TypeVarTuple

import anyio

from asyncsess.backends.file.lock import FileLock
from asyncsess.errors import StoreError

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
IOMode = Literal["auto", "loop", "thread"]

_SLOW: Final = 0.005
# A single slow call may be the scheduler's doing: the loop is left when a second one follows within so many calls.
_FORGIVEN_AFTER: Final = 10
_FIRST_STAY: Final = 0.05
_LONGEST_STAY: Final = 5.0
_THREADS: Final = 8


class IO:
    """Run blocking functions for one store.

    Args:
        mode: ``"loop"``, ``"thread"``, or ``"auto"``: on the loop, until two of a few calls took longer than 5
            milliseconds; then in threads, for 50 milliseconds at first, and for twice as long, up to 5 seconds, each
            time that it happens again.
    """

    def __init__(self, mode: IOMode) -> None:
        if mode not in ("auto", "loop", "thread"):
            raise ValueError(f"io is 'auto', 'loop' or 'thread', not {mode!r}")
        self._mode = mode
        self._threads_until = 0.0
        self._stay = _FIRST_STAY
        self._suspicion = 0
        self._pool: ThreadPoolExecutor | None = None
        self._pid = os.getpid()
        self._under_way: set[asyncio.Future[Any]] = set()
        self.switches = 0

    async def run(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Call a function that takes microseconds when the disk need not be asked.

        Raises:
            StoreError: For every ``OSError``, which is its cause.
        """
        started = time.perf_counter()
        if self._mode == "thread" or started < self._threads_until:
            return await self.in_thread(function, *args)
        try:
            return function(*args)
        except OSError as error:
            raise as_store_error(error) from error
        finally:
            took = time.perf_counter() - started
            if took >= _SLOW or self._suspicion:
                self._judge(took)

    def _judge(self, took: float) -> None:
        if self._mode == "loop":
            return
        if took < _SLOW:
            self._suspicion -= 1
            if not self._suspicion:
                self._stay = _FIRST_STAY
        elif not self._suspicion:
            self._suspicion = _FORGIVEN_AFTER
        else:
            self._threads_until = time.perf_counter() + self._stay
            self._stay = min(2 * self._stay, _LONGEST_STAY)
            self.switches += 1

    async def in_thread(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Call a function that waits for a disk by nature, and wait until it has ended.

        A cancellation comes out afterwards: a thread can't be stopped, and must not change a file that its caller
        believes to have left. anyio.to_thread would go on without the caller when the task itself is cancelled, and
        shares its threads with whatever of the application waits for a session.
        """
        future = asyncio.get_running_loop().run_in_executor(self._threads(), function, *args)
        self._under_way.add(future)
        future.add_done_callback(self._under_way.discard)
        try:
            await asyncio.shield(future)
        except OSError as error:
            raise as_store_error(error) from error
        except asyncio.CancelledError:
            await _settle(future)
            raise
        return future.result()

    async def settle(self) -> None:
        """Wait until no call is under way in a thread: what it uses must not be closed."""
        while any(not future.get_loop().is_closed() for future in list(self._under_way)):  # noqa: ASYNC110
            await asyncio.sleep(0.001)  # they may belong to other event loops

    def close(self) -> None:
        """End the threads."""
        pool, self._pool = self._pool, None
        if pool and self._pid == os.getpid():
            pool.shutdown(wait=False)

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None or self._pid != os.getpid():  # threads do not survive a fork
            self._pid = os.getpid()
            self._under_way.clear()
            self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="asyncsess")
        return self._pool


def as_store_error(error: OSError) -> StoreError:
    """Translate an error of the operating system, without the name of the session's file."""
    error.filename = error.filename2 = None
    return StoreError(f"the session directory could not be used: {error.strerror or error}")


async def _settle(future: asyncio.Future[Any]) -> None:
    with anyio.CancelScope(shield=True):  # else anyio repeats its cancellation at each turn of the loop
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError:
                continue
    # The cancellation is what the caller sees: an error is retrieved and dropped, a file is closed.
    if not future.cancelled() and future.exception() is None and isinstance(future.result(), FileLock):
        future.result().close()
