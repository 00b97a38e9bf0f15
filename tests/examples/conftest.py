"""What the tests of the examples share: processes that serve, and visitors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from .servers import NewVisitor, Server, Start, Visitor


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.new_event_loop}  # the visitors' own; what the examples run on is their business


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return what starts an example; all servers of a test share a directory."""
    servers: list[Server] = []

    def start(name: str) -> Server:
        servers.append(server := Server(name, tmp_path))
        return server

    yield start
    for server in servers:
        server.end()
    assert [server.output for server in servers if "Traceback" in server.output] == []


@pytest.fixture
async def new_visitor() -> AsyncIterator[NewVisitor]:
    """Return what makes a visitor of a server, with a browser of his own."""
    async with AsyncExitStack() as stack:

        def new_visitor(server: Server, agent: str = "a browser") -> Visitor:
            visitor = Visitor(server.url, agent)
            stack.push_async_callback(visitor.client.close)
            return visitor

        yield new_visitor
