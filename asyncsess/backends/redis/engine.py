"""`RedisEngine`: records and locks in Redis or Valkey; each step is one script, and so one round trip."""

from __future__ import annotations

import asyncio
import math
import weakref
from collections.abc import AsyncIterator, Generator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff

from asyncsess.backends.base import Found, Record, Tombstone
from asyncsess.backends.redis import scripts
from asyncsess.backends.redis.connections import FAILURES, Connections
from asyncsess.backends.remote.engine import Busy, Claim, Granted
from asyncsess.backends.remote.held import process
from asyncsess.errors import CommitUnknownError, Holder, LockLostError, StoreError
from asyncsess.expiry import Expiry

_TIMEOUT: Final = 5.0
_MOST_CONNECTIONS: Final = 32
_AT_ONCE: Final = 500
MEMBER_AGE: Final = 60.0
_LOST: Final = "the session was taken over by another; nothing was stored"


class RedisEngine:
    """A Redis or Valkey server.

    Args:
        server: Its URL, or a client of ``redis.asyncio``, which is used in its own event loop only.
        prefix: Of the names of all keys and channels.
        expiry: When the server itself deletes what nobody uses.
    """

    def __init__(self, server: str | Redis, *, prefix: str = "asyncsess:", expiry: Expiry | None = None) -> None:
        self._server = server
        self._prefix = prefix
        self._expiry = expiry or Expiry()
        self._connections = weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Connections]()

    def __repr__(self) -> str:
        return f"<RedisEngine prefix={self._prefix!r}>"

    async def open(self) -> None:
        with _failures():
            await self._here()

    async def aclose(self) -> None:
        here = self._connections.pop(asyncio.get_running_loop(), None)
        if here is not None:
            await here.close()

    async def now(self) -> float:
        with _failures():
            seconds, microseconds = await (await self._here()).client.time()
        return int(seconds) + int(microseconds) / 1e6

    async def read(self, key: str) -> Found:
        with _failures():
            here = await self._here()
            return scripts.decode(await here.client.get(self._record(key)))

    async def take(self, claim: Claim) -> Granted | Busy:
        here = await self._here()
        here.expect(claim.token)
        is_name = claim.name is not None
        answer = await self._run(
            scripts.TAKE, claim, _milliseconds(claim.lease), _encoded(claim.holder), int(is_name), int(claim.create)
        )
        if answer[0] == 0:
            return Busy(_decoded(answer[1]), int(answer[3]), int(answer[2]) / 1000)
        here.begin(claim.token)
        if answer[0] == 2:
            here.forget(claim.token)
            return Granted(None, is_locked=False)
        return Granted(None if is_name else scripts.decode(answer[2]), bool(answer[1]))

    async def told(self, claim: Claim, seconds: float) -> None:
        await (await self._here()).told(claim.token, seconds)

    def is_contended(self, claim: Claim) -> bool:
        here = self._connections.get(asyncio.get_running_loop())
        return here is not None and here.is_told(claim.token)

    async def leave(self, claim: Claim) -> None:
        (await self._here()).forget(claim.token)
        await self._run(scripts.LEAVE, claim)

    async def create(self, claim: Claim, record: Record) -> None:
        data = scripts.encode(record)
        lease = _milliseconds(claim.lease)
        if not await self._run(scripts.CREATE, claim, lease, _encoded(claim.holder), data, *self._limits()):
            raise StoreError("there is a session of this key already")

    async def commit(self, claim: Claim, before: Found, payload: bytes, *, now: float, is_last: bool) -> Record:
        record = Record(payload, 1, now, now)
        if isinstance(before, Record):
            record = Record(payload, before.version + 1, before.created_at, now)
        args = scripts.encode(record), *self._limits(), int(is_last)
        try:
            is_stored = await self._run(scripts.COMMIT, claim, *args)
        except StoreError as error:  # it may have been stored before the connection broke
            if not await self._was_stored(claim, record, error) and not await self._run(scripts.COMMIT, claim, *args):
                raise CommitUnknownError(f"whether the commit was stored is not known: {error}") from error
            return record
        if not is_stored and await self.read(claim.key) != record:  # the client itself may have asked again
            raise LockLostError(_LOST)
        return record

    async def _was_stored(self, claim: Claim, record: Record, error: StoreError) -> bool:
        """Find out whether a commit was stored; False if it was not, and can still be.

        Raises:
            LockLostError: It was not, and the lock is another's.
            CommitUnknownError: The server does not answer, or others have committed since.
        """
        unknown = CommitUnknownError(f"whether the commit was stored is not known: {error}")
        try:
            found, is_mine = await self.read(claim.key), await self._run(scripts.CHECK, claim)
        except StoreError:
            raise unknown from error
        if found == record:
            return True
        if is_mine:
            return False
        if found is None or (isinstance(found, Record) and found.version < record.version):
            raise LockLostError(_LOST) from error
        raise unknown from error

    async def delete(self, claim: Claim, tombstone: Tombstone | None) -> None:
        data = b"" if tombstone is None else scripts.encode(tombstone)
        if not await self._run(scripts.DELETE, claim, data, 0) and await self.read(claim.key) != tombstone:
            raise LockLostError(_LOST)

    async def release(self, claim: Claim, *, now: float | None) -> None:
        (await self._here()).forget(claim.token)
        await self._run(scripts.RELEASE, claim, "" if now is None else now, *self._limits())

    async def renew(self, claim: Claim, lease: float) -> None:
        if not await self._run(scripts.RENEW, claim, _milliseconds(lease)):
            raise LockLostError(_LOST)

    async def check(self, claim: Claim) -> None:
        if not await self._run(scripts.CHECK, claim):
            raise LockLostError("a variable was taken over; nothing was stored")

    async def touch(self, key: str, *, now: float) -> None:
        await self._run(scripts.TOUCH, _nobody(key), now, *self._limits())

    async def add_member(self, group: str, key: str, *, now: float) -> None:
        with _failures():
            await (await self._here()).client.hset(f"{self._prefix}g:{group}", key, repr(now))

    async def members(self, group: str) -> Mapping[str, float]:
        with _failures():
            found = await (await self._here()).client.hgetall(f"{self._prefix}g:{group}")
        return {key.decode(): float(value) for key, value in found.items()}

    async def remove_member(self, group: str, key: str) -> None:
        with _failures():
            await (await self._here()).client.hdel(f"{self._prefix}g:{group}", key)

    async def delete_expired(self, expiry: Expiry, *, now: float) -> int:
        limits = _limits_of(expiry)
        deleted = 0
        async for key in self._all_keys():
            deleted += await self._run(scripts.SWEEP, _nobody(key), *limits, now)
        with _failures():
            client = (await self._here()).client
            async for group in client.scan_iter(match=f"{self._prefix}g:*", count=_AT_ONCE):
                await self._sweep_group(client, group, now - MEMBER_AGE)
        return deleted

    async def _sweep_group(self, client: Redis, group: bytes, before: float) -> None:
        async for key, added_at in client.hscan_iter(group, count=_AT_ONCE):
            if float(added_at) < before and not await client.exists(self._record(key.decode())):
                await client.hdel(group, key)

    async def keys(self) -> AsyncIterator[str]:
        async for key in self._all_keys():
            if isinstance(await self.read(key), Record):
                yield key

    async def _all_keys(self) -> AsyncIterator[str]:
        seen = set[str]()
        start, end = len(f"{self._prefix}s:{{"), -1
        with _failures():
            async for name in (await self._here()).client.scan_iter(match=f"{self._prefix}s:{{*}}", count=_AT_ONCE):
                key = name.decode()[start:end]
                if key not in seen:
                    seen.add(key)
                    yield key

    # The connection.

    async def _here(self) -> Connections:
        """Return the connections of the running loop."""
        loop = asyncio.get_running_loop()
        here = self._connections.get(loop)
        if here is None:
            client = self._server if isinstance(self._server, Redis) else _client(self._server)
            ended = partial(self._connections.pop, loop, None)  # else they would keep their loop alive
            here = Connections(client, self._channel(), is_ours=client is not self._server, ended=ended)
            self._connections[loop] = here
        await here.start()
        return here

    async def _run(self, script: str, claim: Claim, *args: Any) -> Any:
        with _failures():
            here = await self._here()
            lock = f"{self._prefix}l:{{{claim.key}}}" + ("" if claim.name is None else f":{claim.name}")
            keys = self._record(claim.key), lock, f"{lock}:q"
            return await here.run(script, claim.token, f"{self._prefix}p:", "0", *args, keys=keys)

    def _record(self, key: str) -> str:
        return f"{self._prefix}s:{{{key}}}"

    def _channel(self) -> str:
        return f"{self._prefix}p:{process.name}"

    def _limits(self) -> tuple[float, float]:
        return _limits_of(self._expiry)


def _client(url: str) -> Redis:
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=_MOST_CONNECTIONS,
        timeout=_TIMEOUT,
        retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), 3),
        socket_timeout=_TIMEOUT,
        socket_connect_timeout=_TIMEOUT,
        health_check_interval=30,
    )
    return Redis.from_pool(pool)


@contextmanager
def _failures() -> Generator[None]:
    """Translate what goes wrong with the server."""
    try:
        yield
    except FAILURES as error:
        raise StoreError(f"the Redis server could not be used: {error or type(error).__name__}") from error


def _limits_of(expiry: Expiry) -> tuple[float, float]:
    return (
        -1.0 if expiry.idle_timeout is None else expiry.idle_timeout,
        -1.0 if expiry.lifetime is None else expiry.lifetime,
    )


def _milliseconds(lease: float) -> int:
    return -1 if math.isinf(lease) else math.ceil(lease * 1000)


def _encoded(holder: Holder) -> str:
    return f"{holder.pid}\0{holder.since.timestamp()!r}\0{holder.task}\0{holder.where}"


def _decoded(data: bytes) -> Holder | None:
    from datetime import UTC, datetime

    if not data:
        return None
    pid, since, task, where = data.decode(errors="replace").split("\0", 3)
    return Holder(int(pid), task, datetime.fromtimestamp(float(since), UTC), where)


def _nobody(key: str) -> Claim:
    from datetime import UTC, datetime

    return Claim(key, None, "-", Holder(0, "", datetime.fromtimestamp(0, UTC), ""), math.inf)
