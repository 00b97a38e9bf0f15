"""The servers of the tests of the network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from secrets import token_hex

import pytest

from asyncsess import SessionStore
from tests.network.servers import SERVERS, Server, store_at
from tests.processes.conftest import Worker


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.new_event_loop}  # what the loops make of a broken connection is tested by redis-py


@pytest.fixture(scope="session", params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that all tests share, which they neither end nor stop."""
    server = SERVERS[request.param](tmp_path_factory.mktemp(request.param))
    server.start()
    yield server
    server.end()


@pytest.fixture
def space() -> str:
    """What tells the sessions of a test from those of others."""
    return token_hex(6)


@pytest.fixture
async def shared(server: Server, space: str) -> AsyncIterator[SessionStore]:
    """The store that the workers use too."""
    async with store_at(server.url_at(server.port), space) as store:
        yield store


@pytest.fixture
def start(server: Server, space: str) -> Iterator[Callable[..., Worker]]:
    """Start a worker in a role on the store."""
    workers: list[Worker] = []

    def start(role: str, *arguments: object, port: int | None = None, **environment: str) -> Worker:
        url = server.url_at(port or server.port)
        workers.append(Worker(role, url, space, *arguments, module="tests.network.worker", environment=environment))
        return workers[-1]

    yield start
    for worker in workers:
        worker.end()
