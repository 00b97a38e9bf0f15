"""`NameHold`: the lock of a name inside a session, such as one of its variables."""

from __future__ import annotations

import asyncio
import hashlib
import os
from types import TracebackType

from asyncsess.backends.file import layout
from asyncsess.backends.file.directory import LOCKS
from asyncsess.backends.file.files import Files
from asyncsess.backends.file.lock import FileLock
from asyncsess.backends.file.waiting import Outcome, Patience, wait_for
from asyncsess.backends.turns import Turn, Turns
from asyncsess.errors import Holder, StoreError


class NameHold:
    """The exclusive right to a name, by the lock of a file that is there only while somebody needs it.

    Whoever is the last deletes the file, and whoever locks one that was deleted meanwhile begins again: else two could
    hold the name, on two files.

    Args:
        files: The files of the store.
        turns: The queues of this process.
        key: The session.
        name: What of it.
        timeout: Seconds to wait.
        holder: What to tell those who wait.
    """

    def __init__(self, files: Files, turns: Turns, key: str, name: str, *, timeout: float, holder: Holder) -> None:
        self._files = files
        self._turns = turns
        self._line = f"{key}:{name}"
        self._path = f"{LOCKS}/{hashlib.sha256(self._line.encode()).hexdigest()}"
        self._timeout = timeout
        self._holder = holder
        self._turn: Turn | None = None
        self._file: FileLock | None = None

    async def __aenter__(self) -> None:
        patience = Patience(self._timeout)
        await self._files.ready()
        self._turn = await self._turns.take(self._line, timeout=self._timeout, holder=self._holder)
        self._files.holders.add(self)
        try:
            await self._acquire(patience)
        except BaseException:
            self.lose()
            raise

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.lose()

    async def _acquire(self, patience: Patience) -> None:
        run = self._files.io.run
        while True:
            outcome = await run(self._open)
            if outcome is not Outcome.HELD and outcome is not Outcome.REPLACED:
                assert self._file is not None
                is_polite = outcome is Outcome.OTHERS_WAIT
                outcome = await wait_for(
                    self._file, lambda: run(self._try), files=self._files, patience=patience, is_polite=is_polite
                )
            if outcome is Outcome.HELD:
                return
            patience.left(None)
            await asyncio.sleep(0)

    def _open(self) -> Outcome:
        directory = self._files.directory
        try:
            self._file = FileLock(self._path, directory.fd, os.O_CREAT)
        except FileNotFoundError:  # somebody deleted the directory
            directory.restore()
            self._file = FileLock(self._path, directory.fd, os.O_CREAT)
        if self._file.is_marked_by_others():
            return Outcome.OTHERS_WAIT
        return self._try()

    def _try(self) -> Outcome:
        file = self._file
        if file is None:  # taken away meanwhile
            raise StoreError("the store was closed")
        if not file.try_lock():
            file.mark()
            return Outcome.BUSY
        if not file.leads_here():
            file.close()
            return Outcome.REPLACED
        file.write(layout.encode_holder(self._holder, 0.0, 0), layout.MARK_AT)
        return Outcome.HELD

    def lose(self) -> None:
        """Give the name back, without a word to the event loop."""
        if self._turn is None:
            return
        self._files.holders.discard(self)
        file, self._file = self._file, None
        try:
            if file:
                file.delete_unless_needed()
        finally:
            turn, self._turn = self._turn, None
            self._turns.give_back(turn)
