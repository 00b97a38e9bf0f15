"""`Groups`: the members of groups, also those of which memcached has dropped the list.

The list is one item, and memcached may drop it and keep the sessions: whoever ends all sessions of an owner would miss
them. So each session says itself of which groups it is. A list is whole if memcached had not dropped anything yet when
it was there; any other is compared with all sessions once, and then is.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Mapping
from functools import partial
from typing import Final

from msgspec.structs import replace

from asyncsess.backends.memcached import layout
from asyncsess.backends.memcached.connection import Connection
from asyncsess.backends.memcached.layout import EMPTY, MEMBER_AGE, Item, Log
from asyncsess.backends.memcached.server import Server, store
from asyncsess.errors import StoreError
from asyncsess.expiry import Expiry

logger = logging.getLogger("asyncsess")

_TRIES: Final = 10
_LOSSES: Final = (b"evictions", b"slab_reassign_evictions_nomem", b"slab_reassign_busy_deletes")


class Groups:
    """Who is a member of which group.

    Args:
        server: Where.
        expiry: After which time a group without a new member has none any more.
    """

    def __init__(self, server: Server, expiry: Expiry) -> None:
        self._server = server
        self._lifetime = expiry.lifetime

    async def add(self, group: str, key: str, *, now: float) -> None:
        """Add a key to a group; how many others do the same makes no difference."""

        def join(item: Item | None) -> Item | None:
            item = item or EMPTY
            groups = {**item.groups, group: now}
            return None if item.groups == groups else replace(item, groups=groups)

        await self._server.change(self._server.session(key), join)
        await self._append(group, layout.added(key, now))

    async def remove(self, group: str, key: str) -> None:
        """Remove a key from a group."""

        def part(item: Item | None) -> Item | None:
            if item is None or group not in item.groups:
                return None
            groups = {name: since for name, since in item.groups.items() if name != group}
            return replace(item, groups=groups)

        await self._server.change(self._server.session(key), part)
        await self._append(group, layout.removed(key))

    async def _append(self, group: str, entry: bytes) -> None:
        """Add to the log of a group; to do so twice does no harm."""
        name, ends = self._server.group(group), await self._ends()

        async def append(connection: Connection) -> bool:
            for _ in range(_TRIES):
                # An item keeps its time to live when something is appended.
                if await connection.append(name, entry) and await connection.touch(name, ends):
                    return True
                if await connection.add(name, layout.new_log(Log({}, is_whole=False)) + entry, ends):
                    return True
            return False

        if not await self._server.ask(append):
            raise StoreError("memcached takes no more members of a group; start it with a larger -m or -I")

    async def members(self, group: str) -> Mapping[str, float]:
        """Return the keys in a group and when each was added."""
        name = self._server.group(group)
        data, log, is_sound = await self._server.ask(partial(self._look, name=name))
        if log.is_whole:
            return log.members
        members = dict(log.members)
        if not is_sound:
            async for key, item in self._server.sessions():
                if group in item.groups:
                    members.setdefault(key, item.groups[group])
        # A list that was not there may come and go meanwhile; it is whole if it is the same the next time.
        await self._replace(name, data, Log(members, is_whole=data is not None))
        return members

    async def sweep(self, living: Container[str], *, before: float) -> None:
        """Remove those members that were added before a time and have neither a record nor a tombstone.

        Args:
            living: Keys that have one for sure.
            before: The time.
        """
        for group in await self._server.stored(b"g:"):
            name = self._server.group(group)
            data, log, _ = await self._server.ask(partial(self._look, name=name))
            old = [key for key, since in log.members.items() if since < before and key not in living]
            gone = {key for key in old if await self._is_gone(key)}
            if gone:
                left = {key: since for key, since in log.members.items() if key not in gone}
                await self._replace(name, data, Log(left, log.is_whole))

    async def _is_gone(self, key: str) -> bool:
        item = await self._server.read(self._server.session(key))
        return item is None or item.found is None

    async def _replace(self, name: bytes, before: bytes | None, log: Log) -> None:
        """Replace a list, unless it was changed meanwhile."""
        if not log.members and before is None:
            return
        data, ends = layout.new_log(log), await self._ends(is_empty=not log.members)

        async def store_list(connection: Connection) -> None:
            found, cas = await connection.gets(name)
            if found == before:
                await store(connection, name, data, cas, ends)

        await self._server.ask(store_list)

    async def _ends(self, *, is_empty: bool = False) -> int:
        """Return when a list may go: no session lives longer than those that have joined last."""
        if is_empty:
            return layout.exptime(MEMBER_AGE, await self._server.now())
        if self._lifetime is None:
            return 0
        return layout.exptime(self._lifetime + 2 * MEMBER_AGE, await self._server.now())

    async def _look(self, connection: Connection, name: bytes) -> tuple[bytes | None, Log, bool]:
        """Return the log of a group, what it says, and whether memcached has dropped nothing so far."""
        data, cas = await connection.gets(name)
        log = Log({}, is_whole=False)
        if data is not None:
            try:
                log = layout.read_log(data)
            except ValueError:  # the sessions know better
                logger.warning("%s", await self._server.move_aside(connection, name, data, cas))
                return None, log, False
        if log.is_whole:
            return data, log, True
        stats = await connection.stats()
        return data, log, not any(int(stats.get(loss) or b"0") for loss in _LOSSES)
