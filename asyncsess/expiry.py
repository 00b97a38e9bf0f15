"""When a session expires: pure functions of its times and the store's two limits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta

IDLE_TIMEOUT = 1800.0
LIFETIME = 86400.0

_LONGEST_TOUCH_INTERVAL = 60.0
_TOUCHES_PER_IDLE_TIMEOUT = 20


def seconds(value: float | timedelta, name: str, *, or_zero: bool = False) -> float:
    """Return a duration given as seconds or as a ``timedelta`` in seconds.

    Raises:
        ValueError: It is not greater than zero, nor zero where that is allowed.
    """
    number = value.total_seconds() if isinstance(value, timedelta) else float(value)
    if number > 0 or (or_zero and number == 0):
        return number
    raise ValueError(f"{name} must be {'0 or more' if or_zero else 'greater than 0'} seconds, not {number:g}")


def limit(value: float | timedelta | None, name: str) -> float | None:
    """Return a duration in seconds; None stands for no limit."""
    return None if value is None else seconds(value, name)


@dataclass(frozen=True, slots=True)
class Expiry:
    """The limits that a store sets to its sessions, in seconds of the store's (wall) clock.

    Attributes:
        idle_timeout: Seconds without access after which a session is over.
        lifetime: Seconds since creation after which it is over in any case.
    """

    idle_timeout: float | None = None
    lifetime: float | None = None

    @classmethod
    def of(
        cls,
        idle_timeout: float | timedelta | None = IDLE_TIMEOUT,
        lifetime: float | timedelta | None = LIFETIME,
        **others: object,
    ) -> Expiry:
        """Return the limits that the options of a store set, as `Lifecycle` has them; ignore its ``others``."""
        return cls(limit(idle_timeout, "idle_timeout"), limit(lifetime, "lifetime"))

    def ends_at(self, created_at: float, accessed_at: float) -> float:
        """Return the moment at which the session expires unless it is used before; ``inf`` for never."""
        absolute = math.inf if self.lifetime is None else created_at + self.lifetime
        idle = math.inf if self.idle_timeout is None else accessed_at + self.idle_timeout
        return min(absolute, idle)

    def is_over(self, created_at: float, accessed_at: float, now: float) -> bool:
        """Tell whether the session has expired."""
        return now >= self.ends_at(created_at, accessed_at)

    def is_touch_due(self, accessed_at: float, now: float) -> bool:
        """Tell whether a read should record the access.

        Recording each read would make readers write. A twentieth of the idle timeout, a minute at the most,
        is how much sooner than promised a session that is only read can expire.
        """
        if self.idle_timeout is None:
            return False
        interval = min(_LONGEST_TOUCH_INTERVAL, self.idle_timeout / _TOUCHES_PER_IDLE_TIMEOUT)
        return now - accessed_at >= interval
