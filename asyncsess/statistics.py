"""`Statistics`: what a store tells about itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from asyncsess.backends.base import BackendStatistics
from asyncsess.events import Mode


@dataclass(frozen=True, slots=True)
class Statistics(BackendStatistics):
    """What a store is doing right now, and has done in this process.

    Attributes:
        open: Blocks that have a session open for writing, or wait for one.
        swept: Expired sessions that this store has deleted.
        opened: How often a session was opened in each way: exclusive, readonly, edit, synchronize, apply.
        waits: How often others were waited for, until they had let go of a session or a variable.
        wait_total: Seconds of all these waits together.
        wait_longest: Seconds of the longest.
        timeouts: Waits in vain, which are not among those above.
        committed_bytes: Bytes of the payloads that were stored.
        merges: Commits that took in what others had stored meanwhile.
        conflicts: Commits that were refused, since no rule settled what both sides had changed.
        retries: Blocks of `SessionStore.attempts` that ran again.
        leases_lost: Blocks from which a session or a variable was taken over.
        held_long: Blocks that kept others waiting for longer than ``slow_hold``.
    """

    open: int = 0
    swept: int = 0
    opened: Mapping[Mode, int] = field(default_factory=dict[Mode, int])
    waits: int = 0
    wait_total: float = 0.0
    wait_longest: float = 0.0
    timeouts: int = 0
    committed_bytes: int = 0
    merges: int = 0
    conflicts: int = 0
    retries: int = 0
    leases_lost: int = 0
    held_long: int = 0
