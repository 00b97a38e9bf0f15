"""`ServerClock`: the time of a server, told on this machine."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from asyncsess.backends.turns import boot_time


class ServerClock:
    """Tells a server's time, so that machines whose clocks differ agree on when a session expires.

    The machine's own wall clock counts until `set_by` was called, and not at all from then on.
    """

    def __init__(self) -> None:
        self._offset = time.time() - boot_time()

    def __call__(self) -> float:
        return boot_time() + self._offset

    async def set_by(self, ask: Callable[[], Awaitable[float]]) -> None:
        """Ask the server; the answer counts for the middle of the time that it took."""
        asked_at = boot_time()
        now = await ask()
        self._offset = now - (asked_at + boot_time()) / 2
