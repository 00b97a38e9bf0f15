"""Does operations in children of its own, so that strace can make one system call of one operation fail.

strace counts the calls of each thread on its own, and lets the one fail that it was told of when it was started. So
that this is the N-th call of an operation, a new thread makes calls that come to nothing until only N are left, and
then operates. One strace serves any number of operations and calls, and nothing else is disturbed: not the start of
Python, and not what is looked at afterwards.

It takes each order as a line of JSON, and answers with lines of JSON and an empty one.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import ctypes
import fcntl
import json
import os
import secrets
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncsess import FileStore

NOWHERE = 99999
NOTHING: dict[str, Callable[[], Any]] = {
    "openat": lambda: os.open(f"/dev/null/{NOWHERE}", os.O_RDONLY),
    "newfstatat": lambda: os.stat("nothing", dir_fd=NOWHERE),
    "pread64": lambda: os.pread(NOWHERE, 1, 0),
    "pwrite64": lambda: os.pwrite(NOWHERE, b"", 0),
    "fdatasync": lambda: os.fdatasync(NOWHERE),
    "fsync": lambda: os.fsync(NOWHERE),
    "renameat": lambda: os.rename("nothing", "nothing", src_dir_fd=NOWHERE, dst_dir_fd=NOWHERE),
    "unlinkat": lambda: os.unlink("nothing", dir_fd=NOWHERE),
    "mkdirat": lambda: os.mkdir("nothing", dir_fd=NOWHERE),
    "fchmodat": lambda: os.chmod("nothing", 0, dir_fd=NOWHERE),
    "utimensat": lambda: os.utime(NOWHERE),
    "flock": lambda: fcntl.flock(NOWHERE, fcntl.LOCK_UN),
    "close": lambda: os.close(NOWHERE),
}


class _Inline(concurrent.futures.Executor):
    """Does at once what is meant for other threads, whose calls would be counted on their own."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        future = concurrent.futures.Future[Any]()
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


def _call_nothing(system_call: str) -> None:
    with suppress(OSError):
        NOTHING[system_call]()


def _tell(**answer: Any) -> None:
    os.write(1, json.dumps(answer).encode() + b"\n")


def _obey(order: dict[str, Any]) -> None:
    from .operations import store_at

    now = time.time()
    time.time = lambda: now  # standing still: how many calls are made must not depend on how long they take
    store = store_at(order["directory"], durability=order["durability"], clock=time.time)
    asyncio.run(store.__aenter__())
    before = set(os.listdir("/proc/self/fd"))
    thread = threading.Thread(target=lambda: asyncio.run(_operate(store, order)))
    thread.start()
    thread.join()
    left = [_path_of(fd) for fd in set(os.listdir("/proc/self/fd")) - before]
    is_usable = asyncio.run(_is_usable(store))
    _tell(
        is_usable=is_usable,
        holding=store.statistics().holding,
        descriptors=[path for path in left if path.startswith("/")],
    )


async def _operate(store: FileStore, order: dict[str, Any]) -> None:
    from asyncsess import SessionError

    from .operations import OPERATIONS

    _tell(thread=threading.get_native_id())
    for _ in range(order["calls_before"]):
        _call_nothing(order["system_call"])
    try:
        await OPERATIONS[order["operation"]].run(store)
        _tell(outcome="done")
    except Exception as error:
        is_typed, has_cause = isinstance(error, SessionError), error.__cause__ is not None
        _tell(outcome=type(error).__name__, message=str(error), is_typed=is_typed, has_cause=has_cause)
    _call_nothing(order["system_call"])  # the end of the operation, in the trace
    if order["is_persistent"]:
        _tell(is_usable=True, holding=store.statistics().holding, descriptors=[])
        os._exit(0)  # nothing else would work any more


async def _is_usable(store: FileStore) -> bool | str:
    from asyncsess import SessionNotFoundError

    from .operations import ID

    try:
        async with store.open(ID, create=True):
            return True
    except SessionNotFoundError:  # it was destroyed, and stays so
        return True
    except Exception as error:
        return repr(error)


def _path_of(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:  # the one by which the descriptors were listed
        return ""


async def _rehearse() -> None:
    """Let Python import and cache what it needs on first use."""
    from .operations import OPERATIONS, prepare, store_at  # only now: asyncsess imports what was just replaced

    for operation in OPERATIONS.values():
        with tempfile.TemporaryDirectory() as directory:
            await prepare(Path(directory), operation)
            async with store_at(directory, durability="power") as store:
                await operation.run(store)


def _obey_in_child(order: dict[str, Any]) -> None:
    child = os.fork()
    if not child:
        try:
            _obey(order)
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def main() -> None:
    """Serve until the input ends."""
    concurrent.futures.ThreadPoolExecutor = _Inline  # type: ignore[assignment, misc]
    secrets.token_urlsafe = lambda _=None: "F" * 43  # type: ignore[assignment]
    asyncio.run(_rehearse())
    warnings.simplefilter("ignore", DeprecationWarning)  # of the fork of a program with threads: the other one waits
    ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_long(-1), 0, 0, 0)  # PR_SET_PTRACER: strace is no ancestor
    _tell(pid=os.getpid())
    for line in sys.stdin:
        # Forking makes calls of its own, from Python 3.12 on: they are to be counted anew each time.
        thread = threading.Thread(target=_obey_in_child, args=[json.loads(line)])
        thread.start()
        thread.join()
        os.write(1, b"\n")


if __name__ == "__main__":
    main()
