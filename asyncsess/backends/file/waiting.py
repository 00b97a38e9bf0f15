"""The wait for a file's lock: the third ring, behind the queue of this process and the lock itself."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from enum import Enum, auto
from pathlib import Path
from typing import Final

from asyncsess.backends.file.files import Files
from asyncsess.backends.file.lock import FileLock
from asyncsess.backends.file.wakeup import running_bells
from asyncsess.errors import Holder, HolderState, LockTimeoutError

# How long to stand back for a process that said it waits; it is woken at once, if it still lives.
_POLITE: Final = 0.005


class Outcome(Enum):
    """What became of a try to lock a file."""

    HELD = auto()
    ABSENT = auto()
    BUSY = auto()
    OTHERS_WAIT = auto()
    LATE = auto()
    UNSURE = auto()
    REPLACED = auto()


class Patience:
    """How long somebody waits.

    Args:
        timeout: Seconds, from now on.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._started = time.monotonic()
        self.has_waited = False

    def waited(self) -> float:
        """Return the seconds until now."""
        return time.monotonic() - self._started

    def left(self, file: FileLock | None) -> float:
        """Return the seconds that are left to wait for a file.

        Raises:
            LockTimeoutError: None are.
        """
        waited = self.waited()
        if waited >= self._timeout:
            raise timed_out(waited, file.holder() if file else None, ahead=1)
        return self._timeout - waited


def timed_out(waited: float, holder: Holder | None, ahead: int) -> LockTimeoutError:
    """Return the error of a wait for a holder that may be another process, with what the system says of that."""
    return LockTimeoutError(waited, holder, ahead=ahead, state=state_of(holder.pid) if holder else None)


def state_of(pid: int) -> HolderState | None:
    """Tell what a process does, see proc_pid_stat(5); None where the system does not tell."""
    if not os.path.isdir("/proc/self"):
        return None
    try:
        status = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return "gone"
    except OSError:  # without descriptors, for one; the timeout is what is to be told
        return None
    letter = status.rpartition(")")[2].split()[0]  # the name before it may contain anything
    if letter in "ZX":
        return "gone"
    return "stopped" if letter in "Tt" else "running"


async def wait_for(
    file: FileLock,
    look_again: Callable[[], Awaitable[Outcome]],
    *,
    files: Files,
    patience: Patience,
    is_polite: bool,
) -> Outcome:
    """Wait until a file's lock is free; watch first, then try, then sleep, or a release in between is missed.

    Args:
        file: Which.
        look_again: Tries again.
        files: The files of the store.
        patience: How long to wait.
        is_polite: Let others go first who said that they wait.
    """
    patience.has_waited = True
    with files.waiter(), running_bells().watch(file.fd) as bell:
        if is_polite:
            await bell.wait(_POLITE)
        pauses = bell.pauses()
        while (outcome := await look_again()) is Outcome.BUSY:
            if await bell.wait(min(next(pauses), patience.left(file))):
                pauses = bell.pauses()
    return outcome
