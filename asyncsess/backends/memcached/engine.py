"""`MemcachedEngine`: records and locks in memcached; each step is a ``gets`` and a ``cas``, and so two round trips."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from typing import Final, NamedTuple

from msgspec.structs import replace

from asyncsess.backends.base import Found, Record, Tombstone
from asyncsess.backends.memcached import steps
from asyncsess.backends.memcached.groups import Groups
from asyncsess.backends.memcached.layout import EMPTY, MEMBER_AGE, Item, Lock
from asyncsess.backends.memcached.looks import Looks
from asyncsess.backends.memcached.server import Server
from asyncsess.backends.remote.engine import Busy, Claim, Granted
from asyncsess.backends.remote.held import finish
from asyncsess.backends.turns import boot_time
from asyncsess.errors import LockLostError
from asyncsess.expiry import Expiry

_FIRST_PAUSE: Final = 0.001
_LONGEST_PAUSE: Final = 0.05


class _Sight(NamedTuple):
    """What a claim that waits has seen."""

    lock: Lock | None = None
    since: float = 0.0
    pause: float = _FIRST_PAUSE


class MemcachedEngine:
    """A memcached server.

    A lock is part of its session's item, so a late holder's ``cas`` fails once the lock is another's. How late a holder
    is, those who wait see by the lease that passes while they look, or by the server's clock, which tells seconds only.

    Args:
        url: As ``memcached://host:port`` or ``memcached:///path/of/socket``.
        prefix: Of all keys.
        expiry: When memcached itself drops what nobody uses.

    Raises:
        ValueError: The URL or the prefix can't be used.
    """

    def __init__(self, url: str, *, prefix: str = "asyncsess:", expiry: Expiry | None = None) -> None:
        self._prefix = prefix
        self._expiry = expiry or Expiry()
        self._server = Server(url, prefix)
        self._groups = Groups(self._server, self._expiry)
        self._looks = Looks()
        self._sights: dict[str, _Sight] = {}

    def __repr__(self) -> str:
        return f"<MemcachedEngine prefix={self._prefix!r}>"

    async def open(self) -> None:
        await self._server.ask_time()

    async def aclose(self) -> None:
        await self._looks.aclose()
        await self._server.aclose()

    async def now(self) -> float:
        return await self._server.ask_time()

    async def read(self, key: str) -> Found:
        item = await self._server.read(self._server.session(key))
        return None if item is None else item.found

    # Locks.

    async def ready(self) -> None:
        await self._server.now()
        async with self._server.use():  # else each claim would be given back later, and kept until then
            pass

    async def take(self, claim: Claim) -> Granted | Busy:
        now = await self._server.now()
        sight = self._sights.get(claim.token, _Sight())
        answer: Granted | Busy | None = None

        def take(item: Item | None) -> Item | None:
            nonlocal answer, sight
            item = item or EMPTY
            if isinstance(answer, Granted) and item.is_held_by(claim):  # done, as it turns out
                return None
            if item.lock != sight.lock:
                sight = _Sight(item.lock, boot_time(), sight.pause)
            answer, new = steps.claimed(item, claim, now, watched=boot_time() - sight.since)
            return new

        await finish(self._server.change(self._place(claim), take))
        assert answer is not None
        if isinstance(answer, Granted):
            self._sights.pop(claim.token, None)
            return answer
        left = sight.lock.lease - (boot_time() - sight.since) if sight.lock else sight.pause
        pause = max(_FIRST_PAUSE, min(sight.pause * random.uniform(0.5, 1.0), left))
        self._sights[claim.token] = sight._replace(pause=min(1.5 * sight.pause, _LONGEST_PAUSE))
        return answer._replace(pause=pause)

    async def told(self, claim: Claim, seconds: float) -> None:
        await asyncio.sleep(seconds)  # memcached tells nobody anything

    def is_contended(self, claim: Claim) -> bool:
        """Whether others wait for a lock, as of a moment ago: this asks in the background."""
        return self._looks.ask(claim.token, lambda: self._is_awaited(claim))

    async def _is_awaited(self, claim: Claim) -> bool:
        item = await self._server.read(self._place(claim))
        return item is not None and item.is_awaited(await self._server.now())

    async def leave(self, claim: Claim) -> None:
        self._sights.pop(claim.token, None)
        await self.release(claim, now=None)

    async def renew(self, claim: Claim, lease: float) -> None:
        now = await self._server.now()
        lock = Lock.of(claim._replace(lease=lease), now)

        def renew(item: Item | None) -> Item | None:
            steps.held(item, claim)
            return None if item is None or item.lock == lock else replace(item, lock=lock)

        await self._server.change(self._place(claim), renew)

    async def check(self, claim: Claim) -> None:
        steps.held(await self._server.read(self._place(claim)), claim)

    async def release(self, claim: Claim, *, now: float | None) -> None:
        at = await self._server.now()
        await self._server.change(self._place(claim), lambda item: steps.released(item, claim, now, self._expiry, at))
        await self._looks.forget(claim.token)

    # Records.

    async def create(self, claim: Claim, record: Record) -> bool:
        now = await self._server.now()
        item = await finish(
            self._server.change(self._place(claim), lambda item: steps.created(item, claim, record, self._expiry, now))
        )
        return item is not None and item.is_held_by(claim)

    async def commit(self, claim: Claim, before: Found, payload: bytes, *, now: float, is_last: bool) -> Record:
        record = Record(payload, 1, now, now)
        if isinstance(before, Record):
            record = Record(payload, before.version + 1, before.created_at, now)
        at = await self._server.now()
        try:
            await self._server.change(
                self._place(claim),
                lambda item: steps.committed(item, claim, record, self._expiry, at, is_last=is_last),
            )
        except LockLostError:
            await self._looks.forget(claim.token)
            raise
        if is_last:
            await self._looks.forget(claim.token)
        return record

    async def delete(self, claim: Claim, tombstone: Tombstone | None, *, now: float) -> None:
        stands = max(0.0, tombstone.until - now) if tombstone else 0.0
        at = await self._server.now()
        try:
            await self._server.change(
                self._place(claim), lambda item: steps.deleted(item, claim, tombstone, stands, at)
            )
        except LockLostError:
            await self._looks.forget(claim.token)
            raise
        await self._looks.forget(claim.token)

    async def touch(self, key: str, *, now: float) -> None:
        at = await self._server.now()
        await self._server.change(self._server.session(key), lambda item: steps.used(item, now, self._expiry, at))

    async def delete_expired(self, expiry: Expiry, *, now: float) -> int:
        deleted = 0
        living = set[str]()
        async for key, item in self._server.sessions():
            if steps.expired(item, expiry, now) is not None:
                deleted += await self._delete_expired(key, expiry, now)
            elif item.found is not None:
                living.add(key)
        await self._groups.sweep(living, before=now - MEMBER_AGE)
        return deleted

    async def _delete_expired(self, key: str, expiry: Expiry, now: float) -> bool:
        """Delete a session if it still has expired; return whether that was a record."""
        is_record = False

        def expire(item: Item | None) -> Item | None:
            nonlocal is_record
            left = steps.expired(item, expiry, now)
            is_record = left is not None and item is not None and item.record is not None
            return left

        await self._server.change(self._server.session(key), expire)
        return is_record

    async def keys(self) -> AsyncIterator[str]:
        async for key, item in self._server.sessions():
            if item.record is not None:
                yield key

    # Groups.

    async def add_member(self, group: str, key: str, *, now: float) -> None:
        await self._groups.add(group, key, now=now)

    async def members(self, group: str) -> Mapping[str, float]:
        return await self._groups.members(group)

    async def remove_member(self, group: str, key: str) -> None:
        await self._groups.remove(group, key)

    def _place(self, claim: Claim) -> bytes:
        server = self._server
        return server.session(claim.key) if claim.name is None else server.name(claim.key, claim.name)
