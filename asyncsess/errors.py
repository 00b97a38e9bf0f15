"""The errors of asyncsess: one ladder, each rung with its evidence as attributes.

No error message carries a session id, a key or a session's values.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple


class Holder(NamedTuple):
    """Who holds a lock: enough to find the line of code that keeps others waiting.

    Attributes:
        pid: The process id, as seen by the holder itself (containers number their own).
        task: The name of the asyncio task.
        since: Since when it has the lock, or waits for it, by its wall clock.
        where: File and line that opened the session.
    """

    pid: int
    task: str
    since: datetime
    where: str

    def __str__(self) -> str:
        held = max(0.0, (datetime.now(UTC) - self.since).total_seconds())
        return f"process {self.pid}, task {self.task!r}, for {held:.3g} s, opened at {self.where}"


HolderState = Literal["running", "stopped", "gone"]


class SessionError(Exception):
    """Base of everything that asyncsess raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self.args, self.__dict__)  # else those with evidence stay in their process


class InvalidSessionIdError(SessionError, ValueError):
    """The session id is not one that could have been issued or chosen."""


class SessionNotFoundError(SessionError, LookupError):
    """There is no live session of this id: it is unknown, expired or was destroyed.

    Attributes:
        died_at: Since when the id does not lead to a session any more, in UTC, if it was destroyed or replaced a moment
            ago; None if nothing is known of it.
        was_replaced: Whether it was replaced: the session lives on under another id.
    """

    def __init__(self, message: str, died_at: datetime | None = None, *, was_replaced: bool = False) -> None:
        super().__init__(message)
        self.died_at = died_at
        self.was_replaced = was_replaced


class ReadOnlySessionError(SessionError, TypeError):
    """A session that was opened with ``readonly=True`` was changed."""


class SessionClosedError(SessionError):
    """A session was used after `release`, `rollback`, `destroy` or the end of its block."""


class Conflict(NamedTuple):
    """A value that both sides changed, each in another way.

    Attributes:
        path: Keys that lead from the session to the value.
        base: What both sides began with; `asyncsess.rules.MISSING` if it was not there, as with the next two.
        ours: What this side made of it.
        theirs: What was committed meanwhile.
    """

    path: tuple[Any, ...]
    base: Any
    ours: Any
    theirs: Any

    def __repr__(self) -> str:
        return f"<Conflict {_at(self.path)}>"  # a log is no place for values


class ConflictError(SessionError):
    """Others changed meanwhile what this block changed too; nothing of the block was stored.

    ``__cause__`` is what the first rule raised that could not settle its conflict, if one did.

    Attributes:
        conflicts: Every value that no rule has settled.
    """

    def __init__(self, conflicts: Sequence[Conflict]) -> None:
        paths = ", ".join(_at(conflict.path) for conflict in conflicts)
        super().__init__(f"others changed {paths} meanwhile, in another way; nothing was stored")
        self.conflicts = tuple(conflicts)


class OperationError(SessionError, ValueError):
    """An operation does not fit the value that it met; nothing was stored.

    Attributes:
        path: Keys that lead from the session to the value.
    """

    def __init__(self, message: str, path: Sequence[object]) -> None:
        super().__init__(f"{_at(path)}: {message}")
        self.path = tuple(path)


class LockTimeoutError(SessionError, TimeoutError):
    """The lock was not free in time.

    Attributes:
        waited: Seconds spent waiting.
        ahead: How many tasks of this process were ahead, the one that holds included.
        holder: Who held the lock at the end of the wait, where that is known.
        state: What that process does: it is running, stopped or gone; None where the system does not tell. A container
            numbers its processes on its own, so those of another container appear as gone.
    """

    def __init__(
        self, waited: float, holder: Holder | None, *, ahead: int = 0, state: HolderState | None = None
    ) -> None:
        behind = f", behind {ahead} others" if ahead > 1 else ""
        by = f": held by {holder}" if holder else ""
        is_state = f", which is {state}" if state else ""
        super().__init__(f"the session was not free within {waited:.3g} s{behind}{by}{is_state}")
        self.waited = waited
        self.ahead = ahead
        self.holder = holder
        self.state: HolderState | None = state


class LockLostError(SessionError):
    """The lock is no longer this holder's, so nothing of the change was stored."""


class DeadlockError(SessionError):
    """Waiting would never end: the task holds the session itself, or those wait for the task that it would wait for.

    Attributes:
        cycle: The holders, each of whom waits for the next, and the last for the first.
    """

    def __init__(self, message: str, cycle: Sequence[Holder]) -> None:
        super().__init__(message)
        self.cycle = tuple(cycle)


class CodecError(SessionError, ValueError):
    """A value can't be stored so that it comes back unchanged, or stored data can't be read.

    Attributes:
        path: Keys and indexes that lead from the session to the value.
    """

    def __init__(self, message: str, path: Sequence[object] = ()) -> None:
        super().__init__(f"{_at(path)}: {message}" if path else message)
        self.path = tuple(path)


class SessionTooLargeError(CodecError):
    """The encoded session exceeds the store's ``max_size``.

    Attributes:
        size: Bytes of the encoded session.
        limit: The store's ``max_size`` in bytes.
    """

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(
            f"the encoded session has {size:,} bytes, the limit is {limit:,}; store less, or raise max_size"
        )
        self.size = size
        self.limit = limit


class CorruptSessionError(SessionError):
    """The stored session is damaged and was moved out of the way.

    Attributes:
        path: Where the damaged data was kept, or None if it could not be moved.
    """

    def __init__(self, reason: str, path: str | None) -> None:
        kept = f"kept as {path}" if path else "it could not be moved aside"
        super().__init__(f"the stored session is damaged ({reason}); {kept}")
        self.path = path


class StoreError(SessionError):
    """The store failed: disk full, no permission, server gone. ``__cause__`` is the original."""


class CommitUnknownError(StoreError):
    """The commit may or may not be durable: the storage failed after it was handed over."""


def _restored(kind: type[SessionError], args: tuple[Any, ...], evidence: dict[str, Any]) -> SessionError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(evidence)
    return error


def _at(path: Sequence[object]) -> str:
    return "session" + "".join(f"[{step!r}]" for step in path)
