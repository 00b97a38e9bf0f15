"""How much is measured: enough to trust, to smoke-test, or everything."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scale:
    """The size of a run; durations in seconds.

    Attributes:
        name: What the results call it.
        rounds: Turns of each competitor.
        turn: How long one turn takes.
        swaps: Hand-overs between two processes in a round.
        swap_rounds: Rounds of these.
        kills: Holders killed.
        crowd: How long the processes compete for one session.
        hold: How long the writer holds the lock beside the readers.
        reads: Snapshots read meanwhile.
        swept: Sessions that the sweep looks at.
        sessions: Sessions on disk, and distinct ids that are opened.
        visit_rounds: Turns of a store, and of bare commands, on many sessions.
        visits: How long one of these takes.
        stored: Sessions whose memory is measured.
        web_rounds: Turns of each web server.
        web_turn: How long one of these takes, in whole seconds.
    """

    name: str
    rounds: int
    turn: float
    swaps: int
    swap_rounds: int
    kills: int
    crowd: float
    hold: float
    reads: int
    swept: int
    sessions: int
    visit_rounds: int
    visits: float
    stored: int
    web_rounds: int
    web_turn: int


DEFAULT = Scale(
    "default", rounds=25, turn=0.03, swaps=150, swap_rounds=5, kills=40, crowd=10.0, hold=1.0, reads=400,
    swept=100_000, sessions=200_000, visit_rounds=5, visits=2.0, stored=20_000, web_rounds=3, web_turn=2,
)  # fmt: skip
FULL = Scale(
    "full", rounds=51, turn=0.05, swaps=400, swap_rounds=5, kills=100, crowd=10.0, hold=1.0, reads=400,
    swept=100_000, sessions=1_000_000, visit_rounds=5, visits=4.0, stored=50_000, web_rounds=5, web_turn=4,
)  # fmt: skip
QUICK = Scale(
    "quick", rounds=5, turn=0.005, swaps=30, swap_rounds=1, kills=3, crowd=1.0, hold=0.3, reads=100,
    swept=3_000, sessions=3_000, visit_rounds=1, visits=0.3, stored=640, web_rounds=1, web_turn=1,
)  # fmt: skip
