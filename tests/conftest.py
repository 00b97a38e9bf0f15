"""What all tests share: both event loops, stores with a clock that stands still, and the search for leaks."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import logging
import os
import secrets
import threading
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pytest
import uvloop
from hypothesis import HealthCheck, settings

from asyncsess import FileStore, MemcachedStore, MemoryStore, RedisStore, Session, SessionStore, SQLStore
from tests.databases import MariaDB, PostgreSQL
from tests.servers import memcached, valkey

if TYPE_CHECKING:  # pytest imports it as a plugin, and has its assertions tell what they compared
    from asyncsess.testing import FakeClock

pytest_plugins = ["asyncsess.testing"]

Kind = Literal["memory", "file", "redis", "memcached", "postgresql"]
SERVERS = {"redis", "memcached", "postgresql"}
NewStore = Callable[..., SessionStore]
_HAS_FAILED = pytest.StashKey[bool]()

settings.register_profile(
    "asyncsess", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "asyncsess"))


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run on one event loop what is about the policy over servers; their contracts run on both."""
    items[:] = [item for item in items if not ("uvloop" in item.name and params_of(item).get("kind") in SERVERS)]


def params_of(item: pytest.Item) -> dict[str, Any]:
    return item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}


def pytest_collection_finish() -> None:
    uvloop.new_event_loop().close()  # libuv keeps a pipe from its first loop on
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[_HAS_FAILED] = True
    return report


@pytest.fixture
def clock(session_clock: FakeClock) -> FakeClock:
    return session_clock


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The session directory of file stores."""
    return tmp_path / "sessions"


@pytest.fixture(params=["memory", "file", "redis", "memcached", "postgresql"])
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture
def new_store(request: pytest.FixtureRequest, kind: Kind, clock: FakeClock, directory: Path) -> NewStore:
    """Return what makes a store that has not been entered yet; all file stores of a test have one directory."""

    space = hashlib.sha256(bytes(directory)).hexdigest()[:16]

    def make(**options: Any) -> SessionStore:
        options = {"clock": clock, "sweep_interval": None, **options}
        if kind == "redis":
            return RedisStore(request.getfixturevalue("redis_url"), prefix=f"{space}:", **options)
        if kind == "memcached":
            return MemcachedStore(request.getfixturevalue("memcached_url"), prefix=f"{space}:", **options)
        if kind == "postgresql":
            return SQLStore(request.getfixturevalue("postgresql").url, prefix=f"s{space}_", **options)
        return MemoryStore(**options) if kind == "memory" else FileStore(directory, **options)

    return make


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server.url


@pytest.fixture(scope="session")
def memcached_url() -> Iterator[str]:
    with memcached() as server:
        yield server.url


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgreSQL]:
    server = PostgreSQL(tmp_path_factory.mktemp("postgresql"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def mariadb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MariaDB]:
    server = MariaDB(tmp_path_factory.mktemp("mariadb"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def store(new_store: NewStore) -> AsyncIterator[SessionStore]:
    async with new_store() as store:
        yield store


async def keys_of(store: SessionStore) -> list[str]:
    return [key async for key in store.keys()]  # noqa: SIM118 - a store is no mapping


async def stored(store: SessionStore, session_id: str) -> dict[str, Any]:
    """Return what a session holds for everybody."""
    async with store.open(session_id, readonly=True) as session:
        return dict(session)


class _Footprint(NamedTuple):
    descriptors: Counter[str]
    threads: set[threading.Thread]
    locks: Counter[str]

    @classmethod
    def of_this_process(cls) -> _Footprint:
        threads = set(threading.enumerate())
        return cls(Counter(_open_descriptors()), threads, Counter(_flocks()))


@pytest.fixture(autouse=True)
def _nothing_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    before = _Footprint.of_this_process()
    yield
    if request.node.stash.get(_HAS_FAILED, False):  # the traceback holds on to whatever it was about
        return
    gc.collect()  # the threads of a pool end with its owner
    for thread in {*threading.enumerate()} - before.threads:
        thread.join(5.0)  # a pool that was shut down is not waited for by its store
    gc.collect()  # the inotify instance of a loop goes with it, once no thread knows it any more
    gc.freeze()  # what pytest keeps of each test would make the collections slower than the tests
    after = _Footprint.of_this_process()
    assert after.threads - before.threads == set()
    assert after.locks - before.locks == Counter()
    assert after.descriptors - before.descriptors == Counter()
    if tmp_path := request.node.funcargs.get("tmp_path"):
        assert [*tmp_path.glob("**/tmp/*")] == []


@pytest.fixture(autouse=True)
async def _no_task_is_left(_nothing_leaks: None) -> AsyncIterator[None]:
    yield
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.fixture(autouse=True)
def _nothing_secret_is_logged() -> Iterator[None]:
    """Look for ids, keys and values of sessions in all that is logged, tracebacks included."""
    ids: set[str] = set()
    values: set[str] = set()
    logged: list[str] = []
    token, make, load, encoded = secrets.token_urlsafe, Session.__init__, Session.load, Session.encoded

    def token_urlsafe(nbytes: int | None = None) -> str:
        ids.add(issued := token(nbytes))
        return issued

    def init(self: Session, keeper: Any, session_id: str, *rest: Any) -> None:
        ids.add(session_id)
        make(self, keeper, session_id, *rest)

    def load_(self: Session, loaded: dict[str, Any], *rest: Any) -> None:
        values.update(_texts(loaded))
        load(self, loaded, *rest)

    def encoded_(self: Session) -> bytes:
        data = encoded(self)
        values.update(_texts(self._values))
        return data

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logged.append(f"{record.getMessage()} {record.__dict__}")
            # What pytest keeps of a record must not keep an exception, its frames, and their event loop.
            record.msg, record.args = record.getMessage(), None
            if record.exc_info and record.exc_info[1]:
                record.exc_text = "".join(traceback.format_exception(record.exc_info[1]))
                logged.append(record.exc_text)
            record.exc_info = None

    logger, listener = logging.getLogger("asyncsess"), Listener()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(secrets, "token_urlsafe", token_urlsafe)
        patch.setattr(Session, "__init__", init)
        patch.setattr(Session, "load", load_)
        patch.setattr(Session, "encoded", encoded_)
        patch.setattr(logger, "level", logging.DEBUG)
        logger.addHandler(listener)
        yield
        logger.removeHandler(listener)
    text = "\n".join(logged)
    keys = {hashlib.sha256(session_id.encode()).hexdigest() for session_id in ids}
    # Without its first two digits, a key is the name of a file.
    assert [secret for secret in ids | {key[2:] for key in keys} | values if len(secret) > 7 and secret in text] == []


def _open_descriptors() -> Iterator[str]:
    for fd in os.listdir("/proc/self/fd"):
        try:
            yield f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}"
        except FileNotFoundError:  # that of the listing itself
            continue


def _flocks() -> Iterator[str]:
    """Yield the locks of this process, by device and inode."""
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.replace("->", "").split()
        if fields[1] == "FLOCK" and int(fields[4]) == os.getpid():
            yield fields[5]


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
