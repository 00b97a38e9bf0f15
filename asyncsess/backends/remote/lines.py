"""`Lines`: who waits for a lock in this process, and who of them stands in the line of the server."""

from __future__ import annotations

import asyncio
import os
import secrets
import weakref
from itertools import count
from typing import TYPE_CHECKING, Final

from asyncsess.backends.remote.engine import Engine
from asyncsess.backends.remote.returns import Returns
from asyncsess.backends.turns import Turns
from asyncsess.errors import StoreError

if TYPE_CHECKING:
    from asyncsess.backends.remote.held import RemoteHold

CLOSED: Final = "the store was closed; enter it again, or make a new one"
_LOOK_EVERY: Final = 0.005
_numbers = count(1)


class Process:
    """What tells this process from all others that use a server; made anew in the child of a fork."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Take a name that no other process has."""
        self.name = secrets.token_hex(8)

    def token(self) -> str:
        """Return what no claim has had before."""
        return f"{self.name}.{next(_numbers)}"

    def has_made(self, token: str) -> bool:
        """Tell whether a token is of this process, and not of one that it was forked from."""
        return token.startswith(f"{self.name}.")


process: Final = Process()


class Lines(Turns):
    """The lines of this process, whose first stand in those of a server.

    Args:
        engine: The server.

    Attributes:
        engine: The server.
        is_closed: Whether nobody gets anything any more.
        asking: Those who ask the server for a lock.
        holds: Those who have one.
        returns: Locks that are given back later.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.is_closed = False
        super().__init__()

    def _reset(self) -> None:
        super()._reset()
        self.asking: set[RemoteHold] = set()
        self.holds: weakref.WeakSet[RemoteHold] = weakref.WeakSet()
        self.returns = Returns(self.engine)

    @property
    def holding(self) -> int:
        """Locks that are held, by the server's word."""
        return super().holding - len(self.asking)

    @property
    def waiting(self) -> int:
        """Tasks that wait behind a holder, of this process or another."""
        return super().waiting + sum(hold.is_waiting for hold in self.asking)

    def check_open(self) -> None:
        """Raise `StoreError` if the store is closed."""
        if self.is_closed:
            raise StoreError(CLOSED)

    async def close(self) -> None:
        """Take everything back, from those who ask in the running loop as well."""
        self.is_closed = True
        await asyncio.gather(*(hold.lose() for hold in list(self.holds)))  # a server that hangs costs its time once
        self.take_back()
        loop = asyncio.get_running_loop()
        while asking := [hold for hold in self.asking if hold.is_of(loop)]:
            for hold in asking:
                hold.wake()
            await asyncio.sleep(_LOOK_EVERY)
        await self.returns.aclose()


os.register_at_fork(after_in_child=process.begin)
