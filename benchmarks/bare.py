"""What one does without a store, and what a place where sessions are kept tells of itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NamedTuple

Call = Callable[[str], Awaitable[object]]
"""Does something to what is stored under a name."""


@dataclass(frozen=True, slots=True)
class Bare:
    """What one does without a store, and by which calls.

    Attributes:
        put: Stores the session under a name.
        reading: Reads it.
        changing: Reads it, changes it and writes it back; updates may get lost, unless the system sees to it.
        locking: The same, such that no update is lost.
    """

    put: Call
    reading: tuple[str, Call]
    changing: tuple[str, Call]
    locking: tuple[str, Call]


class Usage(NamedTuple):
    """What a place tells of itself.

    Attributes:
        stored: Bytes that all sessions take.
        worked: Seconds of processor time that its server has taken; None if there is no server.
    """

    stored: int
    worked: float | None
