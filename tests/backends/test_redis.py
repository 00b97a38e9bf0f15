"""The contract on Valkey, and what is particular to Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator
from secrets import token_hex

import pytest

from asyncsess.backends.redis import RedisEngine
from asyncsess.backends.remote import RemoteBackend
from asyncsess.testing import BackendContract


@pytest.fixture
def prefix() -> str:
    return f"{token_hex(8)}:"


class TestRedis(BackendContract):
    @pytest.fixture
    async def backend(self, redis_url: str, prefix: str) -> AsyncIterator[RemoteBackend]:
        backend = RemoteBackend(RedisEngine(redis_url, prefix=prefix))
        await backend.open()
        yield backend
        await backend.aclose()

    @pytest.fixture
    async def other(self, backend: RemoteBackend, redis_url: str, prefix: str) -> AsyncIterator[RemoteBackend]:
        other = RemoteBackend(RedisEngine(redis_url, prefix=prefix))
        await other.open()
        yield other
        await other.aclose()
