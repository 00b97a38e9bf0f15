"""`Observer`: what happens in a store, counted, and told to its hooks."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

from asyncsess.backends.base import BackendStatistics
from asyncsess.events import (
    Committed,
    Conflicted,
    Event,
    HeldLong,
    Hook,
    LeaseLost,
    Mode,
    Opened,
    Retried,
    TimedOut,
    Waited,
)
from asyncsess.statistics import Statistics

logger = logging.getLogger("asyncsess")


class Observer:
    """The counts of one store in this process.

    Args:
        hooks: Who else is told.
        slow_hold: Seconds for which somebody may keep others waiting without a warning.

    Attributes:
        opened: How many sessions were opened in each way.
        waits, wait_total, wait_longest: How often others were waited for; and the seconds, of all and of the longest.
        events: How many events of each other kind there were.
        merges, committed_bytes: Commits that took in what others had stored; and the bytes of all commits.
    """

    __slots__ = (
        "_hooks", "committed_bytes", "events", "merges", "opened", "slow_hold", "wait_longest", "wait_total", "waits",
    )  # fmt: skip

    def __init__(self, hooks: Sequence[Hook], slow_hold: float) -> None:
        self._hooks: Final = tuple(hooks)
        self.slow_hold: Final = slow_hold
        self.opened: dict[Mode, int] = dict.fromkeys(("exclusive", "readonly", "edit", "synchronize", "apply"), 0)
        self.events = Counter[type[Event]]()
        self.waits = self.merges = self.committed_bytes = 0
        self.wait_total = self.wait_longest = 0.0

    def note_opened(self, mode: Mode) -> None:
        """Note that a session was opened."""
        self.opened[mode] += 1
        if self._hooks:
            self._tell(Opened(mode))

    def note_waited(self, mode: Mode, seconds: float) -> None:
        """Note for how long others were waited for."""
        self.waits += 1
        self.wait_total += seconds
        self.wait_longest = max(self.wait_longest, seconds)
        if self._hooks:
            self._tell(Waited(mode, seconds))

    def note_committed(self, size: int, *, is_merged: bool = False) -> None:
        """Note that a payload of so many bytes was stored."""
        self.committed_bytes += size
        self.merges += is_merged
        if self._hooks:
            self._tell(Committed(size, is_merged))

    def note(self, event: Event) -> None:
        """Note what happens more rarely."""
        self.events[type(event)] += 1
        if isinstance(event, HeldLong):
            logger.warning(
                "a session was held for %.3g s while others waited for it: %s; see release(), edit() and synchronize()",
                event.seconds,
                event.holder,
            )
        self._tell(event)

    def statistics(self, now: BackendStatistics, *, opened_now: int, swept: int) -> Statistics:
        """Return the counts, with what the backend and the store know themselves."""
        return Statistics(
            **asdict(now),
            open=opened_now,
            swept=swept,
            opened=dict(self.opened),
            waits=self.waits,
            wait_total=self.wait_total,
            wait_longest=self.wait_longest,
            timeouts=self.events[TimedOut],
            committed_bytes=self.committed_bytes,
            merges=self.merges,
            conflicts=self.events[Conflicted],
            retries=self.events[Retried],
            leases_lost=self.events[LeaseLost],
            held_long=self.events[HeldLong],
        )

    def _tell(self, event: Event) -> None:
        for hook in self._hooks:
            try:
                hook(event)
            except Exception:  # whatever a hook raises is its own affair, and no reason to lose a commit
                logger.exception("a hook failed on %s; the session is not concerned", type(event).__name__)
