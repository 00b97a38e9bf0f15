"""Handlers that are run again when what they changed meets a conflict."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import aiohttp
import fastapi
import httpx
import pytest
from aiohttp import web
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from asyncsess import LockTimeoutError, Session, SessionStore, increment, put
from asyncsess.web import CookiePolicy, asgi
from asyncsess.web import aiohttp as for_aiohttp
from asyncsess.web.fastapi import current_session
from tests.conftest import NewStore, stored
from tests.web.conftest import new_browser, status_of, visit
from tests.web.pages import Fine, add_basics, shown
from tests.web.sites import PLAIN, AiohttpSite, Handle, Site, by_uvicorn


@pytest.fixture
async def store(new_store: NewStore) -> SessionStore:
    return new_store()


def page_of(handle: Callable[[Any], Awaitable[Any]]) -> Handle:
    """Return a page that runs a handler."""

    async def page(request: Any) -> str:
        await handle(request)
        return "done"

    return page


@pytest.mark.parametrize("times", [2, 5])
async def test_a_handler_that_is_retried_meets_no_conflict_in_the_end(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession, times: int
) -> None:
    runs = 0

    @site.web.retry_on_conflict(times=times)
    async def handle(request: Any) -> Any:
        nonlocal runs
        runs += 1
        session = await site.web.get_session(request)
        disturbance = store.apply(session.id, increment("n", 10), timeout=0)
        if runs < times:
            await disturbance
        else:
            with pytest.raises(LockTimeoutError):
                await asyncio.create_task(disturbance)
        session["n"] += 1
        return Fine()

    site.add("/handle", page_of(handle))
    async with site.serve(store) as url:
        session_id = await store.create({"n": 0})
        async with new_browser(cookies={"session": session_id}) as visitor:
            assert await visit(visitor, url + "/handle") == "done"
    async with store:
        assert (runs, await stored(store, session_id)) == (times, {"n": 10 * (times - 1) + 1})


@pytest.mark.parametrize("times", [0, -1])
def test_a_handler_runs_once_at_least(site: Site, times: int) -> None:
    with pytest.raises(ValueError, match="times must be 1 or more"):
        site.web.retry_on_conflict(times=times)


async def test_a_retried_handler_may_raise_its_redirect(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession
) -> None:
    runs = 0

    @site.web.retry_on_conflict
    async def handle(request: Any) -> Any:
        nonlocal runs
        runs += 1
        session = await site.web.get_session(request)
        if runs == 1:
            await store.apply(session.id, put("n", "theirs"))
        session["n"] = "ours"
        raise site.abort(302)

    add_basics(site)
    site.add("/handle", handle)
    async with site.serve(store) as url:
        await visit(browser, url + "/put?key=n&value=1")
        assert await status_of(browser, url + "/handle") == 302
        assert (runs, await shown(browser, url)) == (2, {"n": "ours"})


async def test_a_retried_endpoint_may_use_the_session_in_the_scope(
    store: SessionStore, browser: aiohttp.ClientSession
) -> None:
    runs = 0

    @asgi.retry_on_conflict
    async def endpoint(request: Request) -> PlainTextResponse:
        nonlocal runs
        runs += 1
        if runs < 3:
            await store.apply(request.session.id, increment("n", 10))
        request.session["n"] += 1
        return PlainTextResponse("done")

    async with by_uvicorn(asgi.SessionMiddleware(Starlette(routes=[Route("/", endpoint)]), store, PLAIN)) as url:
        session_id = await store.create({"n": 0})
        async with new_browser(cookies={"session": session_id}) as visitor:
            assert await visit(visitor, url) == "done"
        assert (runs, await stored(store, session_id)) == (3, {"n": 21})


@pytest.mark.parametrize("are_both_changed", [False, True])
async def test_a_conflict_of_another_cookies_session_is_one_too_unless_something_was_stored(
    site: Site, store: SessionStore, are_both_changed: bool
) -> None:
    runs = 0

    @site.web.retry_on_conflict
    async def handle(request: Any) -> str:
        nonlocal runs
        runs += 1
        first, second = [await site.web.get_session(request, cookie=name) for name in "ab"]
        if runs == 1:
            await store.apply(second.id, put("n", 10))
        second["n"] = first["n"] + second["n"] + 1
        if are_both_changed:
            first["n"] += 1
        return "done"

    site.add("/handle", handle)
    cookies = {name: await store.create({"n": 0}) for name in "ab"}
    policies = [CookiePolicy(name, secure=False) for name in "ab"]
    async with site.serve(store, *policies) as url, new_browser(cookies=cookies) as visitor:
        status = await status_of(visitor, url + "/handle")
        assert (status, runs) == ((409, 1) if are_both_changed else (200, 2))
        values = [(await stored(store, session_id))["n"] for session_id in cookies.values()]
        assert values == ([1, 10] if are_both_changed else [0, 11])


async def test_a_message_may_be_left_in_the_last_try_which_is_locked(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession
) -> None:
    runs = 0

    @site.web.retry_on_conflict(times=2)
    async def handle(request: Any) -> str:
        nonlocal runs
        runs += 1
        session = await site.web.get_session(request)
        if runs == 1:
            await store.apply(session.id, put("n", "theirs"))
        session["n"] = "2"
        if runs == 2:
            await site.web.flash(request, "saved")
        return "done"

    async def see(request: Any) -> str:
        return "|".join(flash.text for flash in await site.web.get_flashes(request))

    add_basics(site)
    site.add("/handle", handle)
    site.add("/see", see)
    async with site.serve(store) as url:
        await visit(browser, url + "/put?key=n&value=1")
        assert await visit(browser, url + "/handle") == "done"
        assert await visit(browser, url + "/see") == "saved"
        assert await shown(browser, url) == {"n": "2"}


async def test_the_methods_of_views_are_run_again(store: SessionStore) -> None:
    session_id = await store.create({"n": 0})
    disturbed: list[str] = []

    async def change(request: Any, kind: str) -> None:
        session = await asgi.get_session(request)
        if kind not in disturbed:
            disturbed.append(kind)
            await store.apply(session_id, increment("n", 10))
        session["n"] += 1

    class View(web.View):
        @for_aiohttp.retry_on_conflict
        async def get(self) -> web.Response:
            await change(self.request, "aiohttp")
            return web.Response(text="done")

    class Endpoint(HTTPEndpoint):
        @asgi.retry_on_conflict
        async def get(self, request: Request) -> PlainTextResponse:
            await change(request, "starlette")
            return PlainTextResponse("done")

    site = AiohttpSite()
    site.app.router.add_view("/", View)
    starlette = asgi.SessionMiddleware(Starlette(routes=[Route("/", Endpoint)]), store, PLAIN)
    async with new_browser(cookies={"session": session_id}) as visitor:
        async with store, site.serve(store) as url:
            assert await visit(visitor, url) == "done"
        async with by_uvicorn(starlette) as url:
            assert await visit(visitor, url) == "done"
            assert await stored(store, session_id) == {"n": 22}


@pytest.mark.parametrize("way", ["edit", "open and edit", "get and edit", "synchronize"])
async def test_a_handler_that_opens_the_session_in_several_ways_does_not_wait_for_itself(
    site: Site, store: SessionStore, way: str
) -> None:
    runs = 0

    @site.web.retry_on_conflict(times=2)
    async def handle(request: Any) -> Any:
        nonlocal runs
        runs += 1
        if way == "open and edit":
            async with site.web.open_session(request) as session:
                session["m"] = runs
        if way == "get and edit":
            (await site.web.get_session(request))["m"] = runs
        is_edit = way != "synchronize"
        opens = site.web.edit_session(request) if is_edit else site.web.synchronize_session(request, "n")
        async with opens as session:
            if runs == 1:
                await store.apply(session.id, increment("n", 10))
            session["n"] += 1
        return Fine()

    site.add("/handle", page_of(handle))
    session_id = await store.create({"n": 0, "m": 0})
    async with site.serve(store) as url, new_browser(cookies={"session": session_id}) as visitor:
        assert await visit(visitor, url + "/handle") == "done"
        assert runs == 2
        assert await stored(store, session_id) == {"n": 11, "m": 2 if " and " in way else 0}


async def test_what_happens_before_and_after_a_retried_handler_is_stored_too(site: Site, store: SessionStore) -> None:
    runs = 0

    @site.web.retry_on_conflict
    async def handle(request: Any) -> Any:
        nonlocal runs
        runs += 1
        session = await site.web.get_session(request)
        if runs == 1:
            await store.apply(session.id, increment("n", 10))
        session["n"] += 1
        return Fine()

    async def outer(request: Any) -> str:
        (await site.web.get_session(request))["before"] = True
        await handle(request)
        (await site.web.get_session(request))["after"] = True
        return "done"

    site.add("/handle", outer)
    session_id = await store.create({"n": 0})
    async with site.serve(store) as url, new_browser(cookies={"session": session_id}) as visitor:
        assert await visit(visitor, url + "/handle") == "done"
        assert (runs, await stored(store, session_id)) == (2, {"n": 11, "before": True, "after": True})


async def test_a_session_that_the_handler_does_not_use_is_not_waited_for(site: Site, store: SessionStore) -> None:
    runs = 0

    @site.web.retry_on_conflict(times=2)
    async def handle(request: Any) -> Any:
        nonlocal runs
        runs += 1
        session = await site.web.get_session(request, cookie="b")
        if runs == 1:
            await store.apply(session.id, increment("n", 10))
        session["n"] += 1
        return Fine()

    site.add("/handle", page_of(handle))
    cookies = {name: await store.create({"n": 0}) for name in "ab"}
    policies = [CookiePolicy(name, secure=False) for name in "ab"]
    async with site.serve(store, *policies) as url, new_browser(cookies=cookies) as visitor, store.open(cookies["a"]):
        async with asyncio.timeout(10):
            assert await visit(visitor, url + "/handle") == "done"
        assert (runs, await stored(store, cookies["b"])) == (2, {"n": 11})


async def test_an_answer_that_is_a_tuple_is_judged_by_its_status(store: SessionStore) -> None:
    @asgi.retry_on_conflict
    async def handle(request: Request) -> tuple[str, int]:
        request.session["n"] = 1
        return "no", 404

    async def endpoint(request: Request) -> PlainTextResponse:
        text, status = await handle(request)
        return PlainTextResponse(text, status)

    session_id = await store.create({"n": 0})
    async with by_uvicorn(asgi.SessionMiddleware(Starlette(routes=[Route("/", endpoint)]), store, PLAIN)) as url:
        async with new_browser(cookies={"session": session_id}) as visitor:
            assert await status_of(visitor, url) == 404
        assert await stored(store, session_id) == {"n": 0}


async def test_a_session_is_no_argument_of_what_is_run_again(store: SessionStore) -> None:
    app = fastapi.FastAPI()

    @app.get("/")
    @asgi.retry_on_conflict
    async def endpoint(request: Request, session: Annotated[Session, fastapi.Depends(current_session)]) -> None:
        raise AssertionError

    app.add_middleware(asgi.SessionMiddleware, store=store, cookie=PLAIN)
    async with store:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            with pytest.raises(TypeError, match="open the session inside of the handler"):
                await client.get("/")


async def test_one_handler_after_another_may_be_run_again(site: Site, store: SessionStore) -> None:
    runs = 0

    @site.web.retry_on_conflict(times=2)
    async def first(request: Any) -> Any:
        nonlocal runs
        runs += 1
        session = await site.web.get_session(request)
        if runs == 1:
            await store.apply(session.id, put("n", "theirs"))
        session["n"] = 1
        return Fine()

    @site.web.retry_on_conflict
    async def second(request: Any) -> Any:
        async with site.web.edit_session(request) as session:
            session["m"] = 1
        return Fine()

    async def both(request: Any) -> str:
        await first(request)
        await second(request)
        return "done"

    site.add("/handle", both)
    session_id = await store.create({})
    async with site.serve(store) as url, new_browser(cookies={"session": session_id}) as visitor:
        assert await visit(visitor, url + "/handle") == "done"
        assert await stored(store, session_id) == {"n": 1, "m": 1}


async def test_what_is_open_around_a_retried_handler_stays_open(site: Site, store: SessionStore) -> None:
    runs = 0

    @site.web.retry_on_conflict
    async def handle(request: Any) -> Any:
        nonlocal runs
        runs += 1
        session = await site.web.get_session(request)
        if runs == 1:
            await store.apply(session.id, increment("n", 10))
        session["n"] += 1
        return Fine()

    async def outer(request: Any) -> str:
        async with site.web.edit_session(request) as session:
            session["before"] = True
            await handle(request)
            session["after"] = True
        return "done"

    site.add("/handle", outer)
    session_id = await store.create({"n": 0})
    async with site.serve(store) as url, new_browser(cookies={"session": session_id}) as visitor:
        assert await visit(visitor, url + "/handle") == "done"
        assert (runs, await stored(store, session_id)) == (2, {"n": 11, "before": True, "after": True})


@pytest.mark.parametrize("times", [1, 2])
async def test_what_a_block_has_stored_stays_whatever_the_answer(site: Site, store: SessionStore, times: int) -> None:
    @site.web.retry_on_conflict(times=times)
    async def handle(request: Any) -> Any:
        (await site.web.get_session(request))["dropped"] = True
        await site.web.apply_session(request, increment("other"), cookie="b")
        raise site.abort(404)

    site.add("/handle", handle)
    cookies = {name: await store.create({}) for name in "ab"}
    policies = [CookiePolicy(name, secure=False) for name in "ab"]
    async with site.serve(store, *policies) as url, new_browser(cookies=cookies) as visitor:
        assert await status_of(visitor, url + "/handle") == 404
        assert [await stored(store, session_id) for session_id in cookies.values()] == [{}, {"other": 1}]
