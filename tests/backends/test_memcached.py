"""The contract on memcached, and what is particular to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from secrets import token_hex

import pytest

from asyncsess.backends.memcached import MemcachedEngine
from asyncsess.backends.remote import RemoteBackend
from asyncsess.testing import BackendContract
from tests.servers import Memcached, memcached


@pytest.fixture(scope="module")
def server() -> Iterator[Memcached]:
    with memcached() as server:
        yield server


@pytest.fixture
def prefix() -> str:
    return f"{token_hex(8)}:"


class TestMemcached(BackendContract):
    @pytest.fixture
    async def backend(self, server: Memcached, prefix: str) -> AsyncIterator[RemoteBackend]:
        backend = RemoteBackend(MemcachedEngine(server.url, prefix=prefix))
        await backend.open()
        yield backend
        await backend.aclose()

    @pytest.fixture
    async def other(self, backend: RemoteBackend, server: Memcached, prefix: str) -> AsyncIterator[RemoteBackend]:
        other = RemoteBackend(MemcachedEngine(server.url, prefix=prefix))
        await other.open()
        yield other
        await other.aclose()
