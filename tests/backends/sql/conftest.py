"""The databases of these tests, each with tables of the test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from secrets import token_hex
from typing import NamedTuple

import pytest

from asyncsess.backends.remote import RemoteBackend
from asyncsess.backends.sql import Locking, SQLEngine
from tests import servers


class Place(NamedTuple):
    """Where the sessions of a test are, and how they are locked there."""

    url: str
    prefix: str
    locking: Locking

    def engine(self) -> SQLEngine:
        return SQLEngine(self.url, prefix=self.prefix, locking=self.locking)

    def backend(self) -> RemoteBackend:
        return RemoteBackend(self.engine())


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with servers.postgresql(tmp_path_factory.mktemp("server")) as url:
        yield url


@pytest.fixture(scope="session")
def mariadb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with servers.mariadb(tmp_path_factory.mktemp("server")) as url:
        yield url


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/sessions.sqlite"


@pytest.fixture(params=["postgresql", "mariadb", "sqlite", "postgresql advisory", "mariadb advisory"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def place(request: pytest.FixtureRequest, kind: str) -> Place:
    database, _, locking = kind.partition(" ")
    place = Place(request.getfixturevalue(database), f"t{token_hex(4)}_", locking or "lease")
    engine = place.engine()
    await engine.create_tables()
    await engine.aclose()
    return place


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
