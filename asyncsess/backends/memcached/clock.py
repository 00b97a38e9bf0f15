"""`WholeSeconds`: the time of a server that tells it in whole seconds."""

from __future__ import annotations

import math


class WholeSeconds:
    """Narrows down a server's time with each answer: none is earlier than the server says, nor a second later."""

    def __init__(self) -> None:
        self._least, self._most = -math.inf, math.inf  # what to add to this machine's clock

    @property
    def is_known(self) -> bool:
        """Whether there was an answer."""
        return math.isfinite(self._least)

    def learn(self, seconds: int, *, asked_at: float, answered_at: float) -> None:
        """Take in an answer, by this machine's clock."""
        least, most = seconds - answered_at, seconds + 1 - asked_at
        if least <= self._most and most >= self._least:
            least, most = max(least, self._least), min(most, self._most)
        self._least, self._most = least, most  # else one of the clocks was set

    def at(self, moment: float) -> float:
        """Return the server's time at a moment of this machine's clock."""
        return moment + (self._least + self._most) / 2
