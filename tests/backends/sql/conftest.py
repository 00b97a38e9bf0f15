"""The databases of these tests, each with tables of the test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from secrets import token_hex
from typing import NamedTuple

import pytest

from asyncsess.backends.remote import RemoteBackend
from asyncsess.backends.sql import Locking, SQLEngine
from tests.databases import DatabaseServer


class Place(NamedTuple):
    """Where the sessions of a test are, and how they are locked there."""

    url: str
    prefix: str
    locking: Locking

    def engine(self, *, timeout: float = 5.0) -> SQLEngine:
        return SQLEngine(self.url, prefix=self.prefix, locking=self.locking, timeout=timeout)

    def backend(self, *, timeout: float = 5.0) -> RemoteBackend:
        return RemoteBackend(self.engine(timeout=timeout))


@pytest.fixture(params=["postgresql", "mariadb", "sqlite", "postgresql advisory", "mariadb advisory"])
def database(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server(request: pytest.FixtureRequest, database: str) -> DatabaseServer:
    """The server that all tests share."""
    server: DatabaseServer = request.getfixturevalue(database.partition(" ")[0])
    return server


@pytest.fixture
def place(request: pytest.FixtureRequest, database: str, tmp_path: Path) -> Place:
    database, _, locking = database.partition(" ")
    is_file = database == "sqlite"
    url = f"sqlite:///{tmp_path}/sessions.sqlite" if is_file else request.getfixturevalue("server").url
    return Place(url, f"t{token_hex(4)}_", "advisory" if locking else "lease")


@pytest.fixture
async def backend(place: Place) -> AsyncIterator[RemoteBackend]:
    backend = place.backend()
    await backend.open()
    yield backend
    await backend.aclose()


@pytest.fixture
async def other(backend: RemoteBackend, place: Place) -> AsyncIterator[RemoteBackend]:
    other = place.backend()
    await other.open()
    yield other
    await other.aclose()
