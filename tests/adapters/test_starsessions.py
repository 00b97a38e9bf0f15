from __future__ import annotations

import asyncio
import gc
import json
import pickle
from base64 import b64decode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from http.cookies import SimpleCookie
from typing import Any, Literal

import httpx
import msgspec
import pytest
import time_machine
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from starsessions import (
    SessionAutoloadMiddleware,
    SessionMiddleware,
    get_session_handler,
    get_session_metadata,
    load_session,
    regenerate_session_id,
)
from starsessions.serializers import Serializer

from asyncsess import ConflictError, FileStore, SessionNotFoundError, SessionStore, rules
from asyncsess.adapters import entries
from asyncsess.adapters.starsessions import AsyncsessStore
from tests.adapters.conftest import Gate, Serve
from tests.conftest import keys_of

Handler = Callable[[Request], Awaitable[Any]]
Build = Literal["autoload", "in the handler", "behind a BaseHTTPMiddleware"]


class _Noting(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await call_next(request)
        response.headers["X-Noted"] = "yes"
        return response


class Site:
    """A running application whose handlers do to their session what a test says."""

    def __init__(self, store: AsyncsessStore, build: Build = "autoload", **options: Any) -> None:
        self.errors: list[Exception] = []
        self._loads = build != "autoload"
        self._handlers: list[Handler] = []
        middleware = [
            Middleware(self._noting_errors),
            Middleware(SessionMiddleware, store=store, cookie_https_only=False, **options),
        ]
        if build == "autoload":
            middleware.append(Middleware(SessionAutoloadMiddleware))
        if build == "behind a BaseHTTPMiddleware":
            middleware.append(Middleware(_Noting))
        self.app = Starlette(routes=[Route("/", self._handle)], middleware=middleware)
        self.client: httpx.AsyncClient

    def _noting_errors(self, app: Any) -> Any:
        async def noting(scope: Any, receive: Any, send: Any) -> None:
            try:
                await app(scope, receive, send)
            except Exception as error:
                self.errors.append(error)
                raise

        return noting

    async def _handle(self, request: Request) -> Response:
        handler = self._handlers[int(request.query_params["handler"])]
        if self._loads:
            await load_session(request)
        answer = await handler(request)
        return answer if isinstance(answer, Response) else JSONResponse(answer)

    async def request(self, handler: Handler, **options: Any) -> httpx.Response:
        self._handlers.append(handler)
        return await self.client.get("/", params={"handler": len(self._handlers) - 1}, **options)

    async def change(
        self, change: Callable[[dict[str, Any]], object] = lambda session: None, gate: Gate | None = None
    ) -> httpx.Response:
        """Send a request that loads its session, waits at a gate, and changes the session."""

        async def handler(request: Request) -> Any:
            if gate:
                await gate.wait()
            change(request.session)

        return await self.request(handler)

    async def values(self) -> dict[str, Any]:
        async def handler(request: Request) -> dict[str, Any]:
            return dict(request.session)

        return (await self.request(handler)).json()

    @property
    def cookie(self) -> str | None:
        return self.client.cookies.get("session")


NewSite = Callable[..., Awaitable[Site]]


@pytest.fixture
async def new_site(files: FileStore, serve: Serve) -> AsyncIterator[NewSite]:
    async with AsyncExitStack() as stack:

        async def make(
            store: SessionStore | None = None,
            *,
            resolve: rules.Resolve = None,
            serializer: Serializer | None = None,
            build: Build = "autoload",
            **options: Any,
        ) -> Site:
            adapter = AsyncsessStore(store or files, resolve=resolve, serializer=serializer)
            if serializer:
                options["serializer"] = serializer
            site = Site(adapter, build, **options)
            site.client = await stack.enter_async_context(httpx.AsyncClient(base_url=serve(site.app), timeout=30))
            return site

        yield make


@pytest.fixture(params=["autoload", "in the handler", "behind a BaseHTTPMiddleware"])
async def site(new_site: NewSite, request: pytest.FixtureRequest) -> Site:
    return await new_site(build=request.param, resolve={"log": rules.append, "hits": rules.add})


async def test_concurrent_changes_of_different_keys_are_both_kept(site: Site) -> None:
    await site.change(lambda session: session.update(name="Ada"))
    gate = Gate(2)
    one = asyncio.create_task(site.change(lambda session: session.update(one=1), gate))
    other = asyncio.create_task(site.change(lambda session: session.update(other=2), gate))
    await gate.open()
    assert [(await one).status_code, (await other).status_code] == [200, 200]
    assert await site.values() == {"name": "Ada", "one": 1, "other": 2}


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


async def test_a_reader_beside_a_writer_undoes_nothing_and_writes_nothing(site: Site, files: FileStore) -> None:
    await site.change(lambda session: session.update(name="Ada"))
    gate = Gate()
    reader = asyncio.create_task(site.change(gate=gate))
    await gate.until_all_wait()
    await site.change(lambda session: session.update(name="Bob"))
    committed = files.statistics().committed_bytes
    await gate.open()
    assert (await reader).status_code == 200
    assert files.statistics().committed_bytes == committed
    assert await site.values() == {"name": "Bob"}


async def test_a_logout_beside_a_slow_request_stays(site: Site, files: FileStore) -> None:
    await site.change(lambda session: session.update(user="Ada"))
    gate = Gate(2)
    writer = asyncio.create_task(site.change(lambda session: session.update(late=True), gate))
    reader = asyncio.create_task(site.change(gate=gate))
    await gate.until_all_wait()
    assert (await site.change(lambda session: session.clear())).status_code == 200
    await gate.open()
    assert [(await writer).status_code, (await reader).status_code] == [500, 200]
    assert [type(error) for error in site.errors] == [SessionNotFoundError]
    assert await keys_of(files) == []
    assert await site.values() == {}


async def test_a_nested_change_is_stored(site: Site) -> None:
    await site.change(lambda session: session.update(user={"roles": []}))
    await site.change(lambda session: session["user"]["roles"].append("admin"))
    assert await site.values() == {"user": {"roles": ["admin"]}}


async def test_an_anonymous_visitor_stores_nothing(site: Site, files: FileStore) -> None:
    response = await site.change()
    assert "set-cookie" not in response.headers
    assert await keys_of(files) == []


@pytest.mark.parametrize("cookie", ["x", "chosen-" * 30, "../../etc/passwd", "0123456789abcdef0123456789abcdef"])
async def test_an_id_that_nobody_issued_is_not_adopted(site: Site, cookie: str) -> None:
    site.client.cookies.set("session", cookie)
    response = await site.change(lambda session: session.update(name="Ada"))
    issued = SimpleCookie(response.headers["set-cookie"])["session"].value
    assert len(issued) == 43
    site.client.cookies.clear()
    site.client.cookies.set("session", issued)
    assert await site.values() == {"name": "Ada"}
    assert len(SimpleCookie((await site.change()).headers["set-cookie"])["session"].value) == 43


async def test_a_regenerated_id_takes_the_place_of_the_old(site: Site, files: FileStore) -> None:
    ids: list[str] = []

    async def log_in(request: Request) -> None:
        request.session["user"] = "Ada"
        ids.append(regenerate_session_id(request))

    await site.change(lambda session: session.update(cart=["tea"]))
    before, gate = site.cookie, Gate()
    late = asyncio.create_task(site.change(lambda session: session.update(late=True), gate))
    await gate.until_all_wait()
    await site.request(log_in)
    assert site.cookie == ids[0] != before
    await gate.open()
    assert (await late).status_code == 500
    assert await site.values() == {"cart": ["tea"], "user": "Ada"}
    assert len(await keys_of(files)) == 1


async def test_what_others_changed_moves_to_a_regenerated_id(site: Site) -> None:
    gate = Gate()

    async def log_in(request: Request) -> None:
        await gate.wait()
        regenerate_session_id(request)

    await site.change(lambda session: session.update(cart=["tea"]))
    slow = asyncio.create_task(site.request(log_in))
    await gate.until_all_wait()
    await site.change(lambda session: session.update(name="Ada"))
    await gate.open()
    assert (await slow).status_code == 200
    assert await site.values() == {"cart": ["tea"], "name": "Ada"}


async def test_the_metadata_show_nothing_of_the_values(site: Site) -> None:
    async def show(request: Request) -> Any:
        return get_session_metadata(request)

    await site.change(lambda session: session.update(pin="a-secret"))
    shown = (await site.request(show)).json()
    assert set(shown) == {"lifetime", "created", "last_access", "asyncsess"}
    assert b"secret" not in b64decode(shown["asyncsess"])


async def test_the_metadata_stay_those_of_the_session_and_no_ticket_is_stored(site: Site, files: FileStore) -> None:
    async def show(request: Request) -> Any:
        request.session["visits"] = request.session.get("visits", 0) + 1
        return get_session_metadata(request)

    first, second = [(await site.request(show)).json() for _ in range(2)]
    assert first["created"] == second["created"]
    assert second["last_access"] > first["last_access"]
    (key,) = await keys_of(files)
    record = await files.backend.read(key)
    assert isinstance(record, tuple)
    assert b"asyncsess" not in record.payload


@pytest.mark.parametrize("ticket", ["", "x", "AAAA", 7, None, "A" * 200])
async def test_a_ticket_that_was_not_issued_is_ignored(files: FileStore, ticket: object) -> None:
    store = AsyncsessStore(files)
    data = json.dumps({"name": "Ada", "__metadata__": {"created": 1.0, "asyncsess": ticket}}).encode()
    session_id = await store.write("0" * 32, data, 60, 60)
    values = json.loads(await store.read(session_id, 60))
    assert values["name"] == "Ada"
    assert values["__metadata__"]["asyncsess"] != ticket


@pytest.mark.parametrize("build", ["autoload", "in the handler"])
async def test_a_request_may_save_before_its_response_too(new_site: NewSite, files: FileStore, build: Build) -> None:
    async def visit(request: Request) -> None:
        request.session["hits"] = request.session.get("hits", 0) + 1
        await get_session_handler(request).save(0)
        del request.session["__metadata__"]
        request.session["late"] = True

    site = await new_site(build=build, resolve={"hits": rules.add})
    for _ in range(3):
        assert (await site.request(visit)).status_code == 200
    assert await site.values() == {"hits": 3, "late": True}
    assert len(await keys_of(files)) == 1


async def test_a_response_may_begin_in_a_task_of_its_own(site: Site) -> None:
    async def stream(request: Request) -> Response:
        async def body() -> AsyncIterator[str]:
            yield "..."

        request.session["streamed"] = True
        return StreamingResponse(body())

    await site.change(lambda session: session.update(name="Ada"))
    assert (await site.request(stream)).text == "..."
    assert await site.values() == {"name": "Ada", "streamed": True}


@pytest.mark.parametrize("rolling", [False, True])
async def test_a_session_ends_after_its_lifetime_or_after_so_long_without_use(new_site: NewSite, rolling: bool) -> None:
    site = await new_site(lifetime=100, rolling=rolling)
    with time_machine.travel(2_000_000_000) as wall:
        response = await site.change(lambda session: session.update(user="Ada"))
        kept = {"Cookie": response.headers["set-cookie"].split(";")[0]}

        async def values(request: Request) -> Any:
            return dict(request.session)

        wall.shift(90)
        assert (await site.request(values, headers=kept)).json() == {"user": "Ada"}
        wall.shift(90)
        assert (await site.request(values, headers=kept)).json() == ({"user": "Ada"} if rolling else {})
        wall.shift(101)
        assert (await site.request(values, headers=kept)).json() == {}


async def test_a_reader_that_moves_the_end_of_a_session_keeps_what_others_changed(new_site: NewSite) -> None:
    site = await new_site(lifetime=100, rolling=True)
    with time_machine.travel(2_000_000_000) as wall:
        response = await site.change(lambda session: session.update(user="Ada"))
        site.client.headers["Cookie"] = response.headers["set-cookie"].split(";")[0]
        gate = Gate()
        reader = asyncio.create_task(site.change(gate=gate))
        await gate.until_all_wait()
        await site.change(lambda session: session.update(cart=["tea"]))
        wall.shift(90)
        await gate.open()
        await reader
        wall.shift(90)
        assert await site.values() == {"user": "Ada", "cart": ["tea"]}


async def test_a_session_of_the_browser_ends_by_the_limits_of_the_store(new_site: NewSite, files: FileStore) -> None:
    site = await new_site(lifetime=0)
    with time_machine.travel(2_000_000_000) as wall:
        response = await site.change(lambda session: session.update(user="Ada"))
        assert "max-age" not in response.headers["set-cookie"]
        wall.shift(1799)
        assert await site.values() == {"user": "Ada"}
        wall.shift(1801)
        assert await site.values() == {}


class _Msgpack(Serializer):
    def serialize(self, data: Any) -> bytes:
        return msgspec.msgpack.encode(data)

    def deserialize(self, data: bytes) -> dict[str, Any]:
        return msgspec.msgpack.decode(data) if data else {}


class _Pickle(Serializer):
    def serialize(self, data: Any) -> bytes:
        return pickle.dumps(data)

    def deserialize(self, data: bytes) -> dict[str, Any]:
        return pickle.loads(data) if data else {}


@pytest.mark.parametrize("serializer", [_Msgpack(), _Pickle()])
async def test_data_of_other_serializers_is_merged_too(new_site: NewSite, serializer: Serializer) -> None:
    site = await new_site(serializer=serializer, build="behind a BaseHTTPMiddleware")
    await site.change(lambda session: session.update(name="Ada"))
    gate = Gate(2)
    tasks = [asyncio.create_task(site.change(lambda s, key=key: s.update({key: 1}), gate)) for key in "ab"]
    await gate.open()
    assert [(await task).status_code for task in tasks] == [200, 200]
    assert await site.values() == {"name": "Ada", "a": 1, "b": 1}


@pytest.mark.parametrize("session_id", ["x", "", "№ 7", "../..", "\ud800", "a" * 5000])
@pytest.mark.parametrize("data", [b'{"a": 1}', b"\x00\xff", b"[1, 2]", b'{"a":1,"a":2}', b""])
async def test_any_id_and_any_bytes_come_back_as_they_were_put_in(
    files: FileStore, session_id: str, data: bytes
) -> None:
    store = AsyncsessStore(files)
    assert await store.write(session_id, data, lifetime=60, ttl=60) == session_id
    assert await store.read(session_id, lifetime=60) == data
    await store.remove(session_id)
    assert await store.read(session_id, lifetime=60) == b""
    await store.remove(session_id)


async def test_what_can_not_be_merged_is_stored_whole_or_told(files: FileStore) -> None:
    store = AsyncsessStore(files)
    await store.write("id", b"\x00", 60, 60)

    async def change(data: bytes, gate: Gate) -> None:
        await store.read("id", 60)
        await gate.wait()
        await store.write("id", data, 60, 60)

    gates = Gate(), Gate()
    tasks = [asyncio.create_task(change(data, gate)) for data, gate in zip((b"\x01", b"\x02"), gates, strict=True)]
    for gate in gates:
        await gate.until_all_wait()
    await gates[0].open()
    await tasks[0]
    await gates[1].open()
    with pytest.raises(ConflictError):
        await tasks[1]
    assert await store.read("id", 60) == b"\x01"


async def test_a_write_of_who_has_read_nothing_replaces_what_is_there(files: FileStore) -> None:
    store = AsyncsessStore(files)
    await store.write("id", b'{"a":1}', 60, 60)
    await asyncio.create_task(store.write("id", b'{"b":2}', 60, 60))
    assert await store.read("id", 60) == b'{"b":2}'


async def test_two_adapters_of_one_store_do_not_find_each_others_sessions(files: FileStore) -> None:
    await AsyncsessStore(files).write("id", b"{}", 60, 60)
    with pytest.raises(SessionNotFoundError):
        async with files.open("id", readonly=True):
            pass


async def test_the_test_client_of_another_thread_is_served(files: FileStore) -> None:
    site = Site(AsyncsessStore(files))

    def visit() -> tuple[int, dict[str, Any]]:
        async def handler(request: Request) -> Any:
            request.session["visits"] = request.session.get("visits", 0) + 1
            return dict(request.session)

        site._handlers.append(handler)
        with TestClient(site.app) as client:
            for _ in range(2):
                response = client.get("/", params={"handler": 0})
        return response.status_code, response.json()

    assert visit() == (200, {"visits": 2})
    assert len(await keys_of(files)) == 1


async def test_nothing_of_a_request_is_kept_when_it_has_ended(files: FileStore) -> None:
    store = AsyncsessStore(files)
    data = json.dumps({"name": "Ada" * 100, "__metadata__": {}}).encode()

    async def request() -> None:
        session_id = await store.write("id", data, 60, 60)
        await store.write(session_id, await store.read(session_id, 60), 60, 60)

    await asyncio.create_task(request())
    await asyncio.sleep(0)  # in which turn the loop tells others of the end too
    gc.collect()
    assert [thing for thing in gc.get_objects() if isinstance(thing, entries.Entry) and b"AdaAda" in thing.data] == []
