from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import time_machine
from litestar import Litestar, Request, get
from litestar.middleware.rate_limit import RateLimitConfig
from litestar.middleware.session.server_side import ServerSideSessionConfig
from litestar.response import Stream
from litestar.stores.base import Store
from litestar.stores.memory import MemoryStore
from litestar.stores.registry import StoreRegistry
from litestar.testing import AsyncTestClient, TestClient

from asyncsess import ConflictError, EncryptedCodec, SessionNotFoundError, StoreError, rules
from asyncsess.adapters import entries
from asyncsess.adapters.litestar import AsyncsessStore
from asyncsess.testing import until
from tests.adapters.conftest import Gate, Serve

Handler = Callable[[Request[Any, Any, Any]], Awaitable[Any]]


@pytest.fixture
async def ours(directory: Path) -> AsyncIterator[AsyncsessStore]:
    store = AsyncsessStore(directory, sweep_interval=None)
    async with store:  # type: ignore[attr-defined]
        yield store


@pytest.fixture(params=["Litestar's", "ours"])
def store(request: pytest.FixtureRequest, ours: AsyncsessStore) -> Store:
    """Litestar's store in memory, whose behaviour is the measure, or ours."""
    return ours if request.param == "ours" else MemoryStore()


def files_in(directory: Path) -> list[Path]:
    return [path for path in directory.glob("??/*") if path.is_file()]


# As Litestar's own store.


@pytest.mark.parametrize("key", ["x", "", "a/../b", "№ 7", "\ud800", "k" * 5000, ".:.", "null"])
@pytest.mark.parametrize(
    "value", [b"\x00\xff", b"", "text", b'{"a": 1}', b"[1]", b'"x"', b'{"a":1,"a":2}', b"{" * 9999]
)
async def test_any_key_and_any_value_come_back_as_they_were_put_in(store: Store, key: str, value: str | bytes) -> None:
    assert await store.get(key) is None
    await store.set(key, value)
    assert await store.get(key) == (value.encode() if isinstance(value, str) else value)
    await store.set(key, "other")
    assert await store.get(key) == b"other"
    await store.delete(key)
    assert await store.get(key) is None
    await store.delete(key)
    await store.set(key, value)
    assert await store.exists(key)


@pytest.mark.parametrize("first", [b"\x00", b'{"a":1}', b"{}"])
@pytest.mark.parametrize("second", [b"\x01", b'{"b":2}', b"{}"])
@pytest.mark.parametrize("gets", [0, 1, 2])
async def test_the_last_of_two_sets_is_what_is_there(store: Store, first: bytes, second: bytes, gets: int) -> None:
    await store.set("key", b'{"c":3}')
    for number, value in enumerate((first, second)):
        if number < gets:
            await store.get("key")
        await store.set("key", value)
    assert await store.get("key") == second


@pytest.mark.parametrize("expires_in", [10, timedelta(seconds=10)])
async def test_a_value_expires(store: Store, expires_in: int | timedelta) -> None:
    with time_machine.travel(2_000_000_000, tick=False) as wall:
        await store.set("key", b"value", expires_in=expires_in)
        assert await store.expires_in("key") == 10
        wall.shift(9.5)
        assert await store.get("key") == b"value"
        assert await store.expires_in("key") == 0
        wall.shift(0.5)
        assert await store.get("key") is None
        assert not await store.exists("key")
        assert await store.expires_in("key") is None
        await store.set("key", b"again")
        assert await store.expires_in("key") == -1


@pytest.mark.parametrize("expires_in", [None, 0, timedelta(0)])
async def test_a_value_without_a_time_does_not_expire(store: Store, expires_in: int | timedelta | None) -> None:
    with time_machine.travel(2_000_000_000, tick=False) as wall:
        await store.set("key", b"value", expires_in=expires_in)
        assert await store.get("key", renew_for=10) == b"value"
        wall.shift(10**8)
        assert await store.get("key") == b"value"
        assert await store.expires_in("key") == -1


async def test_a_value_that_has_expired_before_it_was_set_is_not_there(store: Store) -> None:
    await store.set("key", b"value", expires_in=-1)
    assert await store.get("key") is None


@pytest.mark.parametrize("value", [b"\x00", b'{"a":1}'])
@pytest.mark.parametrize("renew_for", [5, 10, 200, timedelta(seconds=10)])
async def test_a_get_renews_a_value_that_expires(store: Store, value: bytes, renew_for: int | timedelta) -> None:
    with time_machine.travel(2_000_000_000, tick=False) as wall:
        await store.set("key", value, expires_in=10)
        wall.shift(4)
        assert await store.get("key", renew_for=renew_for) == value
        seconds = renew_for if isinstance(renew_for, int) else 10
        assert await store.expires_in("key") == seconds
        wall.shift(seconds - 1)
        assert await store.get("key", renew_for=0) == value
        wall.shift(1)
        assert await store.get("key") is None


@pytest.mark.parametrize("value", [b"\x00", b'{"a":1}'])
async def test_a_set_decides_anew_whether_a_value_expires(store: Store, value: bytes) -> None:
    with time_machine.travel(2_000_000_000, tick=False):
        await store.set("key", value, expires_in=10)
        for expires_in, expected in ((20, 20), (None, -1), (5, 5), (3, 3)):
            await store.get("key")
            await store.set("key", value, expires_in=expires_in)
            assert await store.expires_in("key") == expected


async def test_delete_all_empties_the_store(store: Store) -> None:
    for key in "abc":
        await store.set(key, b'{"a":1}')
        await store.get(key)
    await store.delete_all()
    assert [await store.exists(key) for key in "abc"] == [False] * 3
    await store.set("a", b'{"b":2}')
    assert await store.get("a") == b'{"b":2}'


async def test_delete_expired_deletes_what_has_expired(store: MemoryStore | AsyncsessStore) -> None:
    with time_machine.travel(2_000_000_000, tick=False) as wall:
        for key, expires_in in (("a", 10), ("b", 20), ("c", None)):
            await store.set(key, b"value", expires_in=expires_in)
        wall.shift(10)
        await store.delete_expired()
        assert [await store.exists(key) for key in "abc"] == [False, True, True]


# What is ours.


async def test_an_expired_value_is_gone_from_the_disk_only_when_it_was_swept(
    ours: AsyncsessStore, directory: Path
) -> None:
    with time_machine.travel(2_000_000_000, tick=False) as wall:
        await ours.set("key", b"value", expires_in=10)
        wall.shift(10)
        assert not await ours.exists("key")
        assert len(files_in(directory)) == 1
        await ours.delete_expired()
        assert files_in(directory) == []


async def test_an_entered_store_sweeps_by_itself(directory: Path) -> None:
    with time_machine.travel(2_000_000_000) as wall:
        store = AsyncsessStore(directory, sweep_interval=0.02)
        async with store:  # type: ignore[attr-defined]
            await store.set("key", b"value", expires_in=10)
            wall.shift(11)
            await until(lambda: not files_in(directory))


async def test_a_torn_file_does_not_stop_the_deletion_of_expired_values(ours: AsyncsessStore, directory: Path) -> None:
    with time_machine.travel(2_000_000_000, tick=False) as wall:
        await ours.set("kept", b"value")
        for number in range(20):
            await ours.set(str(number), b"value", expires_in=10)
            if number == 10:
                torn = {*files_in(directory)}
        wall.shift(10)
        for path in sorted(torn)[:5]:
            path.write_bytes(path.read_bytes()[:50])
        await ours.delete_expired()
        left = len(files_in(directory))
        assert left in (0, 1)
        assert await ours.exists("kept") == bool(left)


async def test_a_value_of_another_secret_does_not_stop_a_deletion(directory: Path) -> None:
    one, other = [AsyncsessStore(directory, codec=EncryptedCodec([bytes([n]) * 32])) for n in range(2)]
    async with one, other:  # type: ignore[attr-defined]
        await one.set("one", b"value")
        await other.set("other", b"value")
        await one.delete_all()
        assert await other.exists("other")
        assert not await one.exists("one")
        await one.delete("other")
        assert not await other.exists("other")


async def test_a_namespace_is_a_store_of_its_own(ours: AsyncsessStore) -> None:
    stores = [ours, *(ours.with_namespace(name) for name in ("a", "b", "response_cache", "../x"))]
    stores.append(stores[1].with_namespace("b"))
    for number, store in enumerate(stores):
        await store.set("key", str(number))
    assert [await store.get("key") for store in stores] == [str(number).encode() for number in range(len(stores))]
    await stores[1].set("b", "a's")
    assert await stores[2].get("key") == b"2"


async def test_bulk_operations_reach_a_namespace_and_those_in_it(ours: AsyncsessStore) -> None:
    a, b = ours.with_namespace("a"), ours.with_namespace("b")
    stores = [ours, a, a.with_namespace("b"), b, ours.with_namespace("ab")]

    async def there() -> list[bool]:
        return [await store.exists("key") for store in stores]

    with time_machine.travel(2_000_000_000, tick=False) as wall:
        for store in stores:
            await store.set("key", b"value", expires_in=10)
        await a.delete_all()
        assert await there() == [True, False, False, True, True]
        await a.set("key", b"value", expires_in=10)
        wall.shift(10)
        await b.delete_expired()
        assert len(files_in(Path(ours._files.store.backend._directory.path))) == 3
        await ours.delete_expired()
        assert files_in(Path(ours._files.store.backend._directory.path)) == []


async def test_a_namespace_has_a_name(ours: AsyncsessStore) -> None:
    with pytest.raises(ValueError, match="a namespace has a name"):
        ours.with_namespace("")


async def changes(ours: Store, change: Callable[[dict[str, Any]], object], gate: Gate) -> None:
    """Do what a request does."""
    values = json.loads(await ours.get("key") or b"{}")
    await gate.wait()
    change(values)
    await ours.set("key", json.dumps(values), expires_in=100)


@pytest.mark.parametrize("before", [None, b'{"name":"Ada"}'])
async def test_concurrent_changes_are_both_kept(ours: AsyncsessStore, before: bytes | None) -> None:
    if before:
        await ours.set("key", before)
    gate = Gate(2)
    tasks = [asyncio.create_task(changes(ours, lambda v, key=key: v.update({key: 1}), gate)) for key in "ab"]
    await gate.open()
    await asyncio.gather(*tasks)
    found = json.loads(await ours.get("key") or b"")
    assert found == {**json.loads(before or b"{}"), "a": 1, "b": 1}


async def test_rules_are_those_of_the_store_or_of_the_namespace(directory: Path) -> None:
    store = AsyncsessStore(directory, resolve={"n": rules.add})
    namespaces = store, store.with_namespace("a"), store.with_namespace("b", resolve=rules.maximum)
    for namespace in namespaces:
        await namespace.set("key", b'{"n":1}')
        gate = Gate(2)
        tasks = [asyncio.create_task(changes(namespace, lambda v: v.update(n=v["n"] + 1), gate)) for _ in range(2)]
        await gate.open()
        await asyncio.gather(*tasks)
    assert [await namespace.get("key") for namespace in namespaces] == [b'{"n":3}', b'{"n":3}', b'{"n":2}']
    gc.collect()


async def test_a_late_set_does_not_bring_back_what_was_deleted(ours: AsyncsessStore) -> None:
    for again in (None, b'{"user":"Bob"}'):
        await ours.set("key", b'{"user":"Ada"}')
        gate = Gate(2)
        late = asyncio.create_task(changes(ours, lambda values: values.update(late=True), gate))
        reader = asyncio.create_task(changes(ours, lambda values: None, gate))
        await gate.until_all_wait()
        await ours.delete("key")
        if again:
            await ours.set("key", again)
        await gate.open()
        await reader
        with pytest.raises(SessionNotFoundError):
            await late
        assert await ours.get("key") == again


async def test_a_renewal_does_not_undo_a_concurrent_change(ours: AsyncsessStore) -> None:
    await ours.set("key", b'{"n":0}', expires_in=1000)
    for number in range(50):
        value = json.dumps({"n": number + 1})
        await asyncio.gather(
            ours.get("key", renew_for=2000 + 1000 * number), asyncio.create_task(ours.set("key", value))
        )
        assert await ours.get("key") == value.encode()
        await ours.set("key", value, expires_in=1000)


async def test_what_replaces_a_value_is_merged_into_like_what_changes_it(ours: AsyncsessStore) -> None:
    await ours.set("key", b'{"a":1}')
    gate = Gate()
    task = asyncio.create_task(changes(ours, lambda values: values.update(late=True), gate))
    await gate.until_all_wait()
    await ours.set("key", b'{"b":2}')
    await gate.open()
    await task
    assert json.loads(await ours.get("key") or b"") == {"b": 2, "late": True}


async def test_a_late_reader_does_not_renew_what_took_the_place_of_what_it_read(ours: AsyncsessStore) -> None:
    with time_machine.travel(2_000_000_000) as wall:
        await ours.set("key", b'{"a":1}', expires_in=100)
        gate = Gate()
        reader = asyncio.create_task(changes(ours, lambda values: None, gate))
        await gate.until_all_wait()
        wall.shift(50)
        await ours.delete("key")
        await ours.set("key", b'{"b":2}', expires_in=10)
        wall.shift(5)
        await gate.open()
        await reader
        wall.shift(6)
        assert await ours.get("key") is None


async def test_who_only_reads_writes_only_for_a_time_worth_it(ours: AsyncsessStore) -> None:
    with time_machine.travel(2_000_000_000, tick=False) as wall:
        await ours.set("key", b'{"a":1}', expires_in=100)
        for shift, expected in ((4, 96), (0.9, 95), (0.1, 100)):
            wall.shift(shift)
            await asyncio.create_task(changes(ours, lambda values: None, _Open()))
            assert await ours.expires_in("key") == expected


class _Open:
    async def wait(self) -> None:
        """Let everybody pass."""


async def test_nothing_of_a_request_is_kept_when_it_has_ended(ours: AsyncsessStore) -> None:
    await ours.set("key", json.dumps({"name": "Ada" * 100}))
    await asyncio.create_task(changes(ours, lambda values: values.update(a=1), _Open()))
    await asyncio.sleep(0)  # in which turn the loop tells others of the end too
    gc.collect()
    assert [thing for thing in gc.get_objects() if isinstance(thing, entries.Entry) and b"AdaAda" in thing.data] == []


async def test_a_store_works_without_being_entered_and_after_it_was_left(directory: Path) -> None:
    store = AsyncsessStore(directory)
    await store.set("key", b"value")
    async with store:  # type: ignore[attr-defined]
        assert await store.get("key") == b"value"
    assert await store.get("key") == b"value"
    await store._files.store.aclose()


async def test_a_store_is_open_until_the_last_has_left(directory: Path) -> None:
    store = AsyncsessStore(directory)
    child = store.with_namespace("a")
    async with store:  # type: ignore[attr-defined]
        async with child:  # type: ignore[attr-defined]
            await child.set("key", b"value")
        assert not store._files._is_closed
        assert await child.get("key") == b"value"
    with pytest.raises(StoreError, match="was closed"):
        await store._files.store.create()


async def test_the_repr_names_the_directory_and_the_namespace(directory: Path) -> None:
    assert repr(AsyncsessStore(directory).with_namespace("a")) == (
        f"<AsyncsessStore <FileBackend Directory('{directory}')> namespace=('a',)>"
    )


# With an application.


class Site:
    """A running application whose handlers do to their session what a test says."""

    client: httpx.AsyncClient

    def __init__(self, store: AsyncsessStore, *, middleware: list[Any] | None = None, **options: Any) -> None:
        self.errors: list[Exception] = []
        self._handlers: list[Handler] = []

        @get("/")
        async def handle(request: Request[Any, Any, Any]) -> Any:
            return await self._handlers[int(request.query_params["handler"])](request)

        sessions = ServerSideSessionConfig(**options)
        self.app = Litestar(
            [handle],
            middleware=[self._noting_errors, sessions.middleware, *(middleware or [])],
            stores={"sessions": store},
            openapi_config=None,
            logging_config=None,
        )

    def _noting_errors(self, app: Any) -> Any:
        async def noting(scope: Any, receive: Any, send: Any) -> None:
            try:
                await app(scope, receive, send)
            except Exception as error:
                self.errors.append(error.__cause__ if isinstance(error.__cause__, Exception) else error)
                raise

        return noting

    async def request(self, handler: Handler, **options: Any) -> httpx.Response:
        self._handlers.append(handler)
        return await self.client.get("/", params={"handler": len(self._handlers) - 1}, **options)

    async def change(
        self, change: Callable[[dict[str, Any]], object] = lambda session: None, gate: Gate | None = None
    ) -> httpx.Response:
        """Send a request that waits at a gate, and changes its session."""

        async def handler(request: Request[Any, Any, Any]) -> None:
            if gate:
                await gate.wait()
            change(request.session)

        return await self.request(handler)

    async def values(self) -> dict[str, Any]:
        async def handler(request: Request[Any, Any, Any]) -> dict[str, Any]:
            return request.session

        return (await self.request(handler)).json()


NewSite = Callable[..., Awaitable[Site]]


@pytest.fixture
async def new_site(directory: Path, serve: Serve) -> AsyncIterator[NewSite]:
    async with AsyncExitStack() as stack:

        async def make(*, resolve: rules.Resolve = None, **options: Any) -> Site:
            site = Site(AsyncsessStore(directory, resolve=resolve), **options)
            site.client = await stack.enter_async_context(httpx.AsyncClient(base_url=serve(site.app), timeout=30))
            return site

        yield make


def in_a_task_of_its_own(app: Any) -> Any:
    async def run(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.create_task(app(scope, receive, send))

    return run


@pytest.fixture(params=["plainly", "in a task of its own"])
async def site(new_site: NewSite, request: pytest.FixtureRequest) -> Site:
    middleware = [in_a_task_of_its_own] if request.param == "in a task of its own" else []
    return await new_site(middleware=middleware, resolve={"log": rules.append, "hits": rules.add})


async def test_concurrent_requests_that_change_different_keys_keep_both(site: Site) -> None:
    await site.change(lambda session: session.update(name="Ada"))
    gate = Gate(2)
    one = asyncio.create_task(site.change(lambda session: session.update(one=1), gate))
    other = asyncio.create_task(site.change(lambda session: session.update(other=2), gate))
    await gate.open()
    assert [(await one).status_code, (await other).status_code] == [200, 200]
    assert await site.values() == {"name": "Ada", "one": 1, "other": 2}


async def test_the_first_requests_of_a_session_keep_what_both_put_in(site: Site) -> None:
    await site.change()  # which only sets the cookie
    gate = Gate(2)
    tasks = [asyncio.create_task(site.change(lambda session, k=k: session.update({k: 1}), gate)) for k in "ab"]
    await gate.open()
    assert [(await task).status_code for task in tasks] == [200, 200]
    assert await site.values() == {"a": 1, "b": 1}


async def test_concurrent_appends_are_both_kept_by_a_rule(site: Site) -> None:
    await site.change(lambda session: session.update(log=["a"], hits=1))
    gate = Gate(2)

    def visit(session: dict[str, Any], what: str) -> None:
        session["log"].append(what)
        session["hits"] += 1

    tasks = [asyncio.create_task(site.change(lambda session, i=i: visit(session, i), gate)) for i in "bc"]
    await gate.open()
    assert [(await task).status_code for task in tasks] == [200, 200]
    values = await site.values()
    assert (sorted(values["log"]), values["hits"]) == (["a", "b", "c"], 3)


async def test_without_a_rule_one_of_two_concurrent_appends_is_told(site: Site) -> None:
    await site.change(lambda session: session.update(cart=["a"]))
    gate = Gate(2)
    tasks = [asyncio.create_task(site.change(lambda s, i=i: s["cart"].append(i), gate)) for i in "bc"]
    await gate.open()
    assert sorted([(await task).status_code for task in tasks]) == [200, 500]
    assert [type(error) for error in site.errors] == [ConflictError]
    assert len((await site.values())["cart"]) == 2


async def test_a_reader_beside_a_writer_undoes_nothing(site: Site) -> None:
    await site.change(lambda session: session.update(name="Ada"))
    gate = Gate()
    reader = asyncio.create_task(site.change(gate=gate))
    await gate.until_all_wait()
    await site.change(lambda session: session.update(name="Bob"))
    await gate.open()
    assert (await reader).status_code == 200
    assert await site.values() == {"name": "Bob"}


async def test_a_logout_beside_a_slow_request_stays(site: Site, directory: Path) -> None:
    await site.change(lambda session: session.update(user="Ada"))
    gate = Gate(2)
    writer = asyncio.create_task(site.change(lambda session: session.update(late=True), gate))
    reader = asyncio.create_task(site.change(gate=gate))
    await gate.until_all_wait()

    async def log_out(request: Request[Any, Any, Any]) -> None:
        request.clear_session()

    assert (await site.request(log_out)).status_code == 200
    await gate.open()
    assert [(await writer).status_code, (await reader).status_code] == [500, 200]
    assert [type(error) for error in site.errors] == [SessionNotFoundError]
    assert files_in(directory) == []
    assert await site.values() == {}


async def test_a_nested_change_is_stored(site: Site) -> None:
    await site.change(lambda session: session.update(user={"roles": []}))
    await site.change(lambda session: session["user"]["roles"].append("admin"))
    assert await site.values() == {"user": {"roles": ["admin"]}}


async def test_an_anonymous_visitor_stores_nothing(site: Site, directory: Path) -> None:
    for _ in range(2):
        assert (await site.change()).status_code == 200
    assert files_in(directory) == []


async def test_a_response_may_begin_in_another_task(site: Site) -> None:
    async def stream(request: Request[Any, Any, Any]) -> Stream:
        async def body() -> AsyncIterator[str]:
            yield "..."

        request.session["streamed"] = True
        return Stream(body())

    await site.change(lambda session: session.update(name="Ada"))
    assert (await site.request(stream)).text == "..."
    assert await site.values() == {"name": "Ada", "streamed": True}


async def test_a_handler_may_use_the_store_for_other_things(site: Site) -> None:
    async def use(request: Request[Any, Any, Any]) -> None:
        store = request.app.stores.get("sessions")
        for number in range(20):
            await store.set(f"other {number}", b'{"a":1}')
            await store.get(f"other {number}")
        await gate.wait()
        request.session["used"] = True

    await site.change(lambda session: session.update(name="Ada"))
    gate = Gate()
    user = asyncio.create_task(site.request(use))
    await gate.until_all_wait()
    await site.change(lambda session: session.update(other=1))
    await gate.open()
    assert (await user).status_code == 200
    assert await site.values() == {"name": "Ada", "used": True, "other": 1}


@pytest.mark.parametrize("renew_on_access", [False, True])
async def test_each_response_lets_a_session_live_for_max_age(new_site: NewSite, renew_on_access: bool) -> None:
    site = await new_site(max_age=100, renew_on_access=renew_on_access)
    with time_machine.travel(2_000_000_000) as wall:
        response = await site.change(lambda session: session.update(user="Ada"))
        site.client.headers["Cookie"] = response.headers["set-cookie"].split(";")[0]
        for _ in range(3):
            wall.shift(90)
            assert await site.values() == {"user": "Ada"}
        wall.shift(101)
        assert await site.values() == {}


async def test_all_stores_of_an_application_may_be_namespaces_of_one(directory: Path) -> None:
    root = AsyncsessStore(directory, sweep_interval=None)

    @get("/", cache=60)
    async def handle(request: Request[Any, Any, Any]) -> str:
        calls.append(request.session.setdefault("visits", 0))
        return "answer"

    calls: list[int] = []
    app = Litestar(
        [handle],
        middleware=[RateLimitConfig(("minute", 2)).middleware, ServerSideSessionConfig().middleware],
        stores=StoreRegistry(default_factory=root.with_namespace),
        openapi_config=None,
        logging_config=None,
    )
    async with AsyncTestClient(app) as client:
        assert [(await client.get("/")).status_code for _ in range(3)] == [200, 200, 429]
    assert calls == [0]
    await root.with_namespace("rate_limit").delete_all()
    async with AsyncTestClient(app) as client:
        assert (await client.get("/")).status_code == 200
    await root._files.store.aclose()


async def test_the_test_client_of_another_thread_is_served(directory: Path) -> None:
    store = AsyncsessStore(directory)
    await store.set("here", b'{"a":1}')

    async def visit(request: Request[Any, Any, Any]) -> Any:
        request.session["visits"] = request.session.get("visits", 0) + 1
        return request.session["visits"], (await request.app.stores.get("sessions").get("here") or b"").decode()

    site = Site(store)
    site._handlers.append(visit)
    with TestClient(site.app) as client:
        answers = [client.get("/", params={"handler": 0}).json() for _ in range(2)]
        await store.set("there", b"value")
    assert answers == [[1, '{"a":1}'], [2, '{"a":1}']]
    assert await store.get("there") == b"value"
    await store._files.store.aclose()
