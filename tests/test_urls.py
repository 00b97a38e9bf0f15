"""Stores by their URLs."""

from __future__ import annotations

from pathlib import Path

import pytest

from asyncsess import FileStore, MemcachedStore, MemoryStore, RedisStore, SessionStore, SQLStore, StoreError, open_store
from tests.conftest import stored
from tests.databases import MariaDB, PostgreSQL


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("memory:", MemoryStore),
        ("file:var/sessions", FileStore),
        ("redis://localhost", RedisStore),
        ("rediss://user:secret@host:1/2", RedisStore),
        ("unix:///run/redis", RedisStore),
        ("redis+cluster://one,two:7000", RedisStore),
        ("redis+sentinel://one,two/sessions", RedisStore),
        ("memcached://localhost", MemcachedStore),
        ("postgresql+psycopg://user:secret@host/name", SQLStore),
        ("postgresql://host/name", SQLStore),
        ("mysql+asyncmy://host/name", SQLStore),
        ("mariadb://host/name", SQLStore),
        ("sqlite+aiosqlite:///var/sessions.sqlite", SQLStore),
    ],
)
async def test_a_url_names_a_store(url: str, kind: type[SessionStore]) -> None:
    store = open_store(url, lifetime=7.0)
    assert isinstance(store, kind)
    assert store.lifetime == 7.0


async def test_a_directory_may_be_absolute_or_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with open_store(f"file://{tmp_path}/my%20sessions") as first, open_store("file:my sessions") as second:
        assert await stored(second, await first.create({"a": 1})) == {"a": 1}


async def test_the_same_application_runs_on_each_server(
    redis_url: str, memcached_url: str, postgresql: PostgreSQL, mariadb: MariaDB, tmp_path: Path
) -> None:
    of_database = [postgresql.url, mariadb.url, f"sqlite:///{tmp_path}/sessions.sqlite"]
    for url in (f"file:{tmp_path}/sessions", redis_url, memcached_url, *of_database):
        async with open_store(url) as store:
            session_id = await store.create({"cart": []})
            async with store.open(session_id) as session:
                session["cart"].append("tea")
            assert await stored(store, session_id) == {"cart": ["tea"]}
            assert await store.destroy(session_id)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("var/sessions", "no store has a URL that begins with ''; those are file:, memory:, redis:"),
        ("http://localhost", "no store has a URL that begins with 'http'"),
        ("file://var/sessions", "file:relative/path or file:///absolute/path"),
        ("redis+sentinel://one", "name the service"),
        ("redis://user:secret@one,two", "redis://one,two is no URL of Redis servers"),
        ("redis://one/app", "number of a database.* not 'app'"),
        ("redis+other://one", "is no URL of Redis servers"),
        ("redis://user:secret@one?color=red", "can't use an option of the URL: .*'color'"),
        ("redis+cluster://one,two?color=red", "can't use an option of the URL: .*'color'"),
        ("redis+sentinel://one/app?color=red", "can't use an option of the URL: .*'color'"),
        (
            "postgresql+psycopg2://user:secret@one/name",
            "psycopg2 is not supported; the driver for postgresql is",
        ),
        ("sqlite+aiosqlite://", "name a file"),
        ("mysql://user:secret@one:port/name", "this is no URL of a database, such as postgresql://user@host/name"),
    ],
)
def test_another_url_is_refused(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        open_store(url)
    assert "secret" not in str(caught.value)


async def test_an_option_that_the_driver_of_a_database_does_not_know_is_named() -> None:
    with pytest.raises(StoreError, match=r"can't use an option that it is given: .*'color'"):
        async with open_store("mysql://user@127.0.0.1:1/name?color=red"):
            pass
