"""What is particular to aiohttp: how applications are set up."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from asyncsess import SessionStore, StoreError
from asyncsess.web import CookiePolicy
from asyncsess.web.aiohttp import get_session, open_session, setup
from tests.conftest import NewStore
from tests.web.conftest import status_of, visit
from tests.web.sites import PLAIN, AiohttpSite


@pytest.fixture
async def store(new_store: NewStore) -> SessionStore:
    return new_store()


@pytest.fixture
def site() -> AiohttpSite:
    return AiohttpSite()


async def count(request: web.Request) -> web.Response:
    async with open_session(request) as session:
        session["n"] = session.get("n", 0) + 1
        return web.Response(text=str(session["n"]))


async def test_the_store_lives_as_long_as_the_application(site: AiohttpSite, new_store: NewStore) -> None:
    store = new_store(sweep_interval=1000)

    def sweepers() -> int:
        return sum(task.get_name() == "asyncsess sweeper" for task in asyncio.all_tasks())

    async with site.serve(store, CookiePolicy("a", secure=False), CookiePolicy("b", secure=False)):
        assert sweepers() == 1
    assert sweepers() == 0
    with pytest.raises(StoreError, match="the store was closed"):
        await store.create({})


async def test_an_application_without_sessions_says_how_to_have_them(
    site: AiohttpSite, browser: aiohttp.ClientSession
) -> None:
    async def use(request: web.Request) -> web.Response:
        with pytest.raises(RuntimeError, match=r"call asyncsess\.web\.aiohttp\.setup\(app, store\)"):
            open_session(request)
        return web.Response(text="told")

    app = web.Application()
    app.router.add_get("/", use)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        assert await visit(browser, f"http://127.0.0.1:{runner.addresses[0][1]}/") == "told"
    finally:
        await runner.cleanup()


def test_two_sessions_with_one_cookie_are_refused(site: AiohttpSite, new_store: NewStore) -> None:
    setup(site.app, new_store(), PLAIN)
    with pytest.raises(ValueError, match="there is a session with a cookie 'session' already"):
        setup(site.app, new_store(), PLAIN)


async def test_other_middlewares_have_the_session_whenever_they_were_added(
    site: AiohttpSite, store: SessionStore, browser: aiohttp.ClientSession
) -> None:
    @web.middleware
    async def early(request: web.Request, handler: Any) -> web.StreamResponse:
        (await get_session(request))["early"] = True
        return await handler(request)  # type: ignore[no-any-return]

    async def show(request: web.Request) -> web.Response:
        return web.Response(text=str(dict(await get_session(request))))

    site.app.middlewares.append(early)
    site.app.router.add_get("/", show)
    async with site.serve(store) as url:
        assert await visit(browser, url + "/") == "{'early': True}"


async def test_subapplications_share_the_session_or_have_their_own(
    site: AiohttpSite, new_store: NewStore, browser: aiohttp.ClientSession, tmp_path: Any
) -> None:
    sharing, owning = web.Application(), web.Application()
    for app in (site.app, sharing, owning):
        app.router.add_get("/count", count)

    async def count_own(request: web.Request) -> web.Response:
        async with open_session(request, cookie="own") as session:
            session["n"] = session.get("n", 0) + 1
            return web.Response(text=str(session["n"]))

    owning.router.add_get("/own", count_own)
    own_store = new_store()
    setup(owning, own_store, CookiePolicy("own", secure=False, path="/owning"))
    site.app.add_subapp("/sharing", sharing)
    site.app.add_subapp("/owning", owning)
    async with site.serve(new_store()) as url:
        paths = ("/count", "/sharing/count", "/owning/count", "/owning/own", "/owning/own", "/count")
        assert [await visit(browser, url + path) for path in paths] == ["1", "2", "3", "1", "2", "4"]
        async with aiohttp.ClientSession() as other, other.get(url + "/owning/own") as response:
            assert len(response.headers.getall("Set-Cookie")) == 1


async def test_a_request_for_what_is_not_there_has_no_session_either(
    site: AiohttpSite, store: SessionStore, browser: aiohttp.ClientSession
) -> None:
    async with site.serve(store) as url:
        assert await status_of(browser, url + "/nothing") == 404


async def test_a_handler_that_is_cancelled_when_its_browser_leaves_rolls_back(
    store: SessionStore, browser: aiohttp.ClientSession
) -> None:
    reached, ended = asyncio.Event(), asyncio.Event()

    async def hold(request: web.Request) -> web.Response:
        try:
            async with open_session(request) as session:
                session["n"] = "held"
                reached.set()
                await asyncio.sleep(60)
        finally:
            ended.set()
        return web.Response()

    app = web.Application()
    app.router.add_get("/count", count)
    app.router.add_get("/hold", hold)
    setup(app, store, PLAIN)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        await visit(browser, url + "/count")
        leaving = asyncio.create_task(status_of(browser, url + "/hold"))
        await reached.wait()
        leaving.cancel()
        await asyncio.wait([leaving])
        async with asyncio.timeout(10):
            await ended.wait()
        assert await visit(browser, url + "/count") == "2"
        assert store.statistics().open == store.statistics().holding == 0
    finally:
        await runner.cleanup()
