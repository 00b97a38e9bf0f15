"""What is measured of the events of a store: pure functions, the same for every library that collects it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from asyncsess.events import (
    Committed,
    Conflicted,
    Event,
    HeldLong,
    LeaseLost,
    Opened,
    PredecessorUsed,
    Retried,
    TimedOut,
    Waited,
)

SECONDS: Final = "s"
BYTES: Final = "By"
# A hand-over takes fractions of a millisecond, and nobody waits for longer than `lock_timeout`.
BUCKETS: Final = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 40.0)


class Measure(NamedTuple):
    """Something that is counted, or of which the distribution is kept, if it is in seconds.

    Attributes:
        name: Its name, after the conventions of OpenTelemetry, without ``asyncsess.``.
        unit: By the Unified Code for Units of Measure.
        description: What it is.
        labels: What tells its kinds apart.
    """

    name: str
    unit: str
    description: str
    labels: tuple[str, ...] = ()


class Measured(NamedTuple):
    """An amount to be added, or recorded."""

    measure: Measure
    amount: float
    labels: Mapping[str, str] = {}


OPENED: Final = Measure("opened", "{session}", "Sessions that were opened.", ("mode",))
WAIT: Final = Measure("wait.duration", SECONDS, "Time until others had let go of a session or a variable.", ("mode",))
TIMEOUTS: Final = Measure("lock.timeouts", "{timeout}", "Waits for a session or a variable in vain.", ("mode",))
COMMITS: Final = Measure("commits", "{commit}", "Versions that were stored.", ("merged",))
COMMITTED: Final = Measure("committed", BYTES, "Payloads of the versions that were stored.")
CONFLICTS: Final = Measure("conflicts", "{conflict}", "Commits that were refused, since no rule settled a conflict.")
RETRIES: Final = Measure("retries", "{retry}", "Blocks that ran again after a conflict.")
LONG_HOLD: Final = Measure("long_hold.duration", SECONDS, "Time for which others were kept waiting for too long.")
LEASES_LOST: Final = Measure("leases.lost", "{lease}", "Blocks from which a session or a variable was taken over.")
PREDECESSORS: Final = Measure("predecessors.used", "{use}", "Uses of ids that were replaced, perhaps by thieves.")

MEASURES: Final = (
    OPENED, WAIT, TIMEOUTS, COMMITS, COMMITTED, CONFLICTS, RETRIES, LONG_HOLD, LEASES_LOST, PREDECESSORS,
)  # fmt: skip


def measured(event: Event) -> Iterator[Measured]:
    """Yield what an event adds to the measures."""
    match event:
        case Opened(mode):
            yield Measured(OPENED, 1, {"mode": mode})
        case Waited(mode, seconds):
            yield Measured(WAIT, seconds, {"mode": mode})
        case TimedOut(mode):
            yield Measured(TIMEOUTS, 1, {"mode": mode})
        case Committed(size, is_merged):
            yield Measured(COMMITS, 1, {"merged": "true" if is_merged else "false"})
            yield Measured(COMMITTED, size)
        case Conflicted():
            yield Measured(CONFLICTS, 1)
        case Retried():
            yield Measured(RETRIES, 1)
        case HeldLong(seconds=seconds):
            yield Measured(LONG_HOLD, seconds)
        case LeaseLost():
            yield Measured(LEASES_LOST, 1)
        case PredecessorUsed():
            yield Measured(PREDECESSORS, 1)
