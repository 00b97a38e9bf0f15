"""What a store tells those who watch it: events, and the hook that receives them.

No event shows a session id, a key or a value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol

from asyncsess.errors import Holder

Mode = Literal["exclusive", "readonly", "edit", "synchronize", "apply"]


@dataclass(frozen=True, slots=True)
class Opened:
    """A session was opened.

    Attributes:
        mode: In which way.
    """

    mode: Mode


@dataclass(frozen=True, slots=True)
class Waited:
    """A session or a variable was free after others had let go of it.

    Attributes:
        mode: In which way it was to be opened, or was opened that now commits.
        seconds: How long that took.
    """

    mode: Mode
    seconds: float


@dataclass(frozen=True, slots=True)
class TimedOut:
    """A session or a variable was not free in time; the block was not entered, or its changes were not stored.

    Attributes:
        mode: In which way it was to be opened, or was opened that was to commit.
        seconds: How long it was waited for.
    """

    mode: Mode
    seconds: float


@dataclass(frozen=True, slots=True)
class Committed:
    """A version was stored.

    Attributes:
        size: Bytes of its payload.
        is_merged: Whether it contains what others had stored since the block began.
    """

    size: int
    is_merged: bool


@dataclass(frozen=True, slots=True)
class Conflicted:
    """A block met a conflict that no rule settled.

    Attributes:
        paths: Keys that lead to each value that both sides changed.
    """

    paths: Sequence[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Retried:
    """A block runs again after a conflict, see `SessionStore.attempts`.

    Attributes:
        number: Which attempt this is; the second is 2.
    """

    number: int


@dataclass(frozen=True, slots=True)
class HeldLong:
    """Somebody kept others waiting for longer than ``slow_hold``.

    Attributes:
        holder: Who, and the line of code that opened the session.
        seconds: For how long it held.
    """

    holder: Holder
    seconds: float


@dataclass(frozen=True, slots=True)
class LeaseLost:
    """A block found that its session or variable had been taken over; what it had not committed is lost.

    Attributes:
        holder: The block that lost it.
    """

    holder: Holder


@dataclass(frozen=True, slots=True)
class PredecessorUsed:
    """Somebody used an id that was replaced, after its time of grace: perhaps a thief.

    Attributes:
        died_at: When the id ceased to lead to the session, in UTC.
        successor_id: Under which id the session lives on, for those who then end it with `SessionStore.destroy`; it is
            not shown, and must not be.
    """

    died_at: datetime
    successor_id: str = field(repr=False)


Event = Opened | Waited | TimedOut | Committed | Conflicted | Retried | HeldLong | LeaseLost | PredecessorUsed


class Hook(Protocol):
    """Who is told of every event, for metrics and alarms.

    Called at once, on the event loop that the event happens on: it must not block. What it raises is logged.
    """

    def __call__(self, event: Event, /) -> None:
        """Take note of an event."""
        ...
