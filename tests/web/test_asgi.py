"""What is particular to ASGI: the session in the scope, the lifespan, and applications of several frameworks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

import aiohttp
import fastapi
import litestar
import litestar.enums
import pytest
import quart
import yarl
from authlib.integrations.starlette_client import OAuth
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from asyncsess import Session, SessionStore, StoreError, increment, rules
from asyncsess.web import CookiePolicy, asgi
from asyncsess.web.fastapi import (
    current_session,
    edited_session,
    exclusive_session,
    readonly_session,
    synchronized_session,
)
from tests.conftest import NewStore, stored
from tests.web.conftest import new_browser, status_of, visit
from tests.web.sites import PLAIN, by_uvicorn

Endpoint = Callable[[Request], Any]


@pytest.fixture
async def store(new_store: NewStore) -> SessionStore:
    return new_store()


@asynccontextmanager
async def served(store: SessionStore, endpoint: Endpoint, **options: Any) -> AsyncIterator[str]:
    app = Starlette(routes=[Route("/", endpoint)])
    async with by_uvicorn(asgi.SessionMiddleware(app, store, PLAIN, **options)) as url:
        yield url


# The session in the scope.

ACCESSES: dict[str, Callable[[Any], object]] = {
    "read": lambda session: session["n"],
    "get": lambda session: session.get("x"),
    "write": lambda session: session.update(n=2),
    "delete": lambda session: session.pop("n"),
    "in": lambda session: "n" in session,
    "len": len,
    "iteration": list,
    "items": lambda session: dict(session),
    "id": lambda session: session.id,
    "owner": lambda session: session.owner,
}


@pytest.mark.parametrize("access", [None, *ACCESSES])
async def test_each_access_to_the_session_in_the_scope_makes_the_answer_depend_on_it(
    store: SessionStore, access: str | None
) -> None:
    async def endpoint(request: Request) -> PlainTextResponse:
        if access:
            ACCESSES[access](request.session)
        return PlainTextResponse("done")

    async with served(store, endpoint) as url:
        session_id = await store.create({"n": 1})
        async with new_browser(cookies={"session": session_id}) as browser, browser.get(url) as response:
            assert response.headers.get("Vary") == ("Cookie" if access else None)


async def test_the_session_of_starlette_is_that_of_get_session(
    store: SessionStore, browser: aiohttp.ClientSession
) -> None:
    async def endpoint(request: Request) -> PlainTextResponse:
        request.session.setdefault("list", []).append(1)
        session = await asgi.get_session(request)
        session["list"].append(2)
        return PlainTextResponse(f"{request.session['list']} {request.session.id == session.id} {request.session!r}")

    async with served(store, endpoint) as url:
        text = await visit(browser, url)
        assert text.startswith("[1, 2] True <Session optimistic")
        assert (await visit(browser, url)).startswith("[1, 2, 1, 2] True")


@pytest.mark.parametrize("other", [{"n": 2}, {}, None])
async def test_another_mapping_in_the_place_of_the_session_is_what_is_stored(
    store: SessionStore, other: dict[str, Any] | None
) -> None:
    """Litestar's `set_session` and `clear_session` do that."""

    async def endpoint(request: Request) -> PlainTextResponse:
        request.scope["session"] = other
        return PlainTextResponse("done")

    async with served(store, endpoint) as url:
        session_id = await store.create({"n": 1, "m": 1})
        async with new_browser(cookies={"session": session_id}) as browser:
            await visit(browser, url)
        assert await stored(store, session_id) == (other or {})


async def test_no_session_needs_to_be_in_the_scope(store: SessionStore, browser: aiohttp.ClientSession) -> None:
    async def endpoint(request: Request) -> PlainTextResponse:
        assert "session" not in request.scope
        async with asgi.open_session(request.scope) as session:
            session["n"] = 1
        return PlainTextResponse("done")

    async with served(store, endpoint, scope_key=None) as url:
        assert await visit(browser, url) == "done"


async def test_a_session_in_the_scope_works_in_endpoints_that_run_in_threads(
    store: SessionStore, browser: aiohttp.ClientSession
) -> None:
    def endpoint(request: Request) -> PlainTextResponse:
        request.session["n"] = request.session.get("n", 0) + 1
        return PlainTextResponse(str(request.session["n"]))

    async with served(store, endpoint) as url:
        assert [await visit(browser, url) for _ in range(3)] == ["1", "2", "3"]


async def test_an_application_without_sessions_is_told_how_to_have_them() -> None:
    for request in ({"type": "http"}, Request({"type": "http"}), object()):
        with pytest.raises(RuntimeError, match=r"call asyncsess\.web\.aiohttp\.setup\(app, store\), or wrap it in"):
            asgi.open_session(request)


async def test_a_retried_function_without_a_request_is_refused() -> None:
    @asgi.retry_on_conflict
    async def endpoint(item: str) -> str:
        return item

    with pytest.raises(TypeError, match="a handler that takes the request"):
        await endpoint("tea")


# The lifespan.


async def test_a_store_lives_as_long_as_the_application(new_store: NewStore) -> None:
    store = new_store(sweep_interval=1000)
    states: list[tuple[str, bool, set[str]]] = []

    def note(when: str) -> None:
        tasks = {task.get_name() for task in asyncio.all_tasks() if "asyncsess" in task.get_name()}
        states.append((when, store._is_closed, tasks))

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        note("starting")
        await store.create({"n": 1})
        yield
        note("ending")

    app: Any = Starlette(lifespan=lifespan)
    app = asgi.SessionMiddleware(app, store, CookiePolicy("a", secure=False))
    app = asgi.SessionMiddleware(app, store, CookiePolicy("b", secure=False), scope_key=None)
    async with by_uvicorn(app):
        note("running")
    note("ended")
    sweeper = {"asyncsess sweeper"}
    assert states == [
        ("starting", False, sweeper),
        ("running", False, sweeper),
        ("ending", False, sweeper),
        ("ended", True, set()),
    ]


@pytest.mark.parametrize("lifespan", ["on", "off"])
async def test_sessions_work_without_a_lifespan_too(
    store: SessionStore, browser: aiohttp.ClientSession, lifespan: str
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise NotImplementedError  # which tells a server that there is no lifespan
        async with asgi.open_session(scope) as session:
            session["n"] = session.get("n", 0) + 1
            body = str(session["n"]).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    wrapped = asgi.SessionMiddleware(app, store, PLAIN)
    how = "auto" if lifespan == "on" else "off"
    async with by_uvicorn(wrapped, lifespan=how) as url:
        assert [await visit(browser, url) for _ in range(2)] == ["1", "2"]
    await store.aclose()


async def test_a_store_that_can_not_be_opened_keeps_the_application_from_starting(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> None:
        raise StoreError("this directory is somebody else's")

    monkeypatch.setattr(store.backend, "open", fail)
    sent: list[Any] = []
    messages = iter([{"type": "lifespan.startup"}])

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message)

    with pytest.raises(StoreError, match="somebody else's"):
        await asgi.SessionMiddleware(Starlette(), store)({"type": "lifespan", "state": {}}, receive, send)
    assert [message["type"] for message in sent] == ["lifespan.startup.failed"]


async def test_what_is_neither_a_request_nor_a_lifespan_passes(store: SessionStore) -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    await asgi.SessionMiddleware(app, store)({"type": "telnet"}, None, None)  # type: ignore[arg-type]
    assert seen == ["telnet"]


async def test_visitors_without_a_cookie_leave_nothing_however_many_come(store: SessionStore, directory: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["session"].get("n") is None
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.extend(message.get("headers", []))

    wrapped = asgi.SessionMiddleware(app, store, PLAIN)
    for _ in range(10_000):
        await wrapped({"type": "http", "headers": []}, None, send)  # type: ignore[arg-type]
    assert set(sent) == {(b"vary", b"Cookie")}
    assert not directory.exists()
    assert store.statistics().open == 0


# Other frameworks.


async def test_fastapi_has_sessions_as_dependencies(store: SessionStore, browser: aiohttp.ClientSession) -> None:
    app = fastapi.FastAPI()
    app.add_middleware(asgi.SessionMiddleware, store=store, cookie=PLAIN)  # type: ignore[arg-type]

    @app.get("/put/{value}")
    async def put(value: int, session: Annotated[Session, fastapi.Depends(exclusive_session)]) -> int:
        session["n"] = value
        return value

    @app.get("/edit")
    async def edit(session: Annotated[Session, fastapi.Depends(edited_session({"n": rules.add}))]) -> int:
        await store.apply(session.id, increment("n"))
        session["n"] += 10
        return int(session["n"])

    @app.get("/synchronize")
    async def synchronize(session: Annotated[Session, fastapi.Depends(synchronized_session("m"))]) -> int:
        session["m"] = 5
        return 5

    @app.get("/current")
    async def current(session: Annotated[Session, fastapi.Depends(current_session)]) -> str:
        session["current"] = True
        return "current"

    @app.get("/show")
    async def show(session: Annotated[Session, fastapi.Depends(readonly_session)]) -> dict[str, Any]:
        return dict(session)

    @app.get("/fail")
    async def fail(session: Annotated[Session, fastapi.Depends(exclusive_session)]) -> None:
        session["n"] = -1
        raise fastapi.HTTPException(400)

    @app.get("/conflict")
    async def conflict(session: Annotated[Session, fastapi.Depends(current_session)]) -> str:
        await store.apply(session.id, increment("n"))
        session["n"] = -1
        return "stored"

    async with by_uvicorn(app) as url:
        async with browser.get(url + "/show") as response:
            assert await response.json() == {}
            assert "Set-Cookie" not in response.headers
        for path in ("/put/1", "/edit", "/synchronize", "/current"):
            await visit(browser, url + path)
        assert await status_of(browser, url + "/fail") == 400
        assert await status_of(browser, url + "/conflict") == 409
        async with browser.get(url + "/show") as response:
            assert await response.json() == {"n": 13, "m": 5, "current": True}


async def test_litestar_has_its_session_from_the_scope(store: SessionStore, browser: aiohttp.ClientSession) -> None:
    @litestar.get("/put", media_type=litestar.enums.MediaType.TEXT)
    async def put(request: litestar.Request[Any, Any, Any]) -> str:
        request.session["n"] = [1]
        return "put"

    @litestar.get("/change", media_type=litestar.enums.MediaType.TEXT)
    async def change(request: litestar.Request[Any, Any, Any]) -> str:
        request.session["n"].append(2)
        return "changed"

    @litestar.get("/clear", media_type=litestar.enums.MediaType.TEXT)
    async def clear(request: litestar.Request[Any, Any, Any]) -> str:
        request.clear_session()
        return "cleared"

    @litestar.get("/busy", media_type=litestar.enums.MediaType.TEXT)
    async def busy(request: litestar.Request[Any, Any, Any]) -> str:
        async with asgi.open_session(request) as session, asgi.open_session(request, timeout=0):
            return str(session)

    @litestar.get("/show")
    async def show(request: litestar.Request[Any, Any, Any]) -> dict[str, Any]:
        async with asgi.open_session(request, readonly=True) as session:
            return dict(session)

    app = litestar.Litestar([put, change, clear, show, busy], logging_config=None)
    async with by_uvicorn(asgi.SessionMiddleware(app, store, PLAIN)) as url:
        await visit(browser, url + "/put")
        await visit(browser, url + "/change")
        async with browser.get(url + "/show") as response:
            assert await response.json() == {"n": [1, 2]}
        await visit(browser, url + "/clear")
        async with browser.get(url + "/show") as response:
            assert await response.json() == {}


async def test_quart_opens_sessions_by_its_request(store: SessionStore, browser: aiohttp.ClientSession) -> None:
    app = quart.Quart(__name__)
    app.asgi_app = asgi.SessionMiddleware(app.asgi_app, store, PLAIN)  # type: ignore[method-assign,arg-type,assignment]

    @app.get("/count")
    async def count() -> str:
        async with asgi.open_session(quart.request) as session:
            session["n"] = session.get("n", 0) + 1
            return str(session["n"])

    @app.get("/redirect")
    async def redirect() -> None:
        async with asgi.open_session(quart.request) as session:
            session["n"] = 100
            quart.abort(quart.redirect("/elsewhere"))

    async with by_uvicorn(app) as url:
        assert [await visit(browser, url + "/count") for _ in range(2)] == ["1", "2"]
        assert await status_of(browser, url + "/redirect") == 302
        assert await visit(browser, url + "/count") == "101"


async def test_authlib_keeps_the_state_of_a_login_elsewhere_in_the_session(
    store: SessionStore, browser: aiohttp.ClientSession
) -> None:
    async def token(request: Request) -> JSONResponse:
        assert (await request.form())["code"] == "the code"
        return JSONResponse({"access_token": "granted", "token_type": "Bearer"})

    async def log_in(request: Request) -> Any:
        return await oauth.elsewhere.authorize_redirect(request, f"{url}/callback")

    async def callback(request: Request) -> PlainTextResponse:
        found = await oauth.elsewhere.authorize_access_token(request)
        return PlainTextResponse(found["access_token"])

    routes = [
        Route("/token", token, methods=["POST"]),
        Route("/login", log_in),
        Route("/callback", callback),
    ]
    async with by_uvicorn(asgi.SessionMiddleware(Starlette(routes=routes), store, PLAIN)) as url:
        oauth = OAuth()
        oauth.register(
            "elsewhere",
            client_id="asyncsess",
            client_secret="secret",
            authorize_url=f"{url}/authorize",
            access_token_url=f"{url}/token",
        )
        async with browser.get(url + "/login", allow_redirects=False) as response:
            assert response.status == 302
            state = yarl.URL(response.headers["Location"]).query["state"]
        async with new_browser() as attacker, attacker.get(f"{url}/callback?code=the code&state={state}") as response:
            assert response.status == 500  # it is not his
        assert await visit(browser, f"{url}/callback?code=the code&state={state}") == "granted"
