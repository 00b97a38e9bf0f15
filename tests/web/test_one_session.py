"""However a request deals with its session, it has one, its browser is told of it, and nothing of it is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

import aiohttp
import fastapi
import pytest
from aiohttp import web
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse
from starlette.routing import Route

from asyncsess import LockTimeoutError, Session, SessionClosedError, SessionStore, put
from asyncsess.ids import key_of
from asyncsess.testing import FakeClock
from asyncsess.web import asgi, login, logout
from asyncsess.web.fastapi import exclusive_session
from tests.conftest import NewStore, keys_of, stored
from tests.web.conftest import new_browser, status_of, visit
from tests.web.pages import Stop, add_basics, shown
from tests.web.sites import PLAIN, AiohttpSite, Site, by_uvicorn


@pytest.fixture
async def store(new_store: NewStore) -> SessionStore:
    return new_store()


# The browser is told.


@pytest.mark.parametrize("end", ["release", "save"])
@pytest.mark.parametrize("status", [200, 404])
@pytest.mark.parametrize("way", ["get", "open"])
async def test_a_session_that_the_handler_itself_commits_is_found_again(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession, end: str, status: int, way: str
) -> None:
    async def handle(request: Any) -> tuple[int, str]:
        if way == "get":
            session = await site.web.get_session(request)
            session["n"] = 1
            await getattr(session, end)()
        else:
            async with site.web.open_session(request) as session:
                session["n"] = 1
                await getattr(session, end)()
        return status, "an answer"

    add_basics(site)
    site.add("/handle", handle)
    async with site.serve(store) as url:
        assert await status_of(browser, url + "/handle") == status
        assert await shown(browser, url) == {"n": 1}
        assert len(await keys_of(store)) == 1


async def test_a_logout_of_the_whole_requests_session_deletes_its_cookie(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession
) -> None:
    async def handle(request: Any) -> str:
        await logout(await site.web.get_session(request))
        return "bye"

    add_basics(site)
    site.add("/handle", handle)
    async with site.serve(store) as url:
        await visit(browser, url + "/login?owner=ada")
        async with browser.get(url + "/handle") as response:
            assert response.headers["Set-Cookie"].startswith("session=; Max-Age=0")
        assert await store.sessions_of("ada") == []


@pytest.mark.parametrize("way", ["get", "open"])
async def test_a_login_is_told_although_the_answer_is_an_error(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession, way: str
) -> None:
    async def handle(request: Any) -> tuple[int, str]:
        if way == "get":
            await login(await site.web.get_session(request), "ada")
        else:
            async with site.web.open_session(request) as session:
                await login(session, "ada")
        return 422, "logged in, but"

    add_basics(site)
    site.add("/handle", handle)
    async with site.serve(store) as url:
        await visit(browser, url + "/put?key=cart&value=tea")
        assert await status_of(browser, url + "/handle") == 422
        assert (await shown(browser, url))["cart"] == "tea"
        assert (await shown(browser, url))["_owner"]["id"] == "ada"


async def test_a_login_is_told_although_the_handler_fails_afterwards(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    async def handle(request: Any) -> str:
        async with site.web.open_session(request) as session:
            await login(session, "ada")
        raise ZeroDivisionError

    add_basics(site)
    site.add("/handle", handle)
    async with site.serve(store) as url:
        await visit(browser, url + "/put?key=cart&value=tea")
        assert await status_of(browser, url + "/handle") == 500
        assert (await shown(browser, url))["cart"] == "tea"
    caplog.clear()


async def test_a_session_that_is_released_before_a_stream_within_its_block_is_found_again(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession
) -> None:
    async def chunks(request: Any) -> AsyncIterator[str]:
        async with site.web.open_session(request) as session:
            session["n"] = 1
            await session.release()
            yield "one"
            yield "two"

    add_basics(site)
    site.add_stream("/stream", chunks)
    async with site.serve(store) as url:
        assert await visit(browser, url + "/stream") == "onetwo"
        assert await shown(browser, url) == {"n": 1}


# One session, whichever ways are mixed.


async def test_the_whole_requests_session_follows_a_login_in_a_block(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession
) -> None:
    """As after Authlib has taken the state of an OAuth login out of the session."""

    async def handle(request: Any) -> str:
        whole = await site.web.get_session(request)
        whole.pop("state", None)
        async with site.web.open_session(request) as session:
            await login(session, "ada")
        whole["seen"] = True
        return "in"

    add_basics(site)
    site.add("/handle", handle)
    async with site.serve(store) as url:
        await visit(browser, url + "/put?key=state&value=secret")
        await visit(browser, url + "/handle")
        assert await shown(browser, url) == {"seen": True, "_owner": {"id": "ada", "label": ""}}
        assert len(await store.sessions_of("ada")) == 1


async def test_a_message_before_a_login_of_a_new_visitor_is_in_the_same_session(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession
) -> None:
    async def handle(request: Any) -> str:
        session = await site.web.get_session(request)
        await site.web.flash(request, "welcome")
        await login(session, "ada")
        return "in"

    async def see(request: Any) -> str:
        return "|".join(flash.text for flash in await site.web.get_flashes(request))

    add_basics(site)
    site.add("/handle", handle)
    site.add("/see", see)
    async with site.serve(store) as url:
        await visit(browser, url + "/handle")
        assert len(await keys_of(store)) == 1
        assert await visit(browser, url + "/see") == "welcome"


async def test_two_that_ask_for_the_session_at_once_get_the_same(
    site: Site, new_store: NewStore, browser: aiohttp.ClientSession
) -> None:
    store = new_store(io="thread")

    async def handle(request: Any) -> str:
        one, other = await asyncio.gather(*(site.web.get_session(request) for _ in range(2)))
        one["n"], other["m"] = 1, 2
        return str(one is other)

    add_basics(site)
    site.add("/handle", handle)
    async with site.serve(store) as url:
        await visit(browser, url + "/put?key=a&value=0")
        assert await visit(browser, url + "/handle") == "True"
        assert await shown(browser, url) == {"a": "0", "n": 1, "m": 2}
        assert store.statistics().open == 0


async def test_a_token_that_somebody_stored_while_a_visitor_logs_in_is_dropped(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession
) -> None:
    async def handle(request: Any) -> str:
        session = await site.web.get_session(request)
        await store.apply(session.id, put("_csrf", "known to an attacker"))
        await login(session, "ada")
        return "in"

    add_basics(site)
    site.add("/handle", handle)
    async with site.serve(store) as url:
        await visit(browser, url + "/put?key=n&value=1")
        await visit(browser, url + "/handle")
        assert (await shown(browser, url)).keys() == {"n", "_owner"}


# Requests that come late.


@pytest.mark.parametrize("page", ["/put?key=n&value=2", "/login?owner=grace", "/get"])
async def test_a_request_from_before_a_login_that_arrives_after_it_does_not_take_its_cookie_away(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession, clock: FakeClock, page: str
) -> None:
    async def get(request: Any) -> str:
        (await site.web.get_session(request))["n"] = 2
        return "put"

    async def look(request: Any) -> str:
        return str(dict(await site.web.get_session(request)))

    add_basics(site)
    site.add("/get", get)
    site.add("/look", look)
    async with site.serve(store) as url:
        before = await visit(browser, url + "/put?key=n&value=1")
        await visit(browser, url + "/login?owner=ada")
        clock.advance(29)
        async with new_browser(cookies={"session": before}) as late:
            async with late.get(url + page) as response:
                assert (response.status, "Set-Cookie" in response.headers) == (409, False)
            assert await shown(late, url) == {}
            assert await visit(late, url + "/look") == "{}"
            clock.advance(2)
            assert await status_of(late, url + page) == 200
        assert (await shown(browser, url))["n"] == "1"


# After the headers, and after the end.


async def test_the_whole_requests_session_is_refused_once_the_headers_have_left(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession
) -> None:
    async def talk(request: Any, text: str) -> str:
        scope_has_it = isinstance(site, AiohttpSite) or "session" not in request.scope
        try:
            session = await site.web.get_session(request)
            session["n"] = 2
        except SessionClosedError as error:
            return str(error)
        return f"changed {scope_has_it}"

    add_basics(site)
    site.add_talk("/talk", talk)
    async with site.serve(store) as url:
        await visit(browser, url + "/put?key=n&value=1")
        async with browser.ws_connect(url + "/talk") as socket:
            await socket.send_str("hello")
            answer = await socket.receive_str(timeout=10)
            assert "call it before" in answer or "its lock was given back" in answer or "open it again" in answer
        assert await shown(browser, url) == {"n": "1"}


async def test_a_task_that_outlives_its_request_can_not_change_the_session_in_silence(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession
) -> None:
    stop, told = Stop(), asyncio.Event()
    tasks = []

    async def outlive(request: Any) -> None:
        await stop.here()
        with pytest.raises(SessionClosedError):
            (await site.web.get_session(request))["n"] = 2
        told.set()

    async def handle(request: Any) -> str:
        tasks.append(asyncio.create_task(outlive(request)))
        await stop.reached.wait()
        return "done"

    add_basics(site)
    site.add("/handle", handle)
    async with site.serve(store) as url:
        await visit(browser, url + "/put?key=n&value=1")
        await visit(browser, url + "/handle")
        stop.may_go.set()
        await asyncio.gather(*tasks)
        assert told.is_set()
        assert store.statistics().open == 0


async def test_a_login_over_a_websocket_is_refused_before_the_session_moves(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession
) -> None:
    async def talk(request: Any, text: str) -> str:
        try:
            async with site.web.open_session(request) as session:
                await login(session, "ada")
        except SessionClosedError as error:
            return str(error)
        return "in"

    add_basics(site)
    site.add_talk("/talk", talk)
    async with site.serve(store) as url:
        await visit(browser, url + "/put?key=n&value=1")
        async with browser.ws_connect(url + "/talk") as socket:
            await socket.send_str("hello")
            assert "can't be told of another id" in await socket.receive_str(timeout=10)
        assert await shown(browser, url) == {"n": "1"}


# Errors.


async def test_a_stream_that_can_not_be_stored_is_a_clean_error(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    async def chunks(request: Any) -> AsyncIterator[str]:
        (await site.web.get_session(request))["n"] = (1, 2)  # would come back as a list
        yield "one"

    add_basics(site)
    site.add_stream("/stream", chunks)
    async with site.serve(store) as url:
        for _ in range(2):
            assert await status_of(browser, url + "/stream") == 500
        assert await shown(browser, url) == {}
    caplog.clear()


async def test_an_error_answer_that_the_handler_makes_itself_is_left_alone(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession
) -> None:
    async def handle(request: Any) -> tuple[int, str]:
        try:
            async with site.web.open_session(request, timeout=0.01):
                return 200, "opened"
        except LockTimeoutError:
            return 500, "my own words"

    add_basics(site)
    site.add("/handle", handle)
    async with site.serve(store) as url:
        session_id = await visit(browser, url + "/put?key=n&value=1")
        async with store.open(session_id), browser.get(url + "/handle") as response:
            assert (response.status, await response.text()) == (500, "my own words")


# ASGI.


@pytest.mark.parametrize("is_wrapped", [False, True])
async def test_a_dependency_and_the_session_in_the_scope_are_both_stored(
    store: SessionStore, browser: aiohttp.ClientSession, is_wrapped: bool
) -> None:
    app = fastapi.FastAPI()

    @app.get("/")
    async def handle(request: fastapi.Request, session: Annotated[Session, fastapi.Depends(exclusive_session)]) -> str:
        request.session["a"] = 1
        session["b"] = 2
        return session.id

    if is_wrapped:

        @app.middleware("http")
        async def pass_on(request: Any, call_next: Any) -> Any:
            return await call_next(request)

    app.add_middleware(asgi.SessionMiddleware, store=store, cookie=PLAIN)  # type: ignore[arg-type]
    async with by_uvicorn(app) as url:
        session_id = await store.create({"n": 0})
        async with new_browser(cookies={"session": session_id}) as visitor:
            await visit(visitor, url + "/")
        assert await stored(store, session_id) == {"n": 0, "a": 1, "b": 2}


async def test_what_an_application_would_answer_to_an_exception_is_sent_if_it_is_none_of_the_sessions(
    store: SessionStore, browser: aiohttp.ClientSession
) -> None:
    async def handle(request: Request) -> PlainTextResponse:
        raise ZeroDivisionError

    async def explain(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": "division"}, 500)

    app = Starlette(routes=[Route("/", handle)], exception_handlers={Exception: explain})
    async with by_uvicorn(asgi.SessionMiddleware(app, store, PLAIN)) as url, browser.get(url) as response:
        assert (response.status, await response.json()) == (500, {"error": "division"})


async def test_a_redirect_of_starlette_commits(store: SessionStore, browser: aiohttp.ClientSession) -> None:
    async def handle(request: Request) -> RedirectResponse:
        request.session["n"] = 1
        return RedirectResponse("/elsewhere")

    async with by_uvicorn(asgi.SessionMiddleware(Starlette(routes=[Route("/", handle)]), store, PLAIN)) as url:
        await visit(browser, url)
        assert len(await keys_of(store)) == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("var/sessions", None), r"the store is one of asyncsess, such as FileStore\(...\), not str"),
        ((None, "sid"), r"the cookie is a CookiePolicy\(...\), not str"),
    ],
)
def test_what_is_neither_a_store_nor_a_cookie_is_refused_at_once(
    site: Site, new_store: NewStore, arguments: tuple[Any, Any], reason: str
) -> None:
    store, cookie = arguments
    with pytest.raises(TypeError, match=reason):
        if isinstance(site, AiohttpSite):
            site.web.setup(web.Application(), store or new_store(), cookie)
        else:
            asgi.SessionMiddleware(Starlette(), store or new_store(), cookie)


# aiohttp.


async def test_other_words_of_vary_are_kept(store: SessionStore, browser: aiohttp.ClientSession) -> None:
    site = AiohttpSite()

    async def handle(request: web.Request) -> web.Response:
        await site.web.get_session(request)
        response = web.Response()
        response.headers.add("Vary", "Accept-Encoding")
        response.headers.add("Vary", "Origin")
        return response

    site.app.router.add_get("/", handle)
    async with site.serve(store) as url, browser.get(url + "/") as response:
        assert response.headers.getall("Vary") == ["Accept-Encoding, Origin, Cookie"]


async def test_a_handler_that_forgets_its_answer_is_told_so(
    store: SessionStore, browser: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    site = AiohttpSite()

    async def handle(request: web.Request) -> None:
        await site.web.get_session(request)

    site.app.router.add_get("/", handle)  # type: ignore[arg-type]
    async with site.serve(store) as url:
        assert await status_of(browser, url + "/") == 500
    assert "Missing return statement on request handler" in caplog.text
    caplog.clear()


async def test_a_token_that_is_no_text_and_a_form_that_can_not_be_read_are_refused(
    store: SessionStore, browser: aiohttp.ClientSession
) -> None:
    site = AiohttpSite()

    async def form(request: web.Request) -> web.Response:
        return web.Response(text=await site.web.csrf_token(request))

    site.app.router.add_route("*", "/", form)
    site.app.middlewares.append(site.web.csrf_protection)
    async with site.serve(store) as url:
        await visit(browser, url + "/")
        for headers in (
            {"X-CSRF-Token": "\udcff"},
            {"Content-Type": "application/x-www-form-urlencoded; charset=nonsense"},
            {"Content-Type": "multipart/form-data"},
        ):
            async with browser.post(url + "/", headers=headers, data=b"csrf_token=x") as response:
                assert response.status == 403


# Owners.


async def test_a_store_that_is_entered_twice_sweeps_once_and_ends_with_the_last(new_store: NewStore) -> None:
    store = new_store(sweep_interval=1000)

    def sweepers() -> int:
        return sum(task.get_name() == "asyncsess sweeper" for task in asyncio.all_tasks())

    async with store:
        async with store:
            assert sweepers() == 1
        assert sweepers() == 1
        assert await store.create({})
    assert sweepers() == 0


@pytest.mark.parametrize("by", ["request.session", "id in its time of grace"])
async def test_whoever_logs_out_everywhere_else_stays(store: SessionStore, by: str) -> None:
    async with store:
        first = await store.create({})
        async with store.open(first) as session:
            await login(session, "ada")
        before = session.id
        async with store.open(before) as session:
            await session.regenerate_id()
        kept: Any = before
        if by == "request.session":
            kept = type("Like", (), {"id": session.id})()
        assert await store.destroy_all("ada", keep=kept) == 0
        assert await store.backend.read(key_of(session.id)) is not None
        assert len(await store.sessions_of("ada")) == 1
