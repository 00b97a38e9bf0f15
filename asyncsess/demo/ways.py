"""The ways to open a session that the demo compares: each is one small class, and a row of the table.

A server calls `Way.start`, `Way.add` and `Way.read` in its handlers; the clients look at the rest. A further way is
a further class in `WAYS`.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from itertools import cycle
from pathlib import Path
from typing import Any, ClassVar, Final

from asyncsess import SessionStore, increment, rules

WINDOWS: Final = 20
Work = Callable[[], Awaitable[None]]


class Way(ABC):
    """One way for a handler to open a session that counts visits.

    Attributes:
        name: How it is called in URLs.
        title: How it is called in the table.
        story: What it does, in a sentence for the table's reader.
        has_slow_writer: Whether the clients read beside one slow writer, instead of all writing.
        is_safe: Whether it promises to lose nothing.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    story: ClassVar[str]
    has_slow_writer: ClassVar[bool] = False
    is_safe: ClassVar[bool] = True

    def __init__(self, directory: Path, store: SessionStore) -> None:
        self.directory = directory
        self.store = store

    @abstractmethod
    async def start(self) -> str:
        """Start a session without visits; return its id."""

    @abstractmethod
    async def add(self, session_id: str, work: Work) -> int:
        """Do the work of a handler that counts one more visit; return the count."""

    @abstractmethod
    async def read(self, session_id: str) -> int:
        """Return the count of visits."""


class NoLocking(Way):
    """Load the whole session, work, write the whole back: the last write wins.

    This is how today's asyncio session libraries work. It is done fairly here: a file is only ever replaced as a
    whole, by renaming, so no reader finds half a session.
    """

    name = "no-locking"
    title = "no locking"
    story = "Each request loads the session, works, and writes all of it back, as asyncio session libraries do."
    is_safe = False

    async def start(self) -> str:
        """Write the first file."""
        session_id = secrets.token_urlsafe(32)
        self._save(session_id, {"visits": 0})
        return session_id

    async def add(self, session_id: str, work: Work) -> int:
        """Add to what was loaded before the work."""
        session = self._load(session_id)
        await work()
        session["visits"] += 1
        self._save(session_id, session)
        return int(session["visits"])

    async def read(self, session_id: str) -> int:
        """Load the session."""
        return int(self._load(session_id)["visits"])

    def _load(self, session_id: str) -> dict[str, Any]:
        session: dict[str, Any] = json.loads(self._path(session_id).read_bytes())
        return session

    def _save(self, session_id: str, session: dict[str, Any]) -> None:
        path = self._path(session_id)
        new = path.with_suffix(f".{secrets.token_hex(8)}")
        new.write_text(json.dumps(session))
        new.replace(path)

    def _path(self, session_id: str) -> Path:
        return self.directory / hashlib.sha256(session_id.encode()).hexdigest()


class Exclusive(Way):
    """Open the session for this request alone; others that write wait for their turn."""

    name = "exclusive"
    title = "open(id)"
    story = "The same work inside `async with store.open(id)`: who writes waits for its turn."

    async def start(self) -> str:
        """Create the session in the store."""
        return await self.store.create({"visits": 0})

    async def add(self, session_id: str, work: Work) -> int:
        """Work and add inside the block, which commits at its end."""
        async with self.store.open(session_id) as session:
            await work()
            session["visits"] += 1
            return int(session["visits"])

    async def read(self, session_id: str) -> int:
        """Open the session exclusively, although nothing will be changed."""
        async with self.store.open(session_id) as session:
            return int(session["visits"])


class Edit(Exclusive):
    """Work without a lock, and have what was changed merged in at the end."""

    name = "edit"
    title = "edit(id, resolve=rules.add)"
    story = "The same work inside `async with store.edit(id)`: nobody waits; what each added is merged at the end."

    async def add(self, session_id: str, work: Work) -> int:
        """Work and add inside the block, which takes the lock for a moment at its end."""
        async with self.store.edit(session_id, resolve={"visits": rules.add}) as session:
            await work()
            session["visits"] += 1
            return int(session["visits"])


class Apply(Exclusive):
    """Work first, and then run one operation on the newest data."""

    name = "apply"
    title = "apply(id, increment(...))"
    story = "The same work, then `store.apply(id, increment('visits'))`, which runs on the newest data."

    async def add(self, session_id: str, work: Work) -> int:
        """Work, then add."""
        await work()
        (visits,) = await self.store.apply(session_id, increment("visits"))
        return int(visits)


class Synchronize(Exclusive):
    """Lock the variable of one window of the browser, not the session."""

    name = "synchronize"
    title = "synchronize(id, variable)"
    story = f"Each request counts for one of {WINDOWS} windows, and locks only that window's variable."

    def __init__(self, directory: Path, store: SessionStore) -> None:
        super().__init__(directory, store)
        self._windows = cycle(f"window {number}" for number in range(WINDOWS))

    async def start(self) -> str:
        """Create a session without windows."""
        return await self.store.create()

    async def add(self, session_id: str, work: Work) -> int:
        """Work and add while the variable is locked."""
        window = next(self._windows)
        async with self.store.synchronize(session_id, window) as session:
            await work()
            visits = session[window] = session.get(window, 0) + 1
        return int(visits)

    async def read(self, session_id: str) -> int:
        """Add up the visits of all windows."""
        async with self.store.open(session_id, readonly=True) as session:
            return sum(session.values())


class LockingReaders(Exclusive):
    """Readers open the session exclusively too, as PHP's sessions make them."""

    name = "locking-readers"
    title = "open(id), readers too"
    story = "One request holds the session for a second; requests that only read wait for it, as in PHP."
    has_slow_writer = True


class ReadonlyReaders(Exclusive):
    """Readers take a snapshot, and wait for nobody."""

    name = "readonly-readers"
    title = "open(id, readonly=True)"
    story = "The same slow request, but those that only read say so, and wait for nobody."
    has_slow_writer = True

    async def read(self, session_id: str) -> int:
        """Open a snapshot."""
        async with self.store.open(session_id, readonly=True) as session:
            return int(session["visits"])


WAYS: tuple[type[Way], ...] = (NoLocking, Exclusive, Edit, Synchronize, Apply, LockingReaders, ReadonlyReaders)
