"""`Debts`: what could not be given back to a server, and is given back once it can be."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from asyncsess.backends.turns import boot_time
from asyncsess.errors import StoreError

_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 1.0


class Debt(NamedTuple):
    """A lock that is still with the server, or may be.

    Attributes:
        pay: Gives it back; may be called again.
        until: When others may take it over anyway, on the boot-time clock.
    """

    pay: Callable[[], Awaitable[None]]
    until: float


class Debts:
    """What this process owes a server; one task of each event loop pays one after the other, as long as there are any.

    Nobody waits for that: the server does not answer just now.
    """

    def __init__(self) -> None:
        self._owed = weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, deque[Debt]]()
        self._payers: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return sum(map(len, self._owed.values()))

    def owe(self, pay: Callable[[], Awaitable[None]], lease: float) -> None:
        """Give back a lock of so many seconds as soon as that is possible."""
        owed = self._owed.setdefault(asyncio.get_running_loop(), deque())
        owed.append(Debt(pay, boot_time() + lease))
        if len(owed) == 1:
            payer = asyncio.create_task(_pay(owed), name="asyncsess debts")
            self._payers.add(payer)
            payer.add_done_callback(self._payers.discard)

    async def close(self) -> None:
        """Pay no more in this event loop: locks of a process that has left are taken over."""
        loop = asyncio.get_running_loop()
        self._owed.pop(loop, None)
        payers = [payer for payer in self._payers if payer.get_loop() is loop]
        for payer in payers:
            payer.cancel()
        if payers:
            await asyncio.wait(payers)


async def _pay(owed: deque[Debt]) -> None:
    pause = _FIRST_PAUSE
    while owed:
        if owed[0].until > boot_time():
            try:
                await owed[0].pay()
            except StoreError:  # it was logged when it began
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
                continue
        owed.popleft()
        pause = _FIRST_PAUSE
