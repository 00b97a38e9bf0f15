"""`RedisEngine`: records and locks in Redis or Valkey; each step is one script, and so one round trip."""

from __future__ import annotations

import asyncio
import math
import re
import weakref
from collections.abc import AsyncIterator, Coroutine, Mapping
from functools import partial
from secrets import token_hex
from typing import Any, Final

from redis.exceptions import ResponseError

from asyncsess.backends.base import Found, Record, Tombstone
from asyncsess.backends.redis import layout, scripts
from asyncsess.backends.redis.clients import Client, check, connect, timeout_of
from asyncsess.backends.redis.connections import Connections
from asyncsess.backends.redis.failures import no_cancellation_lost, translating
from asyncsess.backends.redis.masses import each
from asyncsess.backends.redis.scripts import Script
from asyncsess.backends.remote import holders
from asyncsess.backends.remote.engine import Busy, Claim, Granted
from asyncsess.errors import CommitUnknownError, CorruptSessionError, LockLostError, StoreError
from asyncsess.expiry import Expiry

_MEMBER_AGE: Final = 60.0
_PER_SCAN: Final = 500
_LONGER: Final = 60.0  # for which what nobody finds any more is there nevertheless
_KEPT: Final = 30 * 86400  # seconds for which what can't be read is kept
_LOST: Final = "the session was taken over by another; nothing was stored"
_TAKEN: Final = 1
_NOTHING: Final = 2


class RedisEngine:
    """A Redis or Valkey server, or a cluster of them.

    Args:
        server: Its URL, or a client of ``redis.asyncio``, which is used in its own event loop only.
        prefix: Of the names of all keys and channels.
        expiry: When the server itself deletes what nobody uses.

    Raises:
        TypeError: The server is neither a URL nor such a client.
        ValueError: The URL is none, or the client decodes what it reads.
    """

    def __init__(self, server: str | Client, *, prefix: str = "asyncsess:", expiry: Expiry | None = None) -> None:
        check(server)
        self._server = server
        self._timeout = timeout_of(server)
        self._prefix = prefix
        self._expiry = expiry or Expiry()
        self._connections = weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Connections]()

    def __repr__(self) -> str:
        return f"<RedisEngine prefix={self._prefix!r}>"

    async def open(self) -> None:
        await self.ready()

    async def aclose(self) -> None:
        here = self._connections.pop(asyncio.get_running_loop(), None)
        if here is not None:
            await here.close()

    async def now(self) -> float:
        with translating:
            here = await self._reach()
            whole, millionths = await here.evaluate(scripts.TIME, [self._group("-")])
        return int(whole) + int(millionths) / 1e6

    async def read(self, key: str) -> Found:
        with translating:
            here = await self._reach()
            data = await here.ask("GET", self._record(key))
        return await self._decoded(key, data)

    async def ready(self) -> None:
        """Listen: else this process would count as gone."""
        here = self._connections.get(asyncio.get_running_loop())
        if here is None or not here.is_listening:
            with translating:
                here = await self._reach()
                async with asyncio.timeout(self._timeout):
                    await here.listen()

    async def take(self, claim: Claim) -> Granted | Busy:
        is_name = claim.name is not None
        with translating:
            here = self._here() or await self._reach()
            here.expect(claim.token)
            answer = await here.run(scripts.TAKE, *self._places(claim), *_asker(claim), is_name, claim.create)
        if answer[0] == _TAKEN:
            here.begin(claim.token)
            found = None if is_name else await self._decoded(claim.key, answer[2])
            return Granted(found, was_late=bool(answer[1]))
        if answer[0] == _NOTHING:
            here.forget(claim.token)
            return Granted(None, is_locked=False)
        _, who, pause, ahead = answer
        return Busy(holders.unpack(who), int(ahead or 0), int(pause) / 1000)

    async def told(self, claim: Claim, seconds: float) -> None:
        with translating:
            here = await self._reach()
        await here.told(claim.token, seconds)

    def is_contended(self, claim: Claim) -> bool:
        here = self._here()
        return here is not None and here.is_told(claim.token)

    async def leave(self, claim: Claim) -> None:
        self._forget(claim)
        await self._run(scripts.LEAVE, claim)

    async def create(self, claim: Claim, record: Record) -> bool:
        with translating:
            here = await self._reach()
        here.expect(claim.token)
        is_new = await self._store(scripts.CREATE, claim, record, layout.mark_of(claim.token), *_asker(claim))
        if not is_new:
            self._forget(claim)
        return bool(is_new)

    async def commit(self, claim: Claim, before: Found, payload: bytes, *, now: float, is_last: bool) -> Record:
        version, created_at = (before.version + 1, before.created_at) if isinstance(before, Record) else (1, now)
        record = Record(payload, version, created_at, now)
        answer = await self._store(scripts.COMMIT, claim, record, layout.mark_of(claim.token, payload), is_last)
        if is_last or not answer:
            self._forget(claim)
        if answer == scripts.UNKNOWN:
            raise CommitUnknownError("whether the commit was stored is not known: others were stored since")
        if not answer:
            raise LockLostError(_LOST)
        return record

    async def delete(self, claim: Claim, tombstone: Tombstone | None, *, now: float) -> None:
        mark, until, note, left = layout.mark_of(claim.token), now, b"", 0
        if tombstone is not None:
            until, note = tombstone.until, tombstone.note
            left = _milliseconds(max(0.0, until - now) + _LONGER)
        is_deleted = await self._change(scripts.DELETE, claim, mark, until, left, payload=note)
        self._forget(claim)
        if not is_deleted:
            raise LockLostError(_LOST)

    async def release(self, claim: Claim, *, now: float | None) -> None:
        await self._run(scripts.RELEASE, claim, False if now is None else now, *_limits(self._expiry))
        self._forget(claim)  # not before, since what nobody knows of is given back at once, and then not as used

    async def renew(self, claim: Claim, lease: float) -> None:
        if not await self._run(scripts.RENEW, claim, _milliseconds(lease)):
            raise LockLostError(_LOST)

    async def check(self, claim: Claim) -> None:
        if not await self._run(scripts.CHECK, claim):
            raise LockLostError("a variable was taken over; nothing was stored")

    async def touch(self, key: str, *, now: float) -> None:
        await self._ask(scripts.TOUCH, key, now, *_limits(self._expiry))

    async def add_member(self, group: str, key: str, *, now: float) -> None:
        lifetime = self._expiry.lifetime
        with translating:
            here = await self._reach()
            left = 0 if lifetime is None else _milliseconds(lifetime + _LONGER)
            await here.evaluate(scripts.JOIN, [self._group(group)], key, repr(now), left)

    async def members(self, group: str) -> Mapping[str, float]:
        with translating:
            async with (await self._reach()).at_work() as client:
                found: Any = await client.hgetall(self._group(group))
        return {key.decode(): float(value) for key, value in found.items()}

    async def remove_member(self, group: str, key: str) -> None:
        with translating:
            here = await self._reach()
            await here.ask("HDEL", self._group(group), key)

    async def delete_expired(self, expiry: Expiry, *, now: float) -> int:
        limits = _limits(expiry)

        async def sweep(key: str) -> int:
            return int(await self._ask(scripts.SWEEP, key, *limits, now))

        deleted = 0
        async for _, count in each(self._all_keys(), sweep):
            deleted += count
        await self._sweep_groups(now - _MEMBER_AGE)
        return deleted

    async def _sweep_groups(self, before: float) -> None:
        """Remove the members that are older, and lead nowhere."""
        async for name in self._names(self._group("")):
            group = name[len(self._group("")) :]
            for key, added_at in (await self.members(group)).items():
                if added_at < before and await self.read(key) is None:
                    await self.remove_member(group, key)

    async def keys(self) -> AsyncIterator[str]:
        async def read(key: str) -> bool:
            with translating:
                here = await self._reach()
                first = await here.ask("GETRANGE", self._record(key), 0, 0)
            return layout.is_record(first)

        async for key, is_there in each(self._all_keys(), read):
            if is_there:
                yield key

    async def _all_keys(self) -> AsyncIterator[str]:
        start, end = len(self._record("")) - 1, -1
        async for name in self._names(f"{self._prefix}s:{{"):
            yield name[start:end]

    async def _names(self, start: str) -> AsyncIterator[str]:
        """Yield the names of the server's keys that begin with something, each once."""
        seen = set[str]()
        pattern = re.sub(r"[\\*?\[\]]", r"\\\g<0>", start) + "*"
        with translating:
            here = await self._reach()
        found: AsyncIterator[Any] = here.client.scan_iter(match=pattern, count=_PER_SCAN)
        while True:
            with translating:
                async with here.at_work():
                    name = (await anext(found, b"")).decode()
            if not name:
                return
            if name not in seen:
                seen.add(name)
                yield name

    # The server.

    def _here(self) -> Connections | None:
        """Return the connections of the running loop, if there are some already."""
        here = self._connections.get(asyncio.get_running_loop())
        return here if here is not None and here.is_open else None

    async def _reach(self) -> Connections:
        """Return the connections of the running loop, made if there are none."""
        loop = asyncio.get_running_loop()
        here = self._connections.get(loop)
        if here is None:
            client, ours = connect(self._server)
            ended = partial(self._connections.pop, loop, None)  # else they would keep their loop alive
            here = Connections(client, self._timeout, f"{self._prefix}p:", ours, ended)
            self._connections[loop] = here
        if not here.is_open:
            with no_cancellation_lost():
                async with asyncio.timeout(self._timeout):
                    await here.open()
        return here

    async def _run(self, script: Script, claim: Claim, *args: Any, payload: bytes = b"") -> Any:
        """Run a script for a claim, once."""
        with translating:
            here = self._here() or await self._reach()
            return await here.run(script, *self._places(claim), *args, payload=payload)

    def _store(self, script: Script, claim: Claim, record: Record, mark: str, *others: Any) -> Coroutine[Any, Any, Any]:
        """Store a version, as `_change`."""
        version = record.created_at, record.accessed_at, record.version, mark, *_limits(self._expiry)
        return self._change(script, claim, *others, payload=record.payload, version=version)

    async def _change(
        self, script: Script, claim: Claim, *args: Any, payload: bytes, version: tuple[Any, ...] = ()
    ) -> Any:
        """Run a script that changes a record; again if its answer was lost, since it then tells what has become of it.

        Where it is refused, the version may have been stored before, as clients repeat what was cut off.

        Raises:
            CommitUnknownError: The server gives no answer.
        """
        try:
            return await self._run(script, claim, *version, *args, payload=payload)
        except StoreError as error:
            is_refused = isinstance(error.__cause__, ResponseError)
            try:
                if not is_refused:
                    return await self._run(script, claim, *version, *args, payload=payload)
                was_stored = version and await self._run(scripts.STORED, claim, *version)
            except StoreError as failure:
                raise CommitUnknownError(f"whether it was stored is not known: {failure}") from failure.__cause__
            if not was_stored:
                raise
            return was_stored

    async def _ask(self, script: Script, key: str, *args: Any, payload: bytes = b"") -> Any:
        """Run a script on a record for nobody in particular."""
        with translating:
            here = await self._reach()
            return await here.run(script, self._record(key), f"{self._prefix}l:{{{key}}}", "", *args, payload=payload)

    def _forget(self, claim: Claim) -> None:
        here = self._here()
        if here is not None:
            here.forget(claim.token)

    async def _decoded(self, key: str, data: bytes | None) -> Found:
        """Return what was stored; move aside what nothing here has stored."""
        try:
            return layout.decode(data)
        except ValueError as error:
            aside = f"{self._prefix}x:{token_hex(8)}"
            with translating:
                here = await self._reach()
                await here.ask("SET", aside, data or b"", "EX", _KEPT)
            await self._ask(scripts.DISCARD, key, payload=data or b"")  # unless another was faster
            raise CorruptSessionError(str(error), aside) from error

    def _places(self, claim: Claim) -> tuple[str, str, str]:
        """Return where a claim's record and lock are, and its token."""
        lock = f"{self._prefix}l:{{{claim.key}}}"
        return self._record(claim.key), lock if claim.name is None else f"{lock}:{claim.name}", claim.token

    def _record(self, key: str) -> str:
        return f"{self._prefix}s:{{{key}}}"

    def _group(self, group: str) -> str:
        return f"{self._prefix}g:{group}"


def _asker(claim: Claim) -> tuple[int, str]:
    """Return what a lock tells of who has it: for how many milliseconds, and who that is."""
    return _milliseconds(claim.lease), holders.pack(claim.holder).decode()


def _limits(expiry: Expiry) -> tuple[float, float]:
    return (
        -1.0 if expiry.idle_timeout is None else expiry.idle_timeout,
        -1.0 if expiry.lifetime is None else expiry.lifetime,
    )


def _milliseconds(seconds: float) -> int:
    return -1 if math.isinf(seconds) else math.ceil(seconds * 1000)
