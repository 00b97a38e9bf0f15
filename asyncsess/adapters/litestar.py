"""Drop-in for Litestar: `AsyncsessStore` keeps its values in a directory."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from datetime import timedelta
from types import TracebackType
from typing import Final, Self

from litestar.stores.base import NamespacedStore

from asyncsess.adapters.entries import Entries, Entry, Format, json_data, json_values, store_id
from asyncsess.adapters.loads import Loads
from asyncsess.backends.base import Found, Record
from asyncsess.backends.file import Durability
from asyncsess.codec import Codec, MsgpackCodec
from asyncsess.errors import CodecError, CorruptSessionError
from asyncsess.expiry import limit
from asyncsess.ids import key_of
from asyncsess.openings import Caller, holder_at
from asyncsess.rules import Resolve
from asyncsess.stores import FileStore
from asyncsess.sweeper import Sweeper

logger = logging.getLogger("asyncsess")

_ADAPTER: Final = "litestar"
_LOCK_TIMEOUT: Final = 40.0


class AsyncsessStore(NamespacedStore):
    """A store for Litestar that merges what concurrent requests change in a JSON object, such as a session.

        Litestar(..., stores={"sessions": AsyncsessStore("var/sessions", resolve={"hits": rules.add})})

    What a request got is what its set is merged against. The request is known by its task, and by the tasks that this
    started afterwards, which fits where Litestar gets and sets a session. A set without a get before it replaces what
    is there, as in other stores, and anything but a JSON object is stored whole. A set that comes too late, because the
    key was deleted since the get, raises `SessionNotFoundError`; one that meets a conflict raises `ConflictError`: the
    client gets a 500.

    Litestar itself adopts an id that a client chose; no store can keep it from that. Data of the rate limiter conflict
    if several processes count the same client: give it ``with_namespace("rate_limit", resolve=rules.theirs)``.

    Where there is nothing, an empty JSON object is not stored: Litestar sets one for each visitor without a session.
    A value that is only read and set again as it was may expire by a twentieth sooner than ``expires_in`` after that,
    a minute at the most, so that readers need not write.

    It works without being entered; entered, as Litestar does it for the stores that the application was made with, it
    also deletes what has expired from time to time, and closes itself at the end.

    Args:
        directory: Where; as for `FileStore`.
        resolve: What becomes of what two requests changed; as for `SessionStore.edit`.
        durability, codec: As for `FileStore`.
        max_size: Bytes that a value may have.
        sweep_interval: Seconds between two sweeps; None for none.
    """

    __slots__ = ("_entries", "_files", "_loads")

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        resolve: Resolve = None,
        durability: Durability = "process",
        codec: Codec | None = None,
        max_size: int = 64 * 1024 * 1024,
        sweep_interval: float | timedelta | None = 300.0,
    ) -> None:
        self.namespace: tuple[str, ...] = ()
        interval = limit(sweep_interval, "sweep_interval")
        self._files = _Files(directory, durability, codec or MsgpackCodec(), max_size, interval)
        self._entries = Entries(self._files.store, resolve, Format(json_values, json_data))
        self._loads = Loads()

    def __repr__(self) -> str:
        return f"<AsyncsessStore {self._files.store.backend!r} namespace={self.namespace}>"

    def with_namespace(self, namespace: str, *, resolve: Resolve = None) -> Self:
        """Return a store of its own in the same directory, which bulk operations of this one reach too.

        Args:
            namespace: Any string but the empty one.
            resolve: What settles conflicts there; as here if None.

        Raises:
            ValueError: The namespace is empty.
        """
        if not namespace:
            raise ValueError("a namespace has a name")
        child = copy(self)
        child.namespace = (*self.namespace, namespace)
        if resolve is not None:
            child._entries = Entries(self._files.store, resolve, Format(json_values, json_data))
        return child

    async def __aenter__(self) -> None:
        await self._files.enter()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._files.leave()

    async def set(self, key: str, value: str | bytes, expires_in: int | timedelta | None = None) -> None:
        """Store a value, merged into what others stored since this request got it.

        Raises:
            ConflictError, SessionNotFoundError: As `Entries.save`.
        """
        await self._files.ready()
        session_id, data = self._id(key), value.encode() if isinstance(value, str) else bytes(value)
        ours = Entry(data, _seconds(expires_in), extra={"namespace": json.dumps(self.namespace)})
        loaded = self._loads.recall(session_id)
        if json_values(data) == {} and not (loaded.entry if loaded else await self._entries.load(session_id)):
            return
        if loaded is None or (loaded.entry is None and json_values(data) is None):
            await self._entries.put(session_id, ours)
            return
        stored = await self._entries.save(session_id, loaded.entry, ours)
        self._loads.remember(session_id, replace(stored, data=data))

    async def get(self, key: str, renew_for: int | timedelta | None = None) -> bytes | None:
        """Return a value, and let it last for ``renew_for`` seconds more if it is one that expires."""
        await self._files.ready()
        session_id, ttl = self._id(key), _seconds(renew_for)
        entry = await self._entries.load(session_id)
        if entry is not None and entry.ttl is not None and ttl is not None:
            entry = await self._entries.renew(session_id, entry, Entry(b"", ttl))
        if entry is None or json_values(entry.data) is not None:
            self._loads.remember(session_id, entry)
        else:
            self._loads.forget(session_id)
        return None if entry is None else entry.data

    async def delete(self, key: str) -> None:
        """Delete a value, if there is one."""
        await self._files.ready()
        session_id = self._id(key)
        await self._files.delete(key_of(session_id))
        self._loads.forget(session_id)

    async def delete_all(self) -> None:
        """Delete all values of this namespace, and of those in it."""
        await self._files.ready()
        await self._files.delete_each(self._is_here)
        self._loads.forget_each(self._is_here)

    async def delete_expired(self) -> None:
        """Delete the values of this namespace that have expired, and of those in it.

        One damaged file does not keep the others from being deleted; it is moved aside.
        """
        await self._files.ready()
        await self._files.sweep(self._is_here)

    async def exists(self, key: str) -> bool:
        """Tell whether there is a value that has not expired."""
        await self._files.ready()
        return await self._entries.load(self._id(key)) is not None

    async def expires_in(self, key: str) -> int | None:
        """Return in how many seconds a value expires; -1 if it does not, and None if there is none."""
        await self._files.ready()
        entry = await self._entries.load(self._id(key))
        if entry is None:
            return None
        return -1 if entry.ttl is None else int(entry.expires_at - time.time())

    def _id(self, key: str) -> str:
        return store_id(_ADAPTER, *self.namespace, key)

    def _is_here(self, entry: Entry) -> bool:
        namespace = json.loads(entry.extra["namespace"])
        return tuple(namespace[: len(self.namespace)]) == self.namespace


class _Files:
    """The files of all namespaces: open from their first use, closed when the last that entered has left."""

    def __init__(
        self,
        directory: str | os.PathLike[str],
        durability: Durability,
        codec: Codec,
        max_size: int,
        sweep_interval: float | None,
    ) -> None:
        self.store = FileStore(
            directory,
            durability=durability,
            codec=codec,
            max_size=max_size,
            idle_timeout=None,
            lifetime=None,
            sweep_interval=None,
        )
        self._codec = codec
        self._sweeper = Sweeper(self.sweep, sweep_interval)
        self._entered = 0
        self._is_closed = False

    async def enter(self) -> None:
        """Get ready, and begin to sweep."""
        await self.store.__aenter__()
        self._is_closed = False
        self._entered += 1
        if self._entered == 1:
            self._sweeper.start()

    async def leave(self) -> None:
        """Close, if this was the last that had entered."""
        self._entered -= 1
        if not self._entered:
            await self._sweeper.stop()
            self._is_closed = True
            await self.store.aclose()

    async def ready(self) -> None:
        """Open again what was closed: other stores of Litestar can be used after their application has ended too."""
        if self._is_closed:
            await self.store.__aenter__()
            self._is_closed = False

    async def sweep(self, is_meant: Callable[[Entry], bool] = lambda entry: True) -> None:
        """Delete the entries of a kind that are over, and what processes that were killed left behind."""
        await self.delete_each(lambda entry: entry.is_over and is_meant(entry))
        await self.store.delete_expired()

    async def delete_each(self, is_meant: Callable[[Entry], bool]) -> None:
        """Delete all entries of a kind."""
        async for key in self.store.keys():
            try:
                if self._is_meant(key, await self.store.backend.read(key), is_meant):
                    await self.delete(key, is_meant)
            except (CorruptSessionError, CodecError) as error:
                logger.warning("one of the values in a directory can't be read, so it is left out: %s", str(error))
            await asyncio.sleep(0)  # reading does not suspend, and there may be many

    async def delete(self, key: str, is_meant: Callable[[Entry], bool] | None = None) -> None:
        """Delete an entry, unless it is another by now than was meant.

        Nothing keeps its key from being used again at once, as Litestar's keys are.
        """
        holder = holder_at(asyncio.current_task(), Caller(__name__, 0))
        async with self.store.backend.hold(key, timeout=_LOCK_TIMEOUT, holder=holder) as held:
            if is_meant is None or self._is_meant(key, held.record, is_meant):
                await held.delete(now=self.store.clock())

    def _is_meant(self, key: str, found: Found, is_meant: Callable[[Entry], bool]) -> bool:
        if not isinstance(found, Record):
            return False
        entry = Entry.of(self._codec.decode(self._codec.unseal(found.payload, key)))
        return entry is not None and is_meant(entry)


def _seconds(duration: int | timedelta | None) -> float | None:
    """Return a duration of Litestar's in seconds; 0 stands for no end, as None does."""
    number = duration.total_seconds() if isinstance(duration, timedelta) else duration
    return float(number) if number else None
