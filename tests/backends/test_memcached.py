"""The contract on memcached, and what is particular to it."""

from __future__ import annotations

import asyncio
import random
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from secrets import token_hex

import pytest

from asyncsess import CommitUnknownError, CorruptSessionError, LockLostError, SessionNotFoundError, StoreError
from asyncsess.backends.base import Record, Tombstone
from asyncsess.backends.memcached import MemcachedEngine
from asyncsess.backends.memcached.server import Server
from asyncsess.backends.remote import RemoteBackend
from asyncsess.expiry import Expiry
from asyncsess.stores import MemcachedStore
from asyncsess.testing import BackendContract, until
from asyncsess.testing.contract import KEY, NOW, OTHER_KEY, create, hold, put
from asyncsess.testing.contract.groups import GROUP, OTHER_GROUP
from asyncsess.testing.contract.helpers import keys_of
from asyncsess.web.login import login
from tests.servers import Memcached, memcached

WORKER = Path(__file__).with_name("memcached_worker.py")
RECORD = Record(b"payload", 1, NOW, NOW)


@pytest.fixture(scope="module")
def server() -> Iterator[Memcached]:
    with memcached() as server:
        yield server


@pytest.fixture
def prefix() -> str:
    return f"{token_hex(8)}:"


@asynccontextmanager
async def backend_on(url: str, prefix: str = "p:", expiry: Expiry | None = None) -> AsyncIterator[RemoteBackend]:
    backend = RemoteBackend(MemcachedEngine(url, prefix=prefix, expiry=expiry))
    await backend.open()
    try:
        yield backend
    finally:
        await backend.aclose()


@pytest.fixture
async def backend(server: Memcached, prefix: str) -> AsyncIterator[RemoteBackend]:
    async with backend_on(server.url, prefix) as backend:
        yield backend


@pytest.fixture
async def other(backend: RemoteBackend, server: Memcached, prefix: str) -> AsyncIterator[RemoteBackend]:
    async with backend_on(server.url, prefix) as other:
        yield other


class TestMemcached(BackendContract):
    @pytest.fixture
    def other(self, other: RemoteBackend) -> RemoteBackend:
        return other


def ask(server: Memcached, *commands: bytes) -> bytes:
    """Return the answer to what another program asks the server."""
    with socket.create_connection(("127.0.0.1", server.port)) as connection, connection.makefile("rwb") as file:
        for command in commands:
            file.write(command + b"\r\n")
            file.flush()
            answer = file.readline().strip()
    return answer


def store_garbage(server: Memcached, name: str, data: bytes, flags: int = 0) -> None:
    assert ask(server, b"set %s %d 0 %d\r\n%s" % (name.encode(), flags, len(data), data)) == b"STORED"


def time_to_live(server: Memcached, name: str) -> int:
    """Return for how many seconds the server keeps an item; -1 for ever."""
    return int(ask(server, f"mg {name} t".encode()).removeprefix(b"HD t"))


def fill(server: Memcached, size: int, times: int) -> None:
    """Store things of another program, whatever becomes of them."""
    with socket.create_connection(("127.0.0.1", server.port)) as connection, connection.makefile("rwb") as file:
        for number in range(times):
            file.write(b"set other:%d:%d 0 0 %d noreply\r\n%s\r\n" % (size, number, size, b"x" * size))
        file.write(b"mn\r\n")
        file.flush()
        while file.readline() != b"MN\r\n":  # after what was refused
            pass


# What memcached forgets.


async def test_a_session_that_was_evicted_while_it_was_held_is_not_stored_anew() -> None:
    with memcached("-m", "2", "-t", "1") as server:
        async with backend_on(server.url) as backend, create(backend, b"x" * 300) as held:
            while [name async for name in names(server, b"p:s:")]:  # which is no use of it
                for size in range(300, 1000, 50):
                    fill(server, size, 3000)
            with pytest.raises(StoreError, match="evicted") as caught:
                await held.commit(b"new", now=NOW)
            assert type(caught.value) is StoreError
            assert (await backend.read(KEY), await keys_of(backend)) == (None, [])


async def test_a_server_that_must_not_evict_refuses_and_keeps_what_it_has() -> None:
    with memcached("-m", "2", "-t", "1", "-M") as server:
        async with backend_on(server.url) as backend, create(backend) as held:
            for size in (400_000, 300_000, 200_000, 20_000, 2_000):
                fill(server, size, 4_000_000 // size)
            with pytest.raises(StoreError, match="-m"):
                await held.commit(b"x" * 300_000, now=NOW)
            with pytest.raises(StoreError, match="-m"):
                await put(backend, b"x" * 300_000, key=OTHER_KEY)
            assert await backend.read(KEY) == RECORD
            assert await backend.read(OTHER_KEY) is None
            assert await held.commit(b"new", now=NOW) == await backend.read(KEY)


async def test_after_a_restart_all_sessions_are_gone_and_new_ones_are_stored() -> None:
    with memcached() as server:
        async with MemcachedStore(server.url, sweep_interval=None) as store, backend_on(server.url) as backend:
            session_id = await store.create({"n": 1})
            async with create(backend) as held:
                server.kill()
                for use in (lambda: backend.read(KEY), lambda: held.commit(b"new", now=NOW), lambda: keys_of(backend)):
                    with pytest.raises(StoreError):
                        await use()
                server.start()
                with pytest.raises(StoreError, match="restarted"):
                    await held.commit(b"new", now=NOW)
            with pytest.raises(SessionNotFoundError):
                await store.open(session_id).__aenter__()
            await put(backend)
            assert await backend.read(KEY) == RECORD


async def test_a_holder_of_before_a_restart_does_not_take_a_session_of_after_it_for_its_own() -> None:
    with memcached() as server:
        async with backend_on(server.url) as backend, backend_on(server.url) as other, create(backend) as held:
            server.kill()
            server.start()
            async with create(other, b"another"):
                with pytest.raises(LockLostError):
                    await held.commit(b"late", now=NOW)
            assert await other.read(KEY) == Record(b"another", 1, NOW, NOW)


async def test_a_list_of_members_that_was_evicted_is_made_again_from_the_sessions() -> None:
    with memcached("-m", "10", "-t", "1") as server:
        async with backend_on(server.url) as backend:
            for key in (KEY, OTHER_KEY):
                await backend.add_member(GROUP, key, now=NOW)
                await put(backend, key=key)
            async with hold(backend) as held:  # what changes a session keeps what it is a member of
                await held.commit(b"new", now=NOW)
            fill(server, 100_000, 500)
            for _ in range(3):
                assert ask(server, f"delete p:g:{GROUP}".encode()) == b"DELETED"
                assert await backend.members(GROUP) == {KEY: NOW, OTHER_KEY: NOW}
            assert ask(server, f"delete p:g:{GROUP}".encode()) == b"DELETED"
            late = "c2" * 32
            await backend.add_member(GROUP, late, now=NOW)  # begins a list that is not whole
            for _ in range(2):
                assert await backend.members(GROUP) == dict.fromkeys((KEY, OTHER_KEY, late), NOW)
            await backend.remove_member(GROUP, KEY)
            assert ask(server, f"delete p:g:{GROUP}".encode()) == b"DELETED"
            assert (await backend.members(GROUP)).keys() == {OTHER_KEY, late}
            assert await backend.members(OTHER_GROUP) == {}


async def test_all_sessions_of_an_owner_end_although_the_list_of_them_was_evicted() -> None:
    with memcached("-m", "10", "-t", "1") as server:
        async with MemcachedStore(server.url, prefix="p:", sweep_interval=None) as store:
            for _ in range(3):
                async with store.open() as session:
                    await login(session, "ada")
            await store.create({})
            fill(server, 100_000, 500)
            async for line in names(server, b"p:g:"):
                assert ask(server, b"delete " + line) == b"DELETED"
            assert await store.destroy_all("ada") == 3
            assert len([key async for key in store.keys()]) == 1  # noqa: SIM118 - a store is no mapping


async def names(server: Memcached, start: bytes) -> AsyncIterator[bytes]:
    there = Server(server.url, "")
    async with there.use() as connection:
        async for name in connection.names(start):
            yield start + name
    await there.aclose()


async def test_without_its_list_of_keys_a_server_is_told_to_be_of_no_use_for_sweeping() -> None:
    with memcached("-X") as server:
        async with backend_on(server.url) as backend:
            await put(backend)
            assert await backend.read(KEY) == RECORD
            with pytest.raises(StoreError, match="does not list its keys"):
                await keys_of(backend)


# What memcached keeps, and for how long.


async def test_memcached_itself_drops_what_has_expired(server: Memcached, prefix: str) -> None:
    name = f"{prefix}s:{KEY}"
    for expiry, least, most in (
        (Expiry(idle_timeout=100.0), 98, 104),
        (Expiry(lifetime=90 * 86400.0), 90 * 86400 - 12, 90 * 86400 + 4),
        (Expiry(), -1, -1),
    ):
        async with backend_on(server.url, prefix, expiry) as backend:
            async with create(backend) as held:
                await held.commit(b"new", now=NOW + 5)
            assert least <= time_to_live(server, name) <= most
            await backend.touch(KEY, now=NOW + 9)
            assert least <= time_to_live(server, name) <= most
            async with hold(backend, lease=1000.0):
                assert most == -1 or time_to_live(server, name) >= 1000
            assert least <= time_to_live(server, name) <= most
            async with hold(backend) as held:
                await held.delete(now=NOW)
            assert ask(server, f"mg {name} t".encode()) in (b"EN", b"HD t1", b"HD t0")


async def test_what_a_dead_holder_leaves_of_a_new_session_does_not_stay_for_ever(
    server: Memcached, backend: RemoteBackend, prefix: str
) -> None:
    async with hold(backend, create=True, lease=10.0):
        assert 10 < time_to_live(server, f"{prefix}s:{KEY}") < 1000
    async with hold(backend, create=True):
        assert 1000 < time_to_live(server, f"{prefix}s:{KEY}") < 100_000


async def test_a_session_that_is_too_large_is_refused_and_nothing_is_lost(backend: RemoteBackend) -> None:
    with pytest.raises(StoreError, match="-I"):
        await put(backend, b"x" * 2_000_000)
    async with create(backend) as held:
        with pytest.raises(StoreError, match="-I"):
            await held.commit(b"x" * 2_000_000, now=NOW)
        assert await backend.read(KEY) == RECORD
        assert await held.commit(b"x" * 1_000_000, now=NOW) == await backend.read(KEY)


async def test_what_another_program_has_stored_is_moved_aside(server: Memcached, prefix: str) -> None:
    async with backend_on(server.url, prefix) as backend:
        for number, use in enumerate((lambda: backend.read(KEY), lambda: put(backend), hold(backend).__aenter__)):
            for flags in (0, 7):
                store_garbage(server, f"{prefix}s:{KEY}", data := b"garbage\r\nEND\r\n%d" % number, flags)
                with pytest.raises(CorruptSessionError) as caught:
                    await use()
                assert caught.value.path is not None
                assert ask(server, f"get {caught.value.path}".encode()).startswith(b"VALUE")
                assert data.decode() not in str(caught.value)
                assert await backend.read(KEY) is None
        await put(backend)


async def test_one_damaged_session_does_not_keep_others_from_being_found_or_deleted(
    server: Memcached, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with backend_on(server.url, prefix) as backend:
        for expected in ([OTHER_KEY], []):
            store_garbage(server, f"{prefix}s:{KEY}", b"garbage")
            store_garbage(server, f"{prefix}s:nothing of ours".replace(" ", "_"), b"garbage")
            if expected:
                await put(backend, key=OTHER_KEY)
                assert await keys_of(backend) == expected
            else:
                assert await backend.delete_expired(Expiry(1.0), now=NOW + 9) == 1
                assert await keys_of(backend) == expected
        store_garbage(server, f"{prefix}g:{GROUP}", b"garbage")
        await backend.add_member(OTHER_GROUP, KEY, now=NOW)
        assert await backend.members(GROUP) == {}
        assert await backend.members(OTHER_GROUP) == {KEY: NOW}
    assert caplog.text.count("is damaged") == 3


# Connections.


class Proxy:
    """Stands between a backend and memcached, and cuts a connection before or after a command has come through."""

    def __init__(self, server: Memcached, path: Path) -> None:
        self._server = server
        self._path = path
        self.url = f"memcached://{path}"
        self.cut_at: bytes | None = None
        self.comes_through = self.is_gone = False
        self.cuts = 0

    async def __aenter__(self) -> Proxy:
        self._listener = await asyncio.start_unix_server(self._serve, self._path, limit=2**22)
        self._tasks = set[asyncio.Task[None]]()
        return self

    async def __aexit__(self, *error: object) -> None:
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.create_task(self._pass_on(reader, writer)))

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_gone:
            writer.close()
            return
        there, back = await asyncio.open_connection("127.0.0.1", self._server.port)
        try:
            while data := await reader.read(2**22):
                is_cut = self.cut_at is not None and data.startswith(self.cut_at)
                if not is_cut or self.comes_through:
                    back.write(data)
                    answer = await there.read(2**22)
                if is_cut:
                    self.cut_at = None
                    self.cuts += 1
                    return
                writer.write(answer)
        finally:
            writer.close()
            back.close()


@pytest.mark.parametrize("comes_through", [False, True])
async def test_what_was_cut_is_looked_at_again_and_done_once(
    server: Memcached, prefix: str, tmp_path: Path, comes_through: bool
) -> None:
    tombstone = Tombstone(b"", NOW)

    async with Proxy(server, tmp_path / "socket") as proxy, backend_on(proxy.url, prefix) as backend:
        proxy.comes_through = comes_through
        proxy.cut_at = b"add"
        async with create(backend) as held:
            for number in (2, 3):
                proxy.cut_at = b"cas"
                await held.commit(b"%d" % number, now=NOW, is_last=number == 3)
        assert await backend.read(KEY) == Record(b"3", 3, NOW, NOW)
        proxy.cut_at = b"cas"
        async with hold(backend) as held:  # the grant
            assert held.record == Record(b"3", 3, NOW, NOW)
            proxy.cut_at = b"cas"
            await held.renew(100.0)
            proxy.cut_at = b"cas"
            await held.delete(tombstone, now=NOW)
        assert await backend.read(KEY) == tombstone
        await put(backend, key=OTHER_KEY)
        proxy.cut_at = b"cas"
        await backend.touch(OTHER_KEY, now=NOW + 1)
        for command in (b"append", b"touch"):
            proxy.cut_at = command
            await backend.add_member(GROUP, KEY, now=NOW)
        proxy.cut_at = b"gets"
        assert await backend.read(OTHER_KEY) == Record(b"payload", 1, NOW, NOW + 1)
        async with hold(backend, OTHER_KEY) as held:
            proxy.cut_at = b"cas"
        async with hold(backend, OTHER_KEY, timeout=0.0):
            pass
        assert proxy.cuts == 11


async def test_a_commit_that_was_cut_is_unknown_if_memcached_is_gone_after_that(
    server: Memcached, prefix: str, tmp_path: Path
) -> None:
    async with Proxy(server, tmp_path / "socket") as proxy, backend_on(proxy.url, prefix) as backend:
        await put(backend)
        held = hold(backend, lease=1.0)
        await held.__aenter__()
        proxy.cut_at, proxy.comes_through, proxy.is_gone = b"cas", True, True
        with pytest.raises(CommitUnknownError) as caught:
            await held.commit(b"new", now=NOW)
        assert isinstance(caught.value.__cause__, StoreError)
        await held.__aexit__(None, None, None)
        with pytest.raises(StoreError):
            await backend.read(KEY)
        proxy.is_gone = False
        assert await backend.read(KEY) == Record(b"new", 2, NOW, NOW)


async def test_a_server_that_is_not_there_or_does_not_answer_is_an_error() -> None:
    with memcached() as server:
        async with backend_on(server.url) as backend:
            server.pause()
            with pytest.raises(StoreError, match="in time"):
                await backend.read(KEY)
            server.resume()
            await put(backend)
    with pytest.raises(StoreError, match="can't be reached"):
        await RemoteBackend(MemcachedEngine(server.url)).open()


async def test_what_was_asked_for_in_vain_is_not_kept_to_be_given_back() -> None:
    with memcached() as server:
        async with backend_on(server.url) as backend:
            await put(backend)
            server.kill()
            for _ in range(10):
                with pytest.raises(StoreError):
                    await hold(backend).__aenter__()
            assert sum(len(each._claims) for each in backend._turns.returns._here.values()) <= 1  # the first was asked
            server.start()
            async with hold(backend):
                pass


async def test_answers_never_mix_when_commands_are_cancelled_in_the_middle(backend: RemoteBackend) -> None:
    payloads = {f"{number:064x}": b"%d" % number * (1 + 5000 * (number % 3)) for number in range(10)}
    for key, payload in payloads.items():
        await put(backend, payload, key=key)
    commands: list[Callable[[str], Awaitable[object]]] = [
        backend.read,
        lambda key: backend.touch(key, now=NOW),
        lambda key: backend.add_member(GROUP, key, now=NOW),
        lambda _: backend.members(GROUP),
        lambda _: keys_of(backend),
        lambda key: commit_again(backend, key),
    ]
    chosen = random.Random(1)
    cancelled = 0
    for number in range(400):
        key = chosen.choice([*payloads])
        task = asyncio.ensure_future(chosen.choice(commands)(key))
        for _ in range(number % 20):
            await asyncio.sleep(0)
        cancelled += task.cancel()
        results = await asyncio.gather(*(backend.read(key) for key in payloads), task, return_exceptions=True)
        found = [result.payload if isinstance(result, Record) else result for result in results[:-1]]
        assert found == [*payloads.values()]
        assert results[-1] is None or not isinstance(results[-1], Exception)
    assert cancelled > 200


async def commit_again(backend: RemoteBackend, key: str) -> None:
    async with hold(backend, key) as held:
        assert isinstance(held.record, Record)
        await held.commit(held.record.payload, now=NOW)


@pytest.mark.parametrize("url", ["redis://localhost", "memcached:", "localhost:11211", "memcached://me@localhost"])
def test_a_url_that_leads_nowhere_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="memcached://"):
        MemcachedEngine(url)


@pytest.mark.parametrize("prefix", ["a b", "\n", "x" * 101, "ä"])
def test_a_prefix_that_memcached_does_not_take_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match="prefix"):
        MemcachedEngine("memcached://localhost", prefix=prefix)


# Those who wait.


async def test_who_takes_a_session_again_at_once_comes_after_who_waits(
    backend: RemoteBackend, other: RemoteBackend
) -> None:
    order: list[str] = []

    async def enter(handle: RemoteBackend, name: str) -> None:
        async with hold(handle):
            order.append(name)

    await put(backend)
    for _ in range(5):
        async with asyncio.TaskGroup() as tasks:
            async with hold(backend) as held:
                tasks.create_task(enter(other, "who waits"))
                await until(lambda: held.is_contended)
            await enter(backend, "again")
    assert order == ["who waits", "again"] * 5


async def test_nothing_is_remembered_of_who_was_late(backend: RemoteBackend, other: RemoteBackend) -> None:
    await put(backend)
    async with hold(backend, lease=0.01) as late:
        assert not late.is_contended  # which is looked for
        async with hold(other):
            with pytest.raises(LockLostError):
                await late.delete(now=NOW)
    assert not backend._engine._looks._tasks  # type: ignore[attr-defined]


async def test_who_waited_and_is_gone_keeps_others_from_the_session_for_a_moment_only(
    backend: RemoteBackend, other: RemoteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def leave_nothing(*_: object) -> None:
        """Be gone."""

    await put(backend)
    async with hold(backend) as held:
        with monkeypatch.context() as patch:
            patch.setattr(other._engine, "leave", leave_nothing)
            with pytest.raises(TimeoutError):
                await hold(other, timeout=0.0).__aenter__()
        await until(lambda: held.is_contended)
    async with hold(backend, timeout=20.0) as held:
        assert held.waited > 0


# Processes.


@pytest.fixture
def start(server: Memcached, prefix: str) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a process in a role."""
    started: list[subprocess.Popen[str]] = []

    def start(role: str, session_id: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(WORKER), role, server.url, prefix, session_id]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
async def store(server: Memcached, prefix: str) -> AsyncIterator[MemcachedStore]:
    async with MemcachedStore(server.url, prefix=prefix, lock_timeout=60, sweep_interval=None) as store:
        yield store


async def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return (await asyncio.to_thread(process.stdout.readline)).strip()


async def test_two_processes_count_to_the_exact_sum(
    store: MemcachedStore, start: Callable[..., subprocess.Popen[str]]
) -> None:
    session_id = await store.create({"n": 0})
    workers = [start("count", session_id) for _ in range(2)]
    for worker in workers:
        assert await asyncio.to_thread(worker.wait) == 0
    async with store.open(session_id, readonly=True) as session:
        assert session["n"] == 200


async def test_the_lock_of_a_killed_process_ends_with_its_lease(
    store: MemcachedStore, start: Callable[..., subprocess.Popen[str]]
) -> None:
    session_id = await store.create({"n": 0})
    worker = start("hold", session_id)
    assert await said(worker) == "holds"
    worker.kill()
    async with store.open(session_id) as session:
        session["n"] += 1
    async with store.open(session_id, readonly=True) as session:
        assert session["n"] == 1


async def test_a_process_that_was_stopped_beyond_its_lease_stores_nothing(
    store: MemcachedStore, start: Callable[..., subprocess.Popen[str]]
) -> None:
    session_id = await store.create({"n": 0})
    worker = start("hold", session_id)
    assert await said(worker) == "holds"
    worker.send_signal(signal.SIGSTOP)
    async with store.open(session_id) as session:
        session["n"] = "in time"
    worker.send_signal(signal.SIGCONT)
    worker.stdin.write("\n")  # type: ignore[union-attr]
    worker.stdin.flush()  # type: ignore[union-attr]
    assert await said(worker) == "lost"
    async with store.open(session_id, readonly=True) as session:
        assert session["n"] == "in time"
