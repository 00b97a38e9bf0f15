"""What happens to the session of a request: when it is committed, what is answered, and what the browser is told."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from asyncsess import (
    ConflictError,
    LockTimeoutError,
    SessionClosedError,
    SessionError,
    SessionNotFoundError,
    SessionStore,
    append,
    increment,
    put,
)
from asyncsess.testing import FakeClock, until
from asyncsess.web import Answer, CookiePolicy, answer_to
from tests.conftest import NewStore, keys_of
from tests.web.conftest import new_browser, status_of, visit
from tests.web.pages import Stop, add_basics, shown
from tests.web.sites import Site


@pytest.fixture
async def store(new_store: NewStore) -> SessionStore:
    return new_store()


# What is stored.


@pytest.mark.parametrize("status", [302, 404, 500])
@pytest.mark.parametrize("way", ["open", "get", "edit"])
@pytest.mark.parametrize("is_raised", [True, False], ids=["raised", "returned"])
async def test_what_leads_to_an_error_is_rolled_back_and_a_redirect_is_none(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession, way: str, status: int, is_raised: bool
) -> None:
    async def handle(request: Any) -> tuple[int, str]:
        if way == "get":
            session = await site.web.get_session(request)
            session["n"] = "changed"
            if is_raised:
                raise site.abort(status)
        else:
            async with getattr(site.web, f"{way}_session")(request) as session:
                session["n"] = "changed"
                if is_raised:
                    raise site.abort(status)
        return status, "an answer"

    add_basics(site)
    site.add("/handle", handle)
    async with site.serve(store) as url:
        await visit(browser, url + "/put?key=n&value=before")
        assert await status_of(browser, url + "/handle") == status
        is_block = way != "get" and not is_raised  # a block that ends well is committed then
        expected = "changed" if status < 400 or is_block else "before"
        assert await shown(browser, url) == {"n": expected}


async def test_which_answers_commit_can_be_said(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession
) -> None:
    async def handle(request: Any) -> tuple[int, str]:
        (await site.web.get_session(request))["n"] = "changed"
        return 404, "not found"

    add_basics(site)
    site.add("/handle", handle)
    async with site.serve(store, commits=lambda status: status != 500) as url:
        assert await status_of(browser, url + "/handle") == 404
        assert await shown(browser, url) == {"n": "changed"}


async def test_what_is_dropped_with_an_error_is_logged(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "asyncsess")

    async def handle(request: Any) -> tuple[int, str]:
        session = await site.web.get_session(request)
        if site.query(request, "change") == "yes":
            session["n"] = 1
        return 404, "not found"

    site.add("/handle", handle)
    async with site.serve(store) as url:
        await status_of(browser, url + "/handle?change=no")
        assert "was dropped" not in caplog.text
        await status_of(browser, url + "/handle?change=yes")
        assert "what a request changed in its session was dropped, since its answer is an error" in caplog.text


async def test_an_exception_rolls_back_and_frees_the_session(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(request: Any) -> str:
        (await site.web.get_session(request))["n"] = "get"
        async with site.web.open_session(request) as session:
            session["n"] = "open"
            raise ZeroDivisionError

    add_basics(site)
    site.add("/fail", fail)
    async with site.serve(store) as url:
        await visit(browser, url + "/put?key=n&value=before")
        assert await status_of(browser, url + "/fail") == 500
        assert await shown(browser, url) == {"n": "before"}
        assert store.statistics().holding == store.statistics().open == 0
    caplog.clear()


async def test_all_that_a_new_visitor_does_in_one_request_is_one_session(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession
) -> None:
    async def handle(request: Any) -> str:
        whole = await site.web.get_session(request)
        if site.query(request, "first") == "whole":
            whole["a"] = 1
        async with site.web.open_session(request) as session:
            session["b"] = 2
        async with site.web.edit_session(request) as session:
            session["c"] = 3
        async with site.web.synchronize_session(request, "d") as session:
            session["d"] = 4
        await site.web.apply_session(request, increment("e", 5))
        whole["a"] = 1
        async with site.web.open_session(request, readonly=True) as session:
            assert {"b", "c", "d", "e"} <= session.keys()
        assert await site.web.get_session(request) is whole
        return "done"

    add_basics(site)
    site.add("/handle", handle)
    async with site.serve(store) as url:
        for first in ("whole", "block"):
            async with new_browser() as visitor:
                await visit(visitor, f"{url}/handle?first={first}")
                assert await shown(visitor, url) == {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}
        assert len(await keys_of(store)) == 2


async def test_two_new_sessions_at_once_in_one_request_are_refused(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession
) -> None:
    async def handle(request: Any) -> str:
        async with site.web.open_session(request) as session:
            session["n"] = 1
            with pytest.raises(SessionError, match="this request begins its session in another block"):
                async with site.web.open_session(request):
                    pass
        return "done"

    site.add("/handle", handle)
    async with site.serve(store) as url:
        assert await visit(browser, url + "/handle") == "done"


async def test_a_variable_that_is_not_locked_stays_out_of_reach_for_new_visitors_too(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession
) -> None:
    async def handle(request: Any) -> str:
        async with site.web.synchronize_session(request, "a") as session:
            session["a"] = 1
            with pytest.raises(TypeError, match="the variable 'b' is not locked"):
                session["b"] = 2
        return "done"

    add_basics(site)
    site.add("/handle", handle)
    async with site.serve(store) as url:
        await visit(browser, url + "/handle")
        assert await shown(browser, url) == {"a": 1}


# Errors.


async def test_a_conflict_is_answered_by_409_and_nothing_is_stored(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession
) -> None:
    async def handle(request: Any) -> str:
        session = await site.web.get_session(request)
        await store.apply(session.id, put("n", "theirs"))
        session["n"], session["m"] = "ours", 1
        return "stored"

    add_basics(site)
    site.add("/handle", handle)
    async with site.serve(store) as url:
        await visit(browser, url + "/put?key=n&value=before")
        async with browser.get(url + "/handle") as response:
            assert response.status == 409
            assert "Please try again" in await response.text()
            assert "Set-Cookie" not in response.headers
        assert await shown(browser, url) == {"n": "theirs"}


async def test_what_is_answered_to_an_error_can_be_said(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession
) -> None:
    async def handle(request: Any) -> str:
        async with site.web.edit_session(request) as session:
            await store.apply(session.id, put("n", "theirs"))
            session["n"] = "ours"
        return "stored"

    def answer(error: SessionError) -> Answer | None:
        if isinstance(error, ConflictError):
            return Answer(412, f"{len(error.conflicts)} conflict", {"X-Reason": "conflict"})
        return answer_to(error)

    add_basics(site)
    site.add("/handle", handle)
    async with site.serve(store, answer=answer) as url:
        await visit(browser, url + "/put?key=n&value=before")
        async with browser.get(url + "/handle") as response:
            assert (response.status, await response.text()) == (412, "1 conflict")
            assert response.headers["X-Reason"] == "conflict"


async def test_a_session_that_is_busy_is_answered_by_503_and_when_to_try_again(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession
) -> None:
    async def handle(request: Any) -> str:
        async with site.web.open_session(request, timeout=0.01):
            return "opened"

    add_basics(site)
    site.add("/handle", handle)
    async with site.serve(store) as url:
        session_id = await visit(browser, url + "/put?key=n&value=1")
        async with store.open(session_id), browser.get(url + "/handle") as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "1")
        assert await visit(browser, url + "/handle") == "opened"


async def test_an_error_that_the_handler_deals_with_is_its_own(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession
) -> None:
    async def handle(request: Any) -> tuple[int, str]:
        try:
            async with site.web.open_session(request, timeout=0.01):
                return 200, "opened"
        except LockTimeoutError:
            return 202, "later"

    add_basics(site)
    site.add("/handle", handle)
    async with site.serve(store) as url:
        session_id = await visit(browser, url + "/put?key=n&value=1")
        async with store.open(session_id):
            assert await status_of(browser, url + "/handle") == 202


async def test_a_request_whose_session_ends_while_it_waits_is_told_and_no_new_visitor(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession, clock: FakeClock
) -> None:
    add_basics(site)
    async with site.serve(store) as url:
        session_id = await visit(browser, url + "/put?key=n&value=1")
        async with store.open(session_id) as session:
            waiting = asyncio.create_task(status_of(browser, url + "/put?key=n&value=2"))
            await until(lambda: store.statistics().waiting == 1)
            clock.advance(1)
            await session.destroy()
        assert await waiting == 409
        clock.advance(1)
        assert await visit(browser, url + "/put?key=n&value=3") != session_id
        assert await shown(browser, url) == {"n": "3"}


async def test_a_poll_does_not_keep_a_session_alive(
    site: Site, new_store: NewStore, browser: aiohttp.ClientSession, clock: FakeClock
) -> None:
    async def poll(request: Any) -> str:
        with pytest.raises(ValueError, match="touch=False is for readonly=True"):
            site.web.open_session(request, touch=False)
        async with site.web.open_session(request, readonly=True, touch=False) as session:
            return json.dumps(dict(session))

    add_basics(site)
    site.add("/poll", poll)
    site.scope_key = None  # else each request uses the session
    async with site.serve(new_store(idle_timeout=100)) as url:
        await visit(browser, url + "/put?key=n&value=1")
        for seconds, values in ((60, {"n": "1"}), (60, {})):
            clock.advance(seconds)
            assert json.loads(await visit(browser, url + "/poll")) == values


# The headers.


@pytest.mark.parametrize("way", ["open", "readonly", "edit", "get", "synchronize", "apply"])
async def test_an_answer_that_depends_on_the_session_says_so(site: Site, store: SessionStore, way: str) -> None:
    async def use(request: Any) -> str:
        if way == "get":
            await site.web.get_session(request)
        elif way == "apply":
            await site.web.apply_session(request)
        elif way == "readonly":
            async with site.web.open_session(request, readonly=True):
                pass
        else:
            variables = ("n",) if way == "synchronize" else ()
            async with getattr(site.web, f"{way}_session")(request, *variables):
                pass
        return "used"

    async def ignore(request: Any) -> str:
        return "ignored"

    site.add("/use", use)
    site.add("/ignore", ignore)
    async with site.serve(store) as url:
        session_id = await store.create({"n": 0})
        async with new_browser(cookies={"session": session_id}) as visitor:
            async with visitor.get(url + "/use") as response:
                assert response.headers["Vary"] == "Cookie"
                assert not {"Set-Cookie", "Cache-Control"} & response.headers.keys()
            async with visitor.get(url + "/ignore") as response:
                assert not {"Vary", "Set-Cookie", "Cache-Control"} & response.headers.keys()


async def test_an_answer_with_a_cookie_is_not_cached_and_the_cookie_comes_once(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession
) -> None:
    add_basics(site)
    async with site.serve(store) as url:
        async with browser.get(url + "/put?key=n&value=1") as response:
            assert response.headers.getall("Set-Cookie") == [
                f"session={await response.text()}; Path=/; SameSite=Lax; HttpOnly"
            ]
            assert (response.headers["Vary"], response.headers["Cache-Control"]) == ("Cookie", "no-store")
        async with browser.get(url + "/put?key=n&value=2") as response:
            assert not {"Set-Cookie", "Cache-Control"} & response.headers.keys()
        async with browser.get(url + "/login?owner=ada") as response:
            assert len(response.headers.getall("Set-Cookie")) == 1
        async with browser.get(url + "/logout") as response:
            assert response.headers["Set-Cookie"] == "session=; Max-Age=0; Path=/; SameSite=Lax; HttpOnly"
        async with browser.get(url + "/logout") as response:
            assert "Set-Cookie" not in response.headers


async def test_whoever_comes_with_a_replaced_id_in_its_time_of_grace_is_not_told_the_new_one(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession
) -> None:
    async def regenerate(request: Any) -> str:
        async with site.web.open_session(request) as session:
            await session.regenerate_id()
        return session.id

    add_basics(site)
    site.add("/regenerate", regenerate)
    async with site.serve(store) as url:
        first = await visit(browser, url + "/put?key=n&value=1")
        await visit(browser, url + "/regenerate")
        async with new_browser(cookies={"session": first}) as late:
            assert await shown(late, url) == {"n": "1"}
            async with late.get(url + "/put?key=n&value=2") as response:
                assert "Set-Cookie" not in response.headers
        assert await shown(browser, url) == {"n": "2"}


@pytest.mark.parametrize(("lifetime", "age"), [(1000, 1000), (None, 400 * 86400)])
async def test_a_persistent_cookie_ends_with_the_session(
    site: Site, new_store: NewStore, clock: FakeClock, browser: aiohttp.ClientSession, lifetime: int | None, age: int
) -> None:
    add_basics(site)
    cookie = CookiePolicy(secure=False, is_persistent=True)
    async with site.serve(new_store(lifetime=lifetime), cookie) as url:
        async with browser.get(url + "/put?key=n&value=1") as response:
            assert response.cookies["session"]["max-age"] == str(age)
        clock.advance(400)
        async with browser.get(url + "/login?owner=ada") as response:
            assert response.cookies["session"]["max-age"] == str(age if lifetime is None else 600)


@pytest.mark.parametrize(
    ("is_secure", "host", "warning"),
    [
        (True, "127.0.0.1", "most clients will not send it back"),
        (True, "localhost:8080", "most clients will not send it back"),
        (True, "app.example.org", None),
        (False, "127.0.0.1:8080", None),
        (False, "[::1]:8080", None),
        (False, "app.localhost", None),
        (False, "app.example.org", "anybody on the way can take the session over"),
        (False, "192.168.1.5:8080", "anybody on the way can take the session over"),
    ],
)
async def test_a_cookie_that_will_not_work_or_is_not_safe_is_warned_of_once(
    site: Site,
    store: SessionStore,
    browser: aiohttp.ClientSession,
    caplog: pytest.LogCaptureFixture,
    is_secure: bool,
    host: str,
    warning: str | None,
) -> None:
    add_basics(site)
    async with site.serve(store, CookiePolicy(secure=is_secure)) as url:
        for _ in range(2):
            async with browser.get(url + "/put?key=n&value=1", headers={"Host": host}) as response:
                assert response.status == 200
    messages = [record.getMessage() for record in caplog.records if record.name == "asyncsess"]
    assert [warning in message for message in messages] == ([True] if warning else []) if warning else not messages


# Once the headers have left.


@pytest.mark.parametrize("is_nested", [False, True])
async def test_what_is_changed_after_the_headers_have_left_raises(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession, is_nested: bool, caplog: pytest.LogCaptureFixture
) -> None:
    raised: list[BaseException] = []

    async def chunks(request: Any) -> AsyncIterator[str]:
        session = await site.web.get_session(request)
        session["list"] = []
        yield "one"
        if is_nested:
            session["list"].append("late")
        else:
            try:
                session["late"] = True
            except SessionClosedError as error:
                raised.append(error)
        yield "two"

    add_basics(site)
    site.add_stream("/stream", chunks)
    async with site.serve(store) as url:
        async with browser.get(url + "/stream") as response:
            try:
                assert await response.text() == "onetwo"
            except aiohttp.ClientError:
                assert is_nested
        assert await shown(browser, url) == {"list": []}
    if is_nested:
        assert "something inside the session was changed after its lock was given back" in caplog.text or raised == []
    else:
        assert len(raised) == 1
    caplog.clear()


async def test_a_conflict_of_a_stream_is_answered_instead_of_it(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession
) -> None:
    async def chunks(request: Any) -> AsyncIterator[str]:
        session = await site.web.get_session(request)
        await store.apply(session.id, put("n", "theirs"))
        session["n"] = "ours"
        yield "one"
        yield "two"

    add_basics(site)
    site.add_stream("/stream", chunks)
    async with site.serve(store) as url:
        await visit(browser, url + "/put?key=n&value=before")
        assert await status_of(browser, url + "/stream") == 409
        assert await shown(browser, url) == {"n": "theirs"}


# WebSockets.


async def test_a_websocket_opens_the_session_for_each_message(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession
) -> None:
    async def count(request: Any, text: str) -> str:
        async with site.web.open_session(request) as session:
            session["n"] += text
            return session["n"]

    add_basics(site)
    site.add_talk("/talk", count)
    async with site.serve(store) as url:
        await visit(browser, url + "/put?key=n&value=a")
        async with browser.ws_connect(url + "/talk") as one, browser.ws_connect(url + "/talk") as other:
            for socket, text, expected in ((one, "b", "ab"), (other, "c", "abc"), (one, "d", "abcd")):
                await socket.send_str(text)
                assert await socket.receive_str(timeout=10) == expected
                assert await shown(browser, url) == {"n": expected}  # and nobody holds it


async def test_a_websocket_can_not_begin_a_session_once_it_is_accepted(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession
) -> None:
    async def talk(request: Any, text: str) -> str:
        async with site.web.open_session(request, readonly=True) as session:
            assert dict(session) == {}
        try:
            async with site.web.open_session(request) as session:
                session["n"] = 1
        except SessionClosedError as error:
            return str(error)
        return "begun"

    site.add_talk("/talk", talk)
    async with site.serve(store) as url, browser.ws_connect(url + "/talk") as socket:
        await socket.send_str("hello")
        assert "begin it before the response" in await socket.receive_str(timeout=10)
        assert await keys_of(store) == []


async def test_a_websocket_begins_a_session_before_it_is_accepted(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def begin(request: Any) -> None:
        (await site.web.get_session(request))["n"] = "begun"

    async def talk(request: Any, text: str) -> str:
        async with site.web.open_session(request) as session:
            return str(session["n"])

    monkeypatch.setattr(site, "before_talk", begin)
    add_basics(site)
    site.add_talk("/talk", talk)
    async with site.serve(store) as url:
        async with browser.ws_connect(url + "/talk") as socket:
            await socket.send_str("hello")
            assert await socket.receive_str(timeout=10) == "begun"
        assert await shown(browser, url) == {"n": "begun"}


async def test_a_conflict_before_a_websocket_is_accepted_is_answered_by_409(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def change(request: Any) -> None:
        session = await site.web.get_session(request)
        await store.apply(session.id, put("n", "theirs"))
        session["n"] = "ours"

    async def talk(request: Any, text: str) -> str:
        return text

    monkeypatch.setattr(site, "before_talk", change)
    add_basics(site)
    site.add_talk("/talk", talk)
    async with site.serve(store) as url:
        await visit(browser, url + "/put?key=n&value=before")
        with pytest.raises(aiohttp.WSServerHandshakeError) as refusal:
            await browser.ws_connect(url + "/talk")
        assert refusal.value.status == 409
        assert await shown(browser, url) == {"n": "theirs"}


# Visitors who leave.


@pytest.mark.parametrize("when", ["waiting", "holding", "streaming"])
async def test_a_browser_that_goes_away_leaves_nothing_held(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession, when: str, caplog: pytest.LogCaptureFixture
) -> None:
    stop = Stop()

    async def hold(request: Any) -> str:
        async with site.web.open_session(request) as session:
            session["n"] = "held"
            await stop.here()
        return "done"

    async def chunks(request: Any) -> AsyncIterator[str]:
        async with site.web.open_session(request) as session:
            session["n"] = "held"
            yield "one"
            await stop.here()
            yield "two" * 100_000

    add_basics(site)
    site.add("/hold", hold)
    site.add_stream("/stream", chunks)
    async with site.serve(store) as url:
        session_id = await visit(browser, url + "/put?key=n&value=1")
        async with new_browser(cookies={"session": session_id}) as fickle:
            if when == "waiting":
                async with store.open(session_id):
                    leaving = asyncio.create_task(status_of(fickle, url + "/put?key=n&value=2"))
                    await until(lambda: store.statistics().waiting == 1)
                    leaving.cancel()
                    await asyncio.wait([leaving])
                    await fickle.close()
            else:
                leaving = asyncio.create_task(status_of(fickle, url + ("/hold" if when == "holding" else "/stream")))
                await stop.reached.wait()
                leaving.cancel()
                await asyncio.wait([leaving])
                await fickle.close()
                stop.may_go.set()
        await until(lambda: store.statistics().open == store.statistics().waiting == 0)
        await visit(browser, url + "/put?key=n&value=3")
        assert await shown(browser, url) == {"n": "3"}
        await until(lambda: store.statistics().holding == 0)
    caplog.clear()


# What comes in cookies.

MADE_UP = [
    "", "../x", "/etc/passwd", ".", "x" * 5000, "%2e%2e", "*", "x" * 42, "x" * 44, "é" * 43, "a" * 42 + ".", '"', "=",
]  # fmt: skip


async def test_whatever_a_cookie_says_nothing_is_looked_up_but_ids(
    site: Site, store: SessionStore, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_basics(site)
    read: list[str] = []
    async with site.serve(store) as url, aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as attacker:
        monkeypatch.setattr(store.backend, "read", read.append)
        for value in MADE_UP:
            async with attacker.get(url + "/show", headers={"Cookie": f"session={value}"}) as response:
                assert (response.status, await response.text()) == (200, "{}")
    assert read == []
    assert [path for path in directory.rglob("*") if path.is_file()] == []


async def test_a_session_that_a_visitor_fills_is_answered_by_413(
    site: Site, new_store: NewStore, browser: aiohttp.ClientSession
) -> None:
    async def fill(request: Any) -> str:
        await site.web.apply_session(request, append("list", "x" * 600))
        return "filled"

    site.add("/fill", fill)
    async with site.serve(new_store(max_size=1000)) as url:
        assert [await status_of(browser, url + "/fill") for _ in range(3)] == [200, 413, 413]


def test_what_is_answered_is_no_secret() -> None:
    for error in (ConflictError([]), SessionNotFoundError("x"), LockTimeoutError(1.0, None)):
        answer = answer_to(error)
        assert answer is not None
        assert "x" not in answer.text.split()
    assert answer_to(SessionError("a mistake")) is None
