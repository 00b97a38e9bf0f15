"""A request that opens its session in several ways has one session, and its browser is told of that."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import aiohttp
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from asyncsess import DeadlockError, LockTimeoutError, SessionStore, append, increment
from asyncsess.backends.file.held import FileHeld
from asyncsess.testing import FakeClock
from asyncsess.web import CookiePolicy, asgi, login, logout
from tests.conftest import NewStore, keys_of, stored
from tests.web.conftest import new_browser, status_of, visit
from tests.web.pages import add_basics, shown
from tests.web.sites import PLAIN, Site, by_uvicorn

Way = Callable[[Site, Any], Awaitable[object]]


@pytest.fixture
async def store(new_store: NewStore) -> SessionStore:
    return new_store()


async def logs_in_then_leaves_a_message(site: Site, request: Any) -> None:
    await login(await site.web.get_session(request), "ada")
    await site.web.flash(request, "hi")


async def logs_in_then_opens(site: Site, request: Any) -> None:
    await login(await site.web.get_session(request), "ada")
    async with site.web.open_session(request) as session:
        session["_flashes"] = [["hi", "info"]]


async def logs_in_and_leaves_a_message_in_an_edit(site: Site, request: Any) -> None:
    async with site.web.edit_session(request) as session:
        await login(session, "ada")
        await site.web.flash(request, "hi")


async def logs_in_and_leaves_a_message_while_it_is_locked(site: Site, request: Any) -> None:
    async with site.web.open_session(request) as session:
        await login(session, "ada")
        await site.web.flash(request, "hi")


async def edits_while_another_block_logs_in(site: Site, request: Any) -> None:
    async with site.web.edit_session(request) as edited:
        await login(await site.web.get_session(request), "ada")
        edited["_flashes"] = [["hi", "info"]]


ADA = {"_owner": {"id": "ada", "label": ""}, "_flashes": [["hi", "info"]]}


async def saves_then_leaves_a_message(site: Site, request: Any) -> None:
    session = await site.web.get_session(request)
    session["a"] = 1
    await session.save()
    await site.web.flash(request, "hi")


async def saves_and_leaves_a_message_in_an_edit(site: Site, request: Any) -> None:
    async with site.web.edit_session(request) as session:
        session["a"] = 1
        await session.save()
        await site.web.flash(request, "hi")


async def locks_a_variable_and_leaves_a_message(site: Site, request: Any) -> None:
    async with site.web.synchronize_session(request, "a") as session:
        session["a"] = 1
        await site.web.flash(request, "hi")


SAVED = {"a": 1, "_flashes": [["hi", "info"]]}


async def logs_out_then_leaves_a_message(site: Site, request: Any) -> None:
    await logout(await site.web.get_session(request))
    await site.web.flash(request, "hi")


async def leaves_a_message_where_it_has_logged_out(site: Site, request: Any) -> None:
    async with site.web.open_session(request) as session:
        await logout(session)
        await site.web.flash(request, "hi")


LEFT = {"_flashes": [["hi", "info"]]}
WAYS: dict[Way, dict[str, Any]] = {
    logs_in_then_leaves_a_message: ADA,
    logs_in_then_opens: ADA,
    logs_in_and_leaves_a_message_in_an_edit: ADA,
    logs_in_and_leaves_a_message_while_it_is_locked: ADA,
    saves_then_leaves_a_message: SAVED,
    saves_and_leaves_a_message_in_an_edit: SAVED,
    locks_a_variable_and_leaves_a_message: SAVED,
    logs_out_then_leaves_a_message: LEFT,
    leaves_a_message_where_it_has_logged_out: LEFT,
}


@pytest.mark.parametrize("is_new", [False, True], ids=["known", "new"])
@pytest.mark.parametrize(("way", "values"), WAYS.items(), ids=[way.__name__ for way in WAYS])
async def test_whatever_a_request_does_with_its_session_is_in_one(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession, way: Way, values: dict[str, Any], is_new: bool
) -> None:
    async def handle(request: Any) -> str:
        await way(site, request)
        return "done"

    add_basics(site)
    site.add("/handle", handle)
    async with site.serve(store) as url:
        if not is_new:
            await visit(browser, url + "/put?key=n&value=1")
        assert await visit(browser, url + "/handle") == "done"
        kept = {} if is_new or values is LEFT else {"n": "1"}
        assert await shown(browser, url) == kept | values
        assert len(await keys_of(store)) == 1


async def test_an_edit_goes_on_under_the_id_that_another_block_gives(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession
) -> None:
    async def handle(request: Any) -> str:
        await edits_while_another_block_logs_in(site, request)
        return "done"

    add_basics(site)
    site.add("/handle", handle)
    async with site.serve(store) as url:
        await visit(browser, url + "/put?key=n&value=1")
        assert await visit(browser, url + "/handle") == "done"
        assert await shown(browser, url) == {"n": "1"} | ADA


async def test_a_session_that_others_end_in_the_meantime_is_not_told_again(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession, clock: FakeClock
) -> None:
    async def handle(request: Any) -> str:
        session = await site.web.get_session(request)
        await login(session, "ada")
        clock.advance(1)
        await store.destroy(session.id)
        await site.web.flash(request, "hi")
        return "done"

    site.add("/handle", handle)
    async with site.serve(store) as url, browser.get(url + "/handle") as response:
        assert response.status == 409


async def test_a_visitor_who_logs_out_in_another_block_begins_anew(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession
) -> None:
    async def handle(request: Any) -> str:
        session = await site.web.get_session(request)
        session["a"] = 1
        await session.save()
        async with site.web.open_session(request) as locked:
            await logout(locked)
        await site.web.flash(request, "bye")
        return "done"

    add_basics(site)
    site.add("/handle", handle)
    async with site.serve(store) as url:
        assert await visit(browser, url + "/handle") == "done"
        assert await shown(browser, url) == {"_flashes": [["bye", "info"]]}


async def test_the_newest_of_several_ids_is_told(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession
) -> None:
    async def handle(request: Any) -> str:
        async with site.web.open_session(request) as session:
            await session.regenerate_id(grace=0)
            await session.release()
            async with site.web.open_session(request) as again:
                await login(again, "ada")
        return "done"

    add_basics(site)
    site.add("/handle", handle)
    async with site.serve(store) as url:
        await visit(browser, url + "/put?key=n&value=1")
        assert await visit(browser, url + "/handle") == "done"
        assert (await shown(browser, url))["_owner"]["id"] == "ada"


@pytest.mark.parametrize("io", ["loop", "thread"])
async def test_operations_of_a_new_visitor_at_once_are_all_stored(
    site: Site, new_store: NewStore, browser: aiohttp.ClientSession, io: str
) -> None:
    async def handle(request: Any) -> str:
        await asyncio.gather(*(site.web.apply_session(request, increment(key)) for key in "abc"))
        return "done"

    add_basics(site)
    site.add("/handle", handle)
    async with site.serve(new_store(io=io)) as url:
        await visit(browser, url + "/handle")
        assert await shown(browser, url) == {"a": 1, "b": 1, "c": 1}


async def test_two_that_begin_the_session_at_once_on_a_slow_disk_are_not_two_in_silence(
    site: Site, new_store: NewStore, browser: aiohttp.ClientSession
) -> None:
    async def put(request: Any, key: str) -> None:
        async with site.web.open_session(request) as session:
            session[key] = 1

    async def handle(request: Any) -> str:
        begins = asyncio.create_task(put(request, "a"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        with pytest.raises(DeadlockError, match="begins its session in another block"):
            await put(request, "b")
        await begins
        return "done"

    add_basics(site)
    site.add("/handle", handle)
    store = new_store(io="thread")
    async with site.serve(store) as url:
        assert await visit(browser, url + "/handle") == "done"
        assert await shown(browser, url) == {"a": 1}
        assert len(await keys_of(store)) == 1


async def test_what_a_handler_has_of_its_session_stays_part_of_it(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession
) -> None:
    async def handle(request: Any) -> str:
        async with site.web.open_session(request) as session:
            session["cart"], session["user"] = ["cup"], {"name": "ada"}
            cart, user = session["cart"], session["user"]
            await site.web.apply_session(request, append("cart", "tea"), increment(("user", "visits")))
            cart.append("pot")
            user["age"] = 36
        return "done"

    add_basics(site)
    site.add("/handle", handle)
    async with site.serve(store) as url:
        await visit(browser, url + "/handle")
        user = {"name": "ada", "visits": 1, "age": 36}
        assert await shown(browser, url) == {"cart": ["cup", "tea", "pot"], "user": user}


@pytest.mark.parametrize("way", ["open", "get"])
async def test_a_login_that_was_cancelled_once_it_was_done_is_told(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    delete = FileHeld.delete

    async def delete_and_be_cancelled(self: FileHeld, tombstone: Any = None, *, now: float) -> None:
        await delete(self, tombstone, now=now)
        raise asyncio.CancelledError

    async def handle(request: Any) -> str:
        session = await site.web.get_session(request) if way == "get" else None
        try:
            if session is not None:
                await login(session, "ada")
            else:
                async with site.web.open_session(request) as session:
                    await login(session, "ada")
        except asyncio.CancelledError:
            return "too slow"
        return "done"

    add_basics(site)
    site.add("/handle", handle)
    async with site.serve(store) as url:
        await visit(browser, url + "/put?key=n&value=1")
        with monkeypatch.context() as patch:
            patch.setattr(FileHeld, "delete", delete_and_be_cancelled)
            assert await visit(browser, url + "/handle") == "too slow"
        assert (await shown(browser, url))["n"] == "1"


@pytest.mark.parametrize("answer", ["404", "error"])
async def test_a_value_that_can_not_be_stored_does_not_hide_another_answer(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession, answer: str
) -> None:
    async def handle(request: Any) -> tuple[int, str]:
        (await site.web.get_session(request))["n"] = object()
        if answer == "error":
            raise LockTimeoutError(1.0, None)
        return 404, "not here"

    add_basics(site)
    site.add("/handle", handle)
    async with site.serve(store) as url:
        await visit(browser, url + "/put?key=n&value=1")
        assert await status_of(browser, url + "/handle") == (503 if answer == "error" else 404)
        assert await shown(browser, url) == {"n": "1"}


# ASGI.


class Facade(Mapping[str, Any]):
    def __init__(self, session: Any) -> None:
        self._session = session

    def __getitem__(self, key: str) -> Any:
        return self._session[key]

    def __iter__(self) -> Any:
        return iter(self._session)

    def __len__(self) -> int:
        return len(self._session)


@pytest.mark.parametrize("is_whole", [True, False])
async def test_what_reads_from_the_session_may_take_its_place(store: SessionStore, is_whole: bool) -> None:
    async def endpoint(request: Request) -> PlainTextResponse:
        session = await asgi.get_session(request) if is_whole else request.session
        request.scope["session"] = Facade(session)
        return PlainTextResponse("done")

    session_id = await store.create({"n": 1})
    app = asgi.SessionMiddleware(Starlette(routes=[Route("/", endpoint)]), store, PLAIN)
    async with by_uvicorn(app) as url, new_browser(cookies={"session": session_id}) as visitor:
        assert await visit(visitor, url) == "done"
        assert await stored(store, session_id) == {"n": 1}


async def test_a_cookie_of_a_longer_path_is_found_beside_one_of_the_root(store: SessionStore) -> None:
    async def endpoint(request: Request) -> PlainTextResponse:
        request.session["n"] += 1
        return PlainTextResponse("done")

    cookie = CookiePolicy("session", secure=False, path="/app")
    app = asgi.SessionMiddleware(Starlette(routes=[Route("/app", endpoint)]), store, cookie)
    async with by_uvicorn(app) as url, aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as client:
        mine, theirs = await store.create({"n": 1}), await store.create({"n": 10})
        async with client.get(url + "/app", headers={"Cookie": f"session={mine}; session={theirs}"}) as response:
            assert response.status == 200
        assert [await stored(store, session_id) for session_id in (mine, theirs)] == [{"n": 2}, {"n": 10}]


async def test_an_application_that_goes_on_after_its_500_has_sent_it(store: SessionStore) -> None:
    left = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "http.request"
        await send({"type": "http.response.start", "status": 500, "headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": b"sorry"})
        assert (await receive())["type"] == "http.disconnect"
        left.set()

    async with by_uvicorn(asgi.SessionMiddleware(app, store, PLAIN), lifespan="off") as url, new_browser() as visitor:
        async with asyncio.timeout(10), visitor.get(url) as response:
            assert (response.status, await response.text()) == (500, "sorry")
        await asyncio.wait_for(left.wait(), 10)
    await store.aclose()


async def test_parts_of_a_500_leave_in_order(store: SessionStore) -> None:
    sent: list[Any] = []

    async def slow(message: Any) -> None:
        await asyncio.sleep(0.01)
        sent.append(message.get("body", "start"))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 500, "headers": []})
        leaving = asyncio.create_task(receive())
        await send({"type": "http.response.body", "body": b"1", "more_body": True})
        await asyncio.sleep(0.005)
        await send({"type": "http.response.body", "body": b"2"})
        await leaving

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    await asgi.SessionMiddleware(app, store, PLAIN, scope_key=None)({"type": "http", "headers": []}, receive, slow)
    assert sent == ["start", b"1", b"2"]
