"""Handlers that are run again when what they changed meets a conflict."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from asyncsess import LockTimeoutError, SessionStore, increment, put
from asyncsess.web import CookiePolicy, asgi
from asyncsess.web import aiohttp as for_aiohttp
from tests.conftest import NewStore, stored
from tests.web.conftest import new_browser, status_of, visit
from tests.web.pages import Fine, add_basics, shown
from tests.web.sites import PLAIN, AiohttpSite, Site, by_uvicorn


@pytest.fixture
async def store(new_store: NewStore) -> SessionStore:
    return new_store()


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

    async def outer(request: Any) -> str:
        await handle(request)
        return "done"

    site.add("/handle", outer)
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


async def test_a_conflict_of_another_cookies_session_is_one_too(site: Site, store: SessionStore) -> None:
    runs = 0

    @site.web.retry_on_conflict
    async def handle(request: Any) -> str:
        nonlocal runs
        runs += 1
        first, second = [await site.web.get_session(request, cookie=name) for name in "ab"]
        if runs == 1:
            await store.apply(second.id, put("n", "theirs"))
        first["n"] = second["n"] = f"ours {second['n']}"
        return "done"

    site.add("/handle", handle)
    cookies = {name: await store.create({"n": "old"}) for name in "ab"}
    policies = [CookiePolicy(name, secure=False) for name in "ab"]
    async with site.serve(store, *policies) as url, new_browser(cookies=cookies) as visitor:
        assert await visit(visitor, url + "/handle") == "done"
        assert runs == 2
        assert [await stored(store, session_id) for session_id in cookies.values()] == [{"n": "ours theirs"}] * 2


async def test_a_message_may_be_left_in_the_last_try_which_is_locked(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession
) -> None:
    @site.web.retry_on_conflict(times=1)
    async def handle(request: Any) -> str:
        (await site.web.get_session(request))["n"] = "2"
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
