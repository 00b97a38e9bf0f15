"""The contract on Valkey, Redis and a cluster of them, and what is particular to Redis."""

from __future__ import annotations

import asyncio
import gc
import os
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from secrets import token_hex
from threading import Thread
from typing import Any

import pytest
from redis import Redis as BlockingRedis
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.sentinel import Sentinel

from asyncsess import (
    CommitUnknownError,
    CorruptSessionError,
    Holder,
    LockTimeoutError,
    RedisStore,
    StoreError,
    append,
    increment,
)
from asyncsess.backends.base import Record
from asyncsess.backends.redis import RedisEngine, connections
from asyncsess.backends.remote import Busy, Claim, Granted, RemoteBackend
from asyncsess.backends.remote.lines import process
from asyncsess.expiry import Expiry
from asyncsess.testing import BackendContract, until
from asyncsess.testing.contract import KEY, NOW, hold, put
from asyncsess.testing.contract.groups import GROUP
from tests import servers
from tests.conftest import keys_of, stored
from tests.proxy import Cut, Proxy
from tests.servers import RedisServer


class Counting(Redis):
    """A client that counts what it asks."""

    count = 0

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        self.count += 1
        return await super().execute_command(*args, **options)


@asynccontextmanager
async def opened(server: Any, prefix: str) -> AsyncIterator[RemoteBackend]:
    backend = RemoteBackend(RedisEngine(server, prefix=prefix))
    await backend.open()
    try:
        yield backend
    finally:
        await backend.aclose()


@pytest.fixture
def prefix() -> str:
    return f"{token_hex(8)}:"


class TestValkey(BackendContract):
    @pytest.fixture
    def server(self, redis_url: str) -> str:
        return redis_url

    @pytest.fixture
    async def backend(self, server: Any, prefix: str) -> AsyncIterator[RemoteBackend]:
        async with opened(server, prefix) as backend:
            yield backend

    @pytest.fixture
    async def other(self, backend: RemoteBackend, server: Any, prefix: str) -> AsyncIterator[RemoteBackend]:
        async with opened(server, prefix) as other:
            yield other


@pytest.fixture(scope="module")
def proper_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with servers.redis(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


class TestRedis(TestValkey):
    @pytest.fixture
    def server(self, proper_redis: str) -> str:
        return proper_redis


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RedisServer]]:
    with servers.cluster(tmp_path_factory.mktemp("cluster")) as nodes:
        yield nodes


class TestCluster(TestValkey):
    @pytest.fixture
    def server(self, nodes: list[RedisServer]) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with servers.valkey(tmp_path / "server") as server:
        yield server


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Counting]:
    async with Counting.from_url(redis_url) as client:
        yield client


async def test_each_step_is_one_round_trip(client: Counting, prefix: str) -> None:
    async with RedisStore(client, prefix=prefix) as store:
        session_id = await store.create({"n": 0})
        asked: dict[str, int] = {}
        for _ in range(2):  # at first, the server does not know the scripts
            for what in ("readonly", "open", "unchanged", "edit", "apply"):
                before = client.count
                if what == "readonly":
                    await stored(store, session_id)
                elif what == "open":
                    async with store.open(session_id) as session:
                        session["n"] += 1
                elif what == "unchanged":
                    async with store.open(session_id):
                        pass
                elif what == "edit":
                    async with store.edit(session_id) as session:
                        session["n"] += 1
                else:
                    await store.apply(session_id, increment("n"))
                asked[what] = client.count - before
        assert asked == {"readonly": 1, "open": 2, "unchanged": 2, "edit": 3, "apply": 2}
        assert await stored(store, session_id) == {"n": 6}


async def test_who_waits_does_not_ask_again_until_he_is_told(client: Counting, redis_url: str, prefix: str) -> None:
    async with opened(client, prefix) as backend, opened(redis_url, prefix) as other:
        await put(other)
        waited = 0
        async with asyncio.TaskGroup() as tasks:
            async with hold(other):

                async def wait() -> None:
                    nonlocal waited
                    before = client.count
                    async with hold(backend, timeout=30.0):
                        waited = client.count - before

                task = tasks.create_task(wait())
                await until(lambda: backend.statistics().waiting == 1)
                for _ in range(100):
                    await other.read(KEY)
            await task
        assert waited == 2


async def test_who_waits_is_told_by_the_server(redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = RedisEngine.told
    monkeypatch.setattr(RedisEngine, "told", lambda self, claim, seconds: told(self, claim, 3600.0))  # not by the timer
    async with opened(redis_url, prefix) as backend, opened(redis_url, prefix) as other:
        await put(other)
        async with asyncio.timeout(30), asyncio.TaskGroup() as tasks, hold(other):
            waiter = tasks.create_task(hold(backend, timeout=60.0).__aenter__())
            await until(lambda: backend.statistics().waiting == 1)
        await waiter.result().release(now=NOW)


async def test_who_was_first_in_line_is_first_also_where_nobody_gave_the_lock_back(
    client: Counting, prefix: str
) -> None:
    holder = Holder(1, "task", datetime.now(UTC), "here")
    late, first, second = (Claim(KEY, None, process.token(), holder, 30.0, True) for _ in range(3))
    async with AsyncExitStack() as stack:
        engine = RedisEngine(client, prefix=prefix)
        stack.push_async_callback(engine.aclose)
        assert isinstance(await engine.take(late), Granted)
        for claim in (first, second):
            assert isinstance(await engine.take(claim), Busy)
            stack.push_async_callback(engine.leave, claim)
        await client.delete(f"{prefix}l:{{{KEY}}}")
        assert isinstance(await engine.take(second), Busy)
        assert isinstance(await engine.take(first), Granted)


async def follow_a_late_holder(url: str, prefix: str) -> None:
    """Take over while the process of the holder, and of the first in line, is stopped, but goes on to be subscribed."""
    holder = Holder(1, "task", datetime.now(UTC), "here")
    late, first = (Claim(KEY, None, process.token(), holder, 0.1, True) for _ in range(2))
    async with opened(url, prefix) as stopped, opened(url, prefix) as other:
        engine = stopped._engine
        assert isinstance(await engine.take(late), Granted)
        assert isinstance(await engine.take(first), Busy)
        async with hold(other, timeout=10.0, create=True):
            pass
        assert isinstance(await engine.take(first), Granted)
        await engine.leave(first)


async def test_a_late_holder_is_followed_although_the_first_in_line_was_stopped(redis_url: str, prefix: str) -> None:
    await follow_a_late_holder(redis_url, prefix)


async def test_a_late_holder_is_followed_in_a_cluster_although_the_first_in_line_was_killed(
    nodes: list[RedisServer], prefix: str
) -> None:
    await follow_a_late_holder("redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes), prefix)


async def test_a_process_is_told_again_after_its_server_has_left_a_new_connection_without_an_answer(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_SILENCE", 0.2)
    async with (
        Proxy("127.0.0.1", server.port) as proxy,
        opened(f"redis://127.0.0.1:{proxy.port}", "") as backend,
        Redis.from_url(server.url) as client,
    ):
        channel = f"p:{process.name}"
        proxy.is_swallowing = True
        proxy.cut_all()
        await until(lambda: proxy.links == 1)  # the listener has connected again
        proxy.is_swallowing = False
        async with asyncio.timeout(20):
            while not (await client.pubsub_numsub(channel))[0][1]:
                await asyncio.sleep(0.01)
        await backend.read(KEY)


async def test_a_lock_that_was_granted_to_nobody_is_given_back_although_its_process_was_told_in_vain(
    redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave, lost = connections.Connections._leave, list[str]()

    async def lose_the_first(self: connections.Connections, token: str, lock: str) -> None:
        lost.append(token)
        if len(lost) > 1:
            await leave(self, token, lock)

    monkeypatch.setattr(connections.Connections, "_leave", lose_the_first)
    async with opened(redis_url, prefix) as backend:
        engine = backend._engine
        nobody = Claim(KEY, None, process.token(), Holder(1, "task", datetime.now(UTC), "here"), 3600.0, True)
        await engine.take(nobody)
        engine._forget(nobody)
        async with hold(backend, timeout=10.0, create=True):
            assert lost == [nobody.token] * 2


async def test_a_forked_child_gives_no_lock_of_its_parent_back(redis_url: str, prefix: str) -> None:
    async with opened(redis_url, prefix) as backend, opened(redis_url, prefix) as other:
        await put(backend)
        held = hold(backend)
        async with held:
            child = os.fork()
            if child == 0:
                try:
                    asyncio.run(held.__aexit__(None, None, None))
                finally:
                    os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            with pytest.raises(LockTimeoutError):
                await hold(other, timeout=0).__aenter__()


async def test_locks_are_granted_in_the_order_in_which_they_were_asked_for(redis_url: str, prefix: str) -> None:
    async with RedisStore(redis_url, prefix=prefix) as first, RedisStore(redis_url, prefix=prefix) as second:
        third = RedisStore(redis_url, prefix=prefix)
        async with third:
            session_id = await first.create({"order": []})

            async def add(store: RedisStore, number: int) -> None:
                async with store.open(session_id) as session:
                    session["order"].append(number)

            async with asyncio.TaskGroup() as tasks, first.open(session_id):
                for number, store in enumerate((second, third, second)):
                    tasks.create_task(add(store, number))
                    await until(lambda number=number: second.statistics().waiting + third.statistics().waiting > number)
            # The third's place is taken when the first of its process is served.
            assert (await stored(first, session_id))["order"] == [0, 1, 2]


async def test_a_server_that_forgets_the_scripts_is_told_again(server: RedisServer) -> None:
    async with RedisStore(server.url) as store, Redis.from_url(server.url) as client:
        session_id = await store.create({"n": 0})
        async with store.open(session_id) as session:
            await client.script_flush()
            session["n"] = 1
        assert await stored(store, session_id) == {"n": 1}


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random"])
async def test_a_server_that_evicts_any_key_is_refused(server: RedisServer, policy: str) -> None:
    async with Redis.from_url(server.url) as client:
        await client.config_set("maxmemory-policy", policy)
        with pytest.raises(StoreError, match=f"maxmemory-policy is {policy}.* set it to noeviction"):
            await RedisStore(server.url).__aenter__()


async def test_a_server_that_evicts_keys_that_expire_is_warned_of(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with Redis.from_url(server.url) as client:
        await client.config_set("maxmemory-policy", "volatile-ttl")
        async with RedisStore(server.url) as store:
            assert await stored(store, await store.create({"a": 1})) == {"a": 1}
    assert "volatile-ttl" in caplog.text


async def test_a_full_server_says_so_and_goes_on_when_there_is_room(server: RedisServer) -> None:
    async with RedisStore(server.url) as store, Redis.from_url(server.url) as client:
        kept, ended = [await store.create({"a": 1}) for _ in range(2)]
        await client.config_set("maxmemory", 1)
        with pytest.raises(StoreError, match="maxmemory"):
            await store.create()
        with pytest.raises(StoreError, match="maxmemory"):
            async with store.open(kept) as session:
                session["a"] = 2
        assert await stored(store, kept) == {"a": 1}
        assert await store.destroy(ended) is True
        await client.config_set("maxmemory", 0)
        async with store.open(kept, timeout=0) as session:
            session["a"] = 3
        assert await stored(store, kept) == {"a": 3}


@pytest.mark.parametrize(("name", "value"), [("maxmemory", 1), ("min-replicas-to-write", 1)])
async def test_a_commit_that_was_stored_counts_although_its_repetition_is_refused(
    server: RedisServer, name: str, value: int
) -> None:
    async with Proxy("127.0.0.1", server.port) as proxy, RedisStore(f"redis://127.0.0.1:{proxy.port}") as store:
        session_id = await store.create({"n": 0})
        async with store.open(session_id) as session:
            session["n"] = 1
            await session.save()  # so that the server knows the script
            session["n"] = 2
            saving = asyncio.create_task(session.save())
            proxy.cut(Cut.BEFORE_ANSWER)
            await until(lambda: proxy.cuts == 1)
            with server.client() as client:
                client.config_set(name, value)
                await saving
                client.config_set(name, 0)
            session["n"] = 3
        assert await stored(store, session_id) == {"n": 3}


async def test_a_commit_is_never_taken_for_another_of_the_same_holder(redis_url: str, prefix: str) -> None:
    claim = Claim(KEY, None, process.token(), Holder(1, "task", datetime.now(UTC), "here"), 30.0, True)
    async with opened(redis_url, prefix) as backend:
        engine = backend._engine
        await engine.take(claim)
        await engine.commit(
            claim, None, b"late, of which its holder was told that nothing was stored", now=NOW, is_last=False
        )
        with pytest.raises(CommitUnknownError):
            await engine.commit(claim, None, b"another", now=NOW, is_last=False)
        await engine.leave(claim)


async def test_a_client_that_decodes_is_refused(redis_url: str) -> None:
    async with Redis.from_url(redis_url, decode_responses=True) as client:
        with pytest.raises(ValueError, match="decode_responses"):
            RedisStore(client)
    with pytest.raises(ValueError, match="decode_responses"):
        RedisStore(f"{redis_url}?decode_responses=True")


@pytest.mark.parametrize("server", [BlockingRedis(), Sentinel([]), None, b"redis://localhost"], ids=type)
def test_what_is_no_client_of_asyncio_is_refused(server: Any) -> None:
    with pytest.raises(TypeError, match="URL, or a client of redis"):
        RedisStore(server)


@pytest.mark.parametrize("scheme", ["redis", "redis+cluster"])
async def test_a_server_that_is_not_there_is_told_of(scheme: str) -> None:
    store = RedisStore(f"{scheme}://127.0.0.1:{servers.free_port()}")
    with pytest.raises(StoreError, match="could not be used"):
        await store.__aenter__()
    with pytest.raises(StoreError, match="could not be used"):
        await store.create()
    await store.aclose()


async def test_a_server_that_wants_a_password_or_is_a_replica_says_what_helps(server: RedisServer) -> None:
    with server.client() as client:
        client.replicaof("127.0.0.1", servers.free_port())
        with pytest.raises(StoreError, match="give its primary"):
            await RedisStore(server.url).__aenter__()
        client.config_set("requirepass", "secret")
    for url in (server.url, server.url.replace("//", "//:wrong@")):
        with pytest.raises(StoreError, match="give the user and the password"):
            await RedisStore(url).__aenter__()


async def test_a_server_that_does_not_answer_is_told_of(redis_url: str) -> None:
    async with Proxy("127.0.0.1", int(redis_url.rpartition(":")[2])) as proxy:
        proxy.is_swallowing = True
        with pytest.raises(StoreError, match="it did not answer in time"):
            await RedisStore(f"redis://127.0.0.1:{proxy.port}?socket_timeout=0.1").__aenter__()


async def test_what_is_no_session_is_moved_aside(client: Counting, prefix: str) -> None:
    async with RedisStore(client, prefix=prefix) as store:
        session_id = await store.create()
        (key,) = await keys_of(store)
        await client.set(f"{prefix}s:{{{key}}}", b"something else")
        with pytest.raises(CorruptSessionError) as caught:
            await stored(store, session_id)
        assert await client.get(caught.value.path or "") == b"something else"
        assert key not in str(caught.value)


async def test_what_is_no_session_is_not_moved_aside_once_another_has_stored_one(
    client: Counting, redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(client, prefix) as slow, opened(redis_url, prefix) as other:
        await client.set(f"{prefix}s:{{{KEY}}}", b"something else")
        ask = client.execute_command

        async def get_late(*command: Any) -> Any:
            data = await ask(*command)
            if command[0] == "GET":
                with pytest.raises(CorruptSessionError):
                    await other.read(KEY)
                await put(other)
            return data

        monkeypatch.setattr(client, "execute_command", get_late)
        with pytest.raises(CorruptSessionError):
            await slow.read(KEY)
        assert isinstance(await other.read(KEY), Record)


async def test_a_session_is_deleted_by_the_server_once_it_has_expired(client: Counting, prefix: str) -> None:
    async with RedisStore(client, prefix=prefix, idle_timeout=60, lifetime=100) as store:
        session_id = await store.create({"n": 0})
        name = (await client.keys(f"{prefix}s:*"))[0]
        for change in (increment("n"), increment("n")):
            assert 59 <= await client.ttl(name) <= 60
            await store.apply(session_id, change)  # which stores it anew
        assert 59 <= await client.ttl(name) <= 60
        await store.destroy(session_id)
        assert 60 <= await client.ttl(name) <= 120  # the tombstone


@pytest.mark.parametrize("start", ["[a]", "*", "?", "a\\b", "a^-"])
async def test_a_prefix_is_taken_literally(redis_url: str, prefix: str, start: str) -> None:
    async with opened(redis_url, f"{start}{prefix}") as backend, opened(redis_url, f"xyz{prefix}") as other:
        await put(other)
        assert [key async for key in backend.keys()] == []  # noqa: SIM118 - it is no mapping
        await put(backend)
        assert [key async for key in backend.keys()] == [KEY]  # noqa: SIM118 - it is no mapping


async def test_a_group_lasts_as_long_as_any_of_its_sessions_may(client: Counting, prefix: str) -> None:
    name = f"{prefix}g:{GROUP}"
    for lifetime, least, most in ((100, 100, 160), (10, 100, 160), (1000, 1000, 1060), (None, -1, -1), (10, -1, -1)):
        engine = RedisEngine(client, prefix=prefix, expiry=Expiry(None, lifetime))
        await engine.add_member(GROUP, KEY, now=NOW)
        assert least <= await client.ttl(name) <= most
        await engine.aclose()


async def test_nothing_is_left_of_locks(client: Counting, prefix: str) -> None:
    async with RedisStore(client, prefix=prefix) as store:
        session_id = await store.create({"log": []})

        async def use(number: int) -> None:
            async with store.synchronize(session_id, f"v{number % 2}") as session:
                session[f"v{number % 2}"] = number
            await store.apply(session_id, append("log", number))

        await asyncio.gather(*map(use, range(10)))
        assert len(await client.keys(f"{prefix}*")) == 1


async def test_nothing_is_remembered_of_who_was_followed_by_another_task(client: Counting, prefix: str) -> None:
    async with opened(client, prefix) as backend:
        await put(backend)
        async with hold(backend, lease=0.01), asyncio.TaskGroup() as tasks:
            tasks.create_task(use(backend))
        (here,) = backend._engine._connections.values()
        assert not here._told


async def use(backend: RemoteBackend) -> None:
    async with hold(backend):
        pass


async def test_a_cluster_shares_the_sessions_out(nodes: list[RedisServer], prefix: str) -> None:
    async with (
        RedisCluster(startup_nodes=[ClusterNode("127.0.0.1", nodes[0].port)]) as client,
        RedisStore(client, prefix=prefix) as store,
    ):
        ids = [await store.create({"n": 0}) for _ in range(60)]
        await asyncio.gather(*(store.apply(session_id, increment("n")) for session_id in ids * 2))
        assert [(await stored(store, session_id))["n"] for session_id in ids] == [2] * 60
        assert len(await keys_of(store)) == 60
        counts = [len(node.client().keys(f"{prefix}s:*")) for node in nodes]
        assert all(counts)
        assert sum(counts) == 60


async def test_sessions_go_on_where_a_sentinel_says(tmp_path: Path) -> None:
    with servers.watched_pair(tmp_path, "sessions") as (first, second, sentinel):
        watcher = Sentinel([("127.0.0.1", sentinel.port)])
        async with watcher.master_for("sessions") as client, RedisStore(client) as store:
            session_id = await store.create({"n": 0})
            with second.client() as replica:
                await until(lambda: bool(replica.keys("*")))
            first.kill()
            while True:
                try:
                    await store.apply(session_id, increment("n"))
                    break
                except StoreError:
                    await asyncio.sleep(0.05)
            assert await stored(store, session_id) == {"n": 1}
        for client in watcher.sentinels:
            await client.aclose()


async def test_a_cancellation_is_not_lost_in_a_client_that_has_a_timeout(client: Counting, prefix: str) -> None:
    async with RedisStore(client, prefix=prefix) as store:
        session_id = await store.create({"n": 0})

        async def add() -> str:
            await store.apply(session_id, increment("n"))
            await asyncio.sleep(0)
            return "it went on"

        for steps in count():
            task = asyncio.create_task(add())
            for _ in range(steps):
                await asyncio.sleep(0)
            if task.done():
                break
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert task.result() == "it went on"


async def test_an_event_loop_ends_although_the_store_was_not_closed_but_its_client(redis_url: str, prefix: str) -> None:
    kind = type(asyncio.get_running_loop())

    def run() -> None:
        with asyncio.Runner(loop_factory=kind) as runner:
            runner.run(use())

    async def use() -> None:
        async with Redis.from_url(redis_url) as client:
            await RedisStore(client, prefix=prefix).create({"n": 0})

    thread = Thread(target=run, daemon=True)
    thread.start()
    await until(lambda: not thread.is_alive())


async def test_an_event_loop_that_has_ended_is_let_go(redis_url: str, prefix: str) -> None:
    backend = RemoteBackend(RedisEngine(redis_url, prefix=prefix))
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def read() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        await backend.read(KEY)

    await asyncio.to_thread(asyncio.run, read())
    gc.collect()
    assert loops[0]() is None
    await backend.aclose()
