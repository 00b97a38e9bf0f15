"""The connection on which the commands of many tasks are under way, and what goes over it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import NoScriptError, ResponseError

from asyncsess import RedisStore, StoreError
from asyncsess.backends.redis import RedisEngine
from asyncsess.backends.redis.pipe import Pipe
from asyncsess.backends.redis.wire import IncompleteError, Push, pack, parse
from asyncsess.backends.remote import RemoteBackend
from asyncsess.testing import until
from tests import servers
from tests.proxy import Cut, Proxy
from tests.servers import RedisServer

ANSWERS = (
    (b"+OK\r\n", b"OK"),
    (b":-12\r\n", -12),
    (b"$4\r\na\r\nb\r\n", b"a\r\nb"),
    (b"$-1\r\n", None),
    (b"_\r\n", None),
    (b"*3\r\n:1\r\n*0\r\n$1\r\nx\r\n", [1, [], b"x"]),
    (b"*-1\r\n", None),
    (b">2\r\n+a\r\n+b\r\n", Push((b"a", b"b"))),
)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with servers.valkey(tmp_path / "server") as server:
        yield server


@pytest.fixture
async def proxy(server: RedisServer) -> AsyncIterator[Proxy]:
    async with Proxy("127.0.0.1", server.port) as proxy:
        yield proxy


@asynccontextmanager
async def piped(port: int, timeout: float = 5.0) -> AsyncIterator[Pipe]:
    client = Redis(port=port)
    pipe = Pipe(client, timeout)
    try:
        yield pipe
    finally:
        await pipe.aclose()
        await client.aclose()


@pytest.mark.parametrize(("data", "answer"), ANSWERS)
def test_an_answer_is_read_once_all_of_it_is_there(data: bytes, answer: Any) -> None:
    assert parse(b"+before\r\n" + data + b"+behind", 9) == (answer, 9 + len(data))
    for end in range(len(data)):
        with pytest.raises(IncompleteError):
            parse(data[:end], 0)


def test_an_error_is_an_answer() -> None:
    error, _ = parse(b"-NOSCRIPT No matching script.\r\n", 0)
    assert isinstance(error, NoScriptError)
    error, _ = parse(b"-ERR what is this\r\n", 0)
    assert type(error) is ResponseError


def test_what_no_server_says_is_refused() -> None:
    with pytest.raises(ValueError, match="does not begin"):
        parse(b"HTTP/1.1 400\r\n", 0)


def test_a_command_is_packed_with_texts_bytes_and_numbers() -> None:
    assert pack("SET", b"\r\n", 1.5, -1) == b"*4\r\n$3\r\nSET\r\n$2\r\n\r\n\r\n$3\r\n1.5\r\n$2\r\n-1\r\n"


async def test_commands_of_many_tasks_go_over_one_connection(proxy: Proxy) -> None:
    async with piped(proxy.port) as pipe:
        await asyncio.gather(*(pipe.ask(pack("SET", f"key {number}", number)) for number in range(100)))
        answers = await asyncio.gather(*(pipe.ask(pack("GET", f"key {number}")) for number in range(100)))
        assert answers == [str(number).encode() for number in range(100)]
        assert proxy.links == 1


async def test_large_answers_come_whole(server: RedisServer) -> None:
    async with piped(server.port) as pipe:
        large = b"x" * 3_000_000
        await pipe.ask(pack("SET", "large", large))
        assert await asyncio.gather(*(pipe.ask(pack("GET", "large")) for _ in range(3))) == [large] * 3


async def test_whoever_is_cancelled_leaves_the_connection_to_the_others(proxy: Proxy) -> None:
    async with piped(proxy.port) as pipe:
        await pipe.ask(pack("SET", "a", "1"))
        proxy.stall()
        cancelled, other = (asyncio.create_task(pipe.ask(pack(*words))) for words in (("GET", "a"), ("ECHO", "b")))
        await asyncio.sleep(0)
        cancelled.cancel()
        proxy.heal()
        assert await other == b"b"
        assert cancelled.cancelled()
        assert (proxy.links, proxy.cuts) == (1, 0)


@pytest.mark.parametrize("where", [Cut.BEFORE, Cut.BEFORE_ANSWER, Cut.IN_ANSWER])
async def test_commands_are_sent_again_over_another_connection(proxy: Proxy, where: Cut) -> None:
    async with piped(proxy.port) as pipe:
        await pipe.ask(pack("SET", "a", "1"))
        proxy.cut(where)
        assert await asyncio.gather(*(pipe.ask(pack("GET", "a")) for _ in range(5))) == [b"1"] * 5
        assert proxy.cuts == 1


async def test_a_server_that_does_not_answer_in_time_is_not_waited_for(proxy: Proxy) -> None:
    async with piped(proxy.port, timeout=1.0) as pipe:
        await pipe.ask(pack("SET", "a", "1"))
        proxy.stall()
        with pytest.raises(TimeoutError):
            await pipe.ask(pack("GET", "a"))
        proxy.heal()
        assert await pipe.ask(pack("GET", "a")) == b"1"


@pytest.mark.parametrize("is_open", [False, True])
async def test_a_store_that_is_closed_while_it_connects_leaves_nothing_behind(proxy: Proxy, is_open: bool) -> None:
    backend = RemoteBackend(RedisEngine(f"redis://127.0.0.1:{proxy.port}"))
    if is_open:
        await backend.open()
        (connections,) = backend._engine._connections.values()  # type: ignore[attr-defined]
        await connections._pipe._hang_up()
    proxy.stall()
    reading = asyncio.create_task(backend.read("00" * 32))
    await until(lambda: proxy.kept_back > 0)
    closing = asyncio.create_task(backend.aclose())
    await until(lambda: backend._turns.is_closed)
    proxy.heal()
    with pytest.raises(StoreError, match="closed"):
        await reading
    await closing
    async with asyncio.timeout(5):
        await proxy.until_unused()
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("asyncsess")]


async def test_a_store_by_url_keeps_one_connection_and_one_that_listens(proxy: Proxy) -> None:
    async with RedisStore(f"redis://127.0.0.1:{proxy.port}") as store:
        session_ids = await asyncio.gather(*(store.create({"n": 0}) for _ in range(50)))

        async def change(session_id: str) -> None:
            async with store.open(session_id) as session:
                session["n"] += 1

        await asyncio.gather(*map(change, session_ids))
        assert proxy.links <= 3  # one more has asked the server what it is
