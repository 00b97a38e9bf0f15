"""Several sessions of one visitor, under cookies of several names."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from asyncsess import ConflictError, LockTimeoutError, Session, SessionClosedError, SessionStore, put
from asyncsess.web import CookiePolicy, asgi
from tests.conftest import NewStore, stored
from tests.web.conftest import new_browser, status_of, visit
from tests.web.pages import Gate, add_basics
from tests.web.sites import Site, by_uvicorn

A, B = CookiePolicy("a", secure=False), CookiePolicy("b", secure=False)


@pytest.fixture
async def store(new_store: NewStore) -> SessionStore:
    return new_store()


async def test_several_cookies_are_several_sessions(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession
) -> None:
    async def put_both(request: Any) -> str:
        async with site.web.open_session(request) as session, site.web.open_session(request, cookie="b") as other:
            session["n"], other["n"] = 1, 2
        (await site.web.get_session(request, cookie="b"))["m"] = 3
        return "put"

    async def show_both(request: Any) -> str:
        async with site.web.open_session(request, readonly=True, cookie="a") as session:
            return json.dumps([dict(session), dict(await site.web.get_session(request, cookie="b"))])

    async def miss(request: Any) -> str:
        with pytest.raises(RuntimeError, match="no sessions were set up with a cookie 'c'; there are a, b"):
            site.web.open_session(request, cookie="c")
        return "missed"

    for path, handle in (("/put", put_both), ("/show", show_both), ("/miss", miss)):
        site.add(path, handle)
    cookies = CookiePolicy("a", secure=False), CookiePolicy("b", secure=False)
    async with site.serve(store, *cookies) as url:
        async with browser.get(url + "/put") as response:
            assert response.cookies.keys() == {"a", "b"}
            assert response.headers["Vary"] == "Cookie, Cookie"
        assert json.loads(await visit(browser, url + "/show")) == [{"n": 1}, {"n": 2, "m": 3}]
        assert await visit(browser, url + "/miss") == "missed"


async def test_several_cookies_in_one_header_are_told_apart(site: Site, store: SessionStore) -> None:
    add_basics(site)
    async with site.serve(store) as url, aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as client:
        session_id = await store.create({"n": 1})
        for header in (f"session={session_id}", f"a=b; session={session_id}; xsession=no", f"session={session_id};c=d"):
            async with client.get(url + "/show", headers={"Cookie": header}) as response:
                assert await response.json(content_type=None) == {"n": 1}


async def test_of_two_cookies_of_one_name_the_last_counts(site: Site, store: SessionStore) -> None:
    """Browsers send those of longer paths first, where another page of the host may have planted one."""
    add_basics(site)
    async with site.serve(store) as url, aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as client:
        planted, own = await store.create({"n": "planted"}), await store.create({"n": "own"})
        async with client.get(url + "/show", headers={"Cookie": f"session={planted}; session={own}"}) as response:
            assert await response.json(content_type=None) == {"n": "own"}


async def test_a_conflict_in_one_of_two_sessions_of_a_stream_is_answered(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession
) -> None:
    async def chunks(request: Any) -> AsyncIterator[str]:
        (await site.web.get_session(request, cookie="a"))["n"] = 1
        other = await site.web.get_session(request, cookie="b")
        await store.apply(other.id, put("n", "theirs"))
        other["n"] = "ours"
        yield "one"

    site.add_stream("/stream", chunks)
    cookies = CookiePolicy("a", secure=False), CookiePolicy("b", secure=False)
    async with site.serve(store, *cookies) as url:
        session_id = await store.create({"n": 0})
        async with new_browser(cookies={"b": session_id}) as visitor:
            assert await status_of(visitor, url + "/stream") == 409
        assert await stored(store, session_id) == {"n": "theirs"}


async def test_middlewares_that_would_mix_their_sessions_up_are_refused(store: SessionStore) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError

    for cookies, reason in ((("a", "a"), "with a cookie 'a'"), (("a", "b"), r"a session in scope\['session'\]")):
        wrapped: Any = app
        for name in cookies:
            wrapped = asgi.SessionMiddleware(wrapped, store, CookiePolicy(name, secure=False))
        with pytest.raises(RuntimeError, match=reason):
            await wrapped({"type": "http", "headers": []}, None, None)


@pytest.mark.parametrize("begun", ["a", "b"])
async def test_a_conflict_in_one_of_two_sessions_does_not_hide_that_the_other_has_begun(
    site: Site, store: SessionStore, begun: str
) -> None:
    async def handle(request: Any) -> str:
        async with site.web.open_session(request, cookie=begun) as session:
            session["n"] = "begun"
        known = await site.web.get_session(request, cookie="a" if begun == "b" else "b")
        await store.apply(known.id, put("n", "theirs"))
        known["n"] = "ours"
        return "done"

    site.add("/handle", handle)
    session_id = await store.create({"n": 0})
    async with site.serve(store, A, B) as url, new_browser(cookies={"ab".strip(begun): session_id}) as visitor:
        async with visitor.get(url + "/handle") as response:
            assert (response.status, [*response.cookies]) == (409, [begun])
        assert await stored(store, response.cookies[begun].value) == {"n": "begun"}
        assert await stored(store, session_id) == {"n": "theirs"}


async def test_a_handler_that_fails_leaves_neither_of_two_locked(site: Site, store: SessionStore) -> None:
    sessions: list[Session] = []  # which are alive for longer than the request

    @site.web.retry_on_conflict(times=2)  # so that both are locked, the second time
    async def handle(request: Any) -> str:
        for name in "ab":
            sessions.append(await site.web.get_session(request, cookie=name))
            sessions[-1]["n"] = "ours"
        if len(sessions) == 2:
            raise ConflictError([])
        raise ZeroDivisionError

    site.add("/handle", handle)
    cookies = {name: await store.create({"n": 0}) for name in "ab"}
    async with site.serve(store, A, B) as url, new_browser(cookies=cookies) as visitor:
        assert await status_of(visitor, url + "/handle") == 500
        for session_id in cookies.values():
            async with store.open(session_id, timeout=0) as session:
                assert session == {"n": 0}
        for session in sessions:
            with pytest.raises(SessionClosedError):
                session["n"]


async def test_a_handler_that_waits_for_itself_is_mistaken(site: Site, store: SessionStore) -> None:
    async def handle(request: Any) -> str:
        async with site.web.open_session(request, cookie="a"), site.web.open_session(request, cookie="a"):
            return "done"

    site.add("/handle", handle)
    cookies = {"a": await store.create({"n": 0})}
    async with site.serve(store, A, B) as url, new_browser(cookies=cookies) as visitor:
        assert await status_of(visitor, url + "/handle") == 500


async def test_two_that_wait_for_each_other_are_told_to_try_again(
    site: Site, store: SessionStore, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate(2)

    async def handle(request: Any) -> str:
        first = site.query(request, "first")
        async with site.web.open_session(request, cookie=first):
            await gate.pass_()
            async with site.web.open_session(request, cookie="ab".strip(first)) as session:
                session["n"] = first
        return "done"

    site.add("/handle", handle)
    cookies = {"a": await store.create({"n": 0}), "b": await store.create({"n": 0})}
    async with site.serve(store, A, B) as url, new_browser(cookies=cookies) as visitor:
        answers = await asyncio.gather(*(visitor.get(url + f"/handle?first={name}") for name in "ab"))
        assert sorted(answer.status for answer in answers) == [200, 503]
        assert [answer.headers.get("Retry-After") for answer in answers if answer.status == 503] == ["1"]
        assert "requests waited for each other: this task would wait for task" in caplog.text
        for answer in answers:
            answer.close()
    caplog.clear()


async def test_what_replaces_the_session_in_the_scope_is_stored_by_the_outer_of_two_middlewares(
    store: SessionStore,
) -> None:
    async def endpoint(request: Request) -> PlainTextResponse:
        request.scope["session"] = {"n": "another"}
        return PlainTextResponse("done")

    app = Starlette(
        routes=[Route("/", endpoint)],
        middleware=[
            Middleware(asgi.SessionMiddleware, store, A),
            Middleware(asgi.SessionMiddleware, store, B, scope_key=None),
        ],
    )
    session_id = await store.create({"n": 0, "m": 1})
    async with by_uvicorn(app) as url, new_browser(cookies={"a": session_id}) as visitor:
        assert await visit(visitor, url) == "done"
        assert await stored(store, session_id) == {"n": "another"}


class WritesAfterwards:
    """A middleware between two others that changes the session of the outer once the inner has answered."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        sent: list[Any] = []

        async def hold(message: Any) -> None:
            sent.append(message)

        await self._app(scope, receive, hold)
        scope["session"]["seen"] = True
        for message in sent:
            await send(message)


async def test_what_lies_between_two_middlewares_may_still_change_the_session_of_the_outer(
    store: SessionStore,
) -> None:
    async def endpoint(request: Request) -> PlainTextResponse:
        return PlainTextResponse("done")

    inner = asgi.SessionMiddleware(Starlette(routes=[Route("/", endpoint)]), store, B, scope_key=None)
    session_id = await store.create({"n": 0})
    async with by_uvicorn(asgi.SessionMiddleware(WritesAfterwards(inner), store, A), lifespan="off") as url:
        async with new_browser(cookies={"a": session_id}) as visitor:
            assert await visit(visitor, url) == "done"
        assert await stored(store, session_id) == {"n": 0, "seen": True}
    await store.aclose()


async def test_an_error_after_the_session_in_the_scope_was_replaced_is_answered_by_both_of_two(
    store: SessionStore,
) -> None:
    async def endpoint(request: Request) -> PlainTextResponse:
        request.scope["session"] = {"n": "another"}
        raise LockTimeoutError(1.0, None)

    inner = asgi.SessionMiddleware(Starlette(routes=[Route("/", endpoint)]), store, B, scope_key=None)
    session_id = await store.create({"n": 0})
    async with by_uvicorn(asgi.SessionMiddleware(inner, store, A)) as url:
        async with new_browser(cookies={"a": session_id}) as visitor:
            assert await status_of(visitor, url) == 503
        assert await stored(store, session_id) == {"n": 0}
