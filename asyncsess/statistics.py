"""`Statistics`: what a store tells about itself."""

from __future__ import annotations

from dataclasses import dataclass

from asyncsess.backends.base import BackendStatistics


@dataclass(frozen=True, slots=True)
class Statistics(BackendStatistics):
    """What a store is doing right now, and has done in this process.

    Attributes:
        open: Blocks that have a session open for writing, or wait for one.
        swept: Expired sessions that this store has deleted.
    """

    open: int = 0
    swept: int = 0
