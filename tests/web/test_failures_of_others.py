"""What other session libraries get wrong, each as it was found there, in each framework."""

from __future__ import annotations

import asyncio
import resource
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from asyncsess import FileStore, SessionStore, rules
from asyncsess.ids import key_of
from asyncsess.testing import FakeClock, until
from tests.conftest import NewStore, keys_of, stored
from tests.web.conftest import new_browser, status_of, visit
from tests.web.pages import Fine, Gate, Stop, add_basics, shown
from tests.web.sites import Site

way = pytest.mark.parametrize("way", ["open", "get", "edit"])


@pytest.fixture
async def store(new_store: NewStore) -> SessionStore:
    return new_store()


@way
async def test_two_concurrent_appends_are_both_kept(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession, way: str
) -> None:
    """One of two was lost in every asyncio session library."""
    gate = Gate(2)

    async def append(request: Any) -> str:
        item = site.query(request, "item")
        if way == "get":

            @site.web.retry_on_conflict
            async def run(request: Any) -> Any:
                session = await site.web.get_session(request)
                await gate.pass_()
                session.setdefault("list", []).append(item)
                return Fine()

            await run(request)
        elif way == "edit":
            async with site.web.edit_session(request, resolve={"list": rules.append}) as session:
                await gate.pass_()
                session.setdefault("list", []).append(item)
        else:
            async with site.web.open_session(request) as session:
                session.setdefault("list", []).append(item)
        return "appended"

    add_basics(site)
    site.add("/append", append)
    async with site.serve(store) as url:
        await visit(browser, url + "/put?key=n&value=0")
        await asyncio.gather(*(visit(browser, f"{url}/append?item={item}") for item in "ab"))
        assert sorted((await shown(browser, url))["list"]) == ["a", "b"]


@way
async def test_a_reader_beside_a_writer_does_not_undo_what_is_written(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession, way: str
) -> None:
    """Litestar and starsessions write back what a request has merely read."""
    stop = Stop()

    async def read_slowly(request: Any) -> str:
        if way == "get":
            session = await site.web.get_session(request)
            before = session["n"]
            await stop.here()
            return str(before)
        how = {"open": {"readonly": True}, "edit": {}}[way]
        async with getattr(site.web, f"{way}_session")(request, **how) as session:
            before = session["n"]
            await stop.here()
        return str(before)

    add_basics(site)
    site.add("/read", read_slowly)
    async with site.serve(store) as url:
        await visit(browser, url + "/put?key=n&value=old")
        reading = asyncio.create_task(visit(browser, url + "/read"))
        await stop.reached.wait()
        await visit(browser, url + "/put?key=n&value=new")
        stop.may_go.set()
        assert await reading == "old"
        assert await shown(browser, url) == {"n": "new"}


@way
async def test_a_logout_beside_a_slow_request_stays(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession, way: str
) -> None:
    """A request in flight brings it back: Litestar, starsessions, aiohttp-session with Redis, Flask-Session."""
    stop = Stop()

    async def work_slowly(request: Any) -> str:
        if way == "get":
            session = await site.web.get_session(request)
            await stop.here()
            session["n"] = "late"
        else:
            async with getattr(site.web, f"{way}_session")(request) as session:
                if way == "open":
                    await session.release()
                await stop.here()
                if way == "edit":
                    session["n"] = "late"
        return "worked"

    add_basics(site)
    site.add("/work", work_slowly)
    async with site.serve(store) as url:
        await visit(browser, url + "/login?owner=ada")
        working = asyncio.create_task(status_of(browser, url + "/work"))
        await stop.reached.wait()
        await visit(browser, url + "/logout")
        stop.may_go.set()
        assert await working == (200 if way == "open" else 409)
        assert await shown(browser, url) == {}
        assert await store.sessions_of("ada") == []


@pytest.mark.parametrize("page", ["/put?key=n&value=1", "/login?owner=ada"])
async def test_an_id_that_somebody_planted_is_not_adopted(site: Site, store: SessionStore, page: str) -> None:
    """Litestar, starsessions and Beaker store a session under whatever id comes."""
    planted = "planted-by-somebody-who-knows-it-0123456789"
    add_basics(site)
    async with site.serve(store) as url, new_browser(cookies={"session": planted}) as victim:
        session_id = await visit(victim, url + page)
        assert session_id != planted
        assert await keys_of(store) == [key_of(session_id)]
        async with new_browser(cookies={"session": planted}) as attacker:
            assert await shown(attacker, url) == {}


async def test_the_id_from_before_a_login_is_dead_afterwards(site: Site, store: SessionStore) -> None:
    """Whoever saw or planted it is not logged in; and what the visitor had is still there."""
    add_basics(site)
    async with site.serve(store) as url, new_browser() as victim:
        before = await visit(victim, url + "/put?key=cart&value=tea")
        async with new_browser(cookies={"session": before}) as attacker:
            assert await shown(attacker, url) == {"cart": "tea"}
            after = await visit(victim, url + "/login?owner=ada")
            assert await shown(attacker, url) == {}
            async with attacker.get(url + "/put?key=n&value=1") as response:
                assert await response.text() not in (before, after)
        assert await shown(victim, url) == {"cart": "tea", "_owner": {"id": "ada", "label": ""}}


@way
async def test_a_nested_change_is_stored(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession, way: str
) -> None:
    """aiohttp-session, Django and Starlette look at assignments to the session itself alone."""

    async def deepen(request: Any) -> str:
        if way == "get":
            session = await site.web.get_session(request)
            session["tree"]["deep"]["leaves"].append("new")
        else:
            async with getattr(site.web, f"{way}_session")(request) as session:
                session["tree"]["deep"]["leaves"].append("new")
        return "grown"

    async def plant(request: Any) -> str:
        session = await site.web.get_session(request)
        session["tree"] = {"deep": {"leaves": []}}
        return "planted"

    add_basics(site)
    site.add("/plant", plant)
    site.add("/deepen", deepen)
    async with site.serve(store) as url:
        await visit(browser, url + "/plant")
        for _ in range(2):
            await visit(browser, url + "/deepen")
        assert await shown(browser, url) == {"tree": {"deep": {"leaves": ["new", "new"]}}}


@way
async def test_what_a_stream_changed_before_its_headers_left_is_stored(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession, way: str
) -> None:
    """aiohttp-session drops it, since the cookie is made after the handler has ended."""
    stop = Stop()

    async def chunks(request: Any) -> AsyncIterator[str]:
        if way == "get":
            session = await site.web.get_session(request)
            session["n"] = "streamed"
            yield "one"
            await stop.here()
            yield str(session["n"])
        else:
            async with getattr(site.web, f"{way}_session")(request) as session:
                session["n"] = "streamed"
                yield "one"
                await stop.here()
                yield str(session["n"])

    add_basics(site)
    site.add_stream("/stream", chunks)
    async with site.serve(store) as url, browser.get(url + "/stream") as response:
        assert "session" in response.cookies
        await stop.reached.wait()
        async with asyncio.timeout(10):
            assert await shown(browser, url) == {"n": "streamed"}  # and the lock is free
        stop.may_go.set()
        assert await response.text() == "onestreamed"


@way
async def test_nothing_is_stored_for_visitors_who_leave_nothing(
    site: Site, store: SessionStore, directory: Path, way: str
) -> None:
    """Litestar and others begin a session for each robot that passes by."""

    async def look(request: Any) -> str:
        if way == "get":
            session = await site.web.get_session(request)
            return str(session.get("n"))
        async with getattr(site.web, f"{way}_session")(request) as session:
            return str(session.get("n"))

    add_basics(site)
    site.add("/look", look)
    async with site.serve(store) as url, aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as robot:
        for _ in range(20):
            for page in ("/look", "/show"):
                async with robot.get(url + page) as response:
                    assert await response.text() in ("None", "{}")
                    assert "Set-Cookie" not in response.headers
                    assert response.headers["Vary"] == "Cookie"
                    assert "Cache-Control" not in response.headers
        assert [path for path in directory.rglob("*") if path.is_file()] == []


async def test_a_torn_file_costs_its_visitor_one_error_that_is_logged_and_nobody_else_anything(
    site: Site,
    store: FileStore,
    directory: Path,
    browser: aiohttp.ClientSession,
    caplog: pytest.LogCaptureFixture,
) -> None:
    add_basics(site)
    async with site.serve(store) as url, new_browser() as other:
        session_id = await visit(browser, url + "/put?key=n&value=1")
        await visit(other, url + "/put?key=n&value=2")
        key = key_of(session_id)
        (directory / key[:2] / key[2:]).write_bytes(bytes(600))
        assert await status_of(browser, url + "/show") == 500
        assert "a damaged session file" in caplog.text
        assert "a session could not be used" in caplog.text
        assert await shown(browser, url) == {}
        await visit(browser, url + "/put?key=n&value=3")
        assert await shown(browser, url) == {"n": "3"}
        assert await shown(other, url) == {"n": "2"}
        assert await store.delete_expired() == 0


@contextmanager
def small_files() -> Iterator[None]:
    """Let no file grow beyond 4 kB, as a disk does that is full; nor what this process prints."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@way
async def test_a_full_disk_is_an_error_that_the_visitor_and_the_log_are_told_of(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    """Django's and Litestar's file stores lose the session without a word."""

    async def fill(request: Any) -> str:
        if way == "get":
            session = await site.web.get_session(request)
            session["n"] = "." * 10_000
        else:
            async with getattr(site.web, f"{way}_session")(request) as session:
                session["n"] = "." * 10_000
        return "stored"

    add_basics(site)
    site.add("/fill", fill)
    async with site.serve(store) as url:
        session_id = await visit(browser, url + "/put?key=n&value=small")
        with small_files():
            async with browser.get(url + "/fill") as response:
                text = await response.text()
        assert (response.status, "could not be read or stored" in text) == (500, True)
        assert "Set-Cookie" not in response.headers
        assert "File too large" in caplog.text
        assert await shown(browser, url) == {"n": "small"}
        assert await stored(store, session_id) == {"n": "small"}


async def test_a_session_expires_although_its_cookie_comes_again(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession, clock: FakeClock
) -> None:
    """By idle time, and by age although it is used; nobody has swept."""
    add_basics(site)
    async with site.serve(store) as url:
        first = await visit(browser, url + "/put?key=n&value=1")
        clock.advance(1801)
        assert await shown(browser, url) == {}
        second = await visit(browser, url + "/put?key=n&value=2")
        assert second != first
        for _ in range(49):
            assert await shown(browser, url) == {"n": "2"}
            clock.advance(1790)
        assert await shown(browser, url) == {}
        async with new_browser(cookies={"session": first}) as replaying:
            assert await shown(replaying, url) == {}


async def test_a_reader_does_not_wait_for_the_one_who_holds_the_session(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession
) -> None:
    """In PHP even read_and_close waits behind a writer."""
    stop = Stop()

    async def hold(request: Any) -> str:
        async with site.web.open_session(request) as session:
            session["n"] = "held"
            await stop.here()
        return "done"

    add_basics(site)
    site.add("/hold", hold)
    async with site.serve(store) as url:
        await visit(browser, url + "/put?key=n&value=1")
        holding = asyncio.create_task(visit(browser, url + "/hold"))
        await stop.reached.wait()
        assert await shown(browser, url) == {"n": "1"}
        writing = asyncio.create_task(visit(browser, url + "/put?key=m&value=2"))
        await until(lambda: store.statistics().waiting == 1)
        stop.may_go.set()
        await asyncio.gather(holding, writing)
        assert await shown(browser, url) == {"n": "held", "m": "2"}
