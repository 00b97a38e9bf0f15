"""The proxy breaks a connection where it was told to, and nowhere else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.proxy import Cut, Proxy


class Echo:
    """A server that answers each command with two times the same, and remembers what it has received."""

    def __init__(self) -> None:
        self.received = b""
        self.clients = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.clients += 1
        while data := await reader.read(100):
            self.received += data
            writer.write(data + data)
        self.clients -= 1
        writer.close()


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[Proxy]:
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    async with Proxy(*server.sockets[0].getsockname()) as proxy:
        yield proxy
    server.close()
    while echo.clients:
        await asyncio.sleep(0)
    await asyncio.sleep(0)


class Client:
    """A connection through the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def of(cls, proxy: Proxy) -> Client:
        return cls(*await asyncio.open_connection("127.0.0.1", proxy.port))

    async def ask(self, command: bytes) -> bytes:
        """Send a command; return its answer, or as much as comes of it."""
        self._writer.write(command)
        try:
            return await self._reader.readexactly(2 * len(command))
        except asyncio.IncompleteReadError as error:
            return error.partial
        except ConnectionError:
            return b""

    async def is_over(self) -> bool:
        """Wait for the end of the connection."""
        try:
            return await self._reader.read(1) == b""
        except ConnectionError:
            return True

    def close(self) -> None:
        self._writer.transport.abort()


@pytest.fixture
async def client(proxy: Proxy) -> AsyncIterator[Client]:
    client = await Client.of(proxy)
    yield client
    client.close()


@pytest.mark.parametrize(
    ("where", "received", "answer"),
    [
        (Cut.BEFORE, b"", b""),
        (Cut.IN_COMMAND, b"ab", b""),
        (Cut.BEFORE_ANSWER, b"abcd", b""),
        (Cut.IN_ANSWER, b"abcd", b"abcd"),
        (Cut.AFTER, b"abcd", b"abcdabcd"),
    ],
    ids=lambda value: value.value if isinstance(value, Cut) else "",
)
async def test_a_connection_is_cut_in_the_exchange_that_was_meant(
    proxy: Proxy, client: Client, echo: Echo, where: Cut, received: bytes, answer: bytes
) -> None:
    proxy.cut(where, 2)
    assert await client.ask(b"first") == b"firstfirst"
    assert await client.ask(b"abcd") == answer
    assert await client.is_over()
    while echo.clients:
        await asyncio.sleep(0)
    assert echo.received == b"first" + received
    assert (proxy.exchanges, proxy.cuts) == (2, 1)


async def test_a_cut_ends_one_connection_and_lets_new_ones_in(proxy: Proxy, client: Client) -> None:
    other = await Client.of(proxy)
    assert await other.ask(b"a") == b"aa"
    proxy.cut(Cut.BEFORE)
    assert await client.ask(b"b") == b""
    assert await other.ask(b"c") == b"cc"
    third = await Client.of(proxy)
    assert await third.ask(b"d") == b"dd"
    assert proxy.links == 2
    for each in (other, third):
        each.close()
    await proxy.until_unused()


async def test_a_cut_for_good_ends_all_connections_and_refuses_new_ones_until_it_is_healed(
    proxy: Proxy, client: Client
) -> None:
    other = await Client.of(proxy)
    proxy.cut(Cut.AFTER, for_good=True)
    assert await client.ask(b"a") == b"aa"
    assert await other.is_over()
    late = await Client.of(proxy)
    assert await late.ask(b"b") == b""
    proxy.heal()
    healed = await Client.of(proxy)
    assert await healed.ask(b"c") == b"cc"
    for each in (other, late, healed):
        each.close()


async def test_what_a_stalled_network_kept_back_is_passed_on_when_it_is_healed(
    proxy: Proxy, client: Client, echo: Echo
) -> None:
    proxy.stall()
    waiting = asyncio.create_task(client.ask(b"late"))
    while not proxy.kept_back:
        await asyncio.sleep(0)
    assert (echo.received, waiting.done()) == (b"", False)
    proxy.heal()
    assert await waiting == b"latelate"


async def test_a_late_command_arrives_after_later_ones_and_is_not_answered(
    proxy: Proxy, client: Client, echo: Echo
) -> None:
    proxy.cut(Cut.LATE)
    late = asyncio.create_task(client.ask(b"late"))
    while not proxy.kept_back:
        await asyncio.sleep(0)
    other = await Client.of(proxy)
    assert await other.ask(b"later") == b"laterlater"
    proxy.heal()
    assert await late == b""
    assert echo.received == b"laterlate"
    other.close()


async def test_a_slow_network_answers_after_a_fast_one(proxy: Proxy, client: Client, echo: Echo) -> None:
    proxy.delay = 0.02
    slow = asyncio.create_task(client.ask(b"slow"))
    while not proxy.kept_back:
        await asyncio.sleep(0)
    async with Proxy(*proxy._address) as fast:
        other = await Client.of(fast)
        assert await other.ask(b"fast") == b"fastfast"
        assert not slow.done()
        other.close()
    assert await slow == b"slowslow"
    assert echo.received == b"fastslow"


async def test_what_a_server_says_unasked_is_no_exchange(proxy: Proxy, client: Client) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.write(await reader.read(100))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with Proxy(*server.sockets[0].getsockname()) as greeting:
        reader, writer = await asyncio.open_connection("127.0.0.1", greeting.port)
        assert await reader.readexactly(5) == b"hello"
        assert greeting.exchanges == 0
        writer.write(b"hi")
        assert await reader.read() == b"hi"
        assert greeting.exchanges == 1
        writer.transport.abort()
    server.close()


async def test_without_a_server_a_connection_ends(proxy: Proxy) -> None:
    async with Proxy("127.0.0.1", 1) as nowhere:
        client = await Client.of(nowhere)
        assert await client.ask(b"a") == b""
        client.close()
        await nowhere.until_unused()
