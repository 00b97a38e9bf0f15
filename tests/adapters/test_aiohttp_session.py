from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from decimal import Decimal
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import aiohttp_session
import pytest
import time_machine
from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestClient, TestServer
from aiohttp_session import SimpleCookieStorage, get_session, new_session

from asyncsess import ConflictError, FileStore, JSONCodec, SessionNotFoundError, rules
from asyncsess.adapters.aiohttp_session import AsyncsessStorage
from tests.adapters.conftest import Gate
from tests.conftest import keys_of

# aiohttp-session itself keeps things under such keys.
pytestmark = pytest.mark.filterwarnings("ignore:It is recommended to use web.RequestKey:aiohttp.web.NotAppKeyWarning")

Change = Callable[[aiohttp_session.Session], object]
COOKIE = "AIOHTTP_SESSION"


class Site:
    """A running application whose handlers do to their session what a test says."""

    def __init__(self, storage: AsyncsessStorage) -> None:
        self.errors: list[Exception] = []
        self.app = web.Application(middlewares=[self._noting_errors])
        aiohttp_session.setup(self.app, storage)
        self.app.router.add_get("/", self._handle)
        self.client: TestClient[web.Request, web.Application] = TestClient(TestServer(self.app))
        self._handlers: dict[str, Callable[[web.Request], Awaitable[web.StreamResponse]]] = {}

    @web.middleware
    async def _noting_errors(self, request: web.Request, handler: Any) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPException:
            raise
        except Exception as error:  # of which aiohttp makes a response with status 500
            self.errors.append(error)
            raise

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        return await self._handlers.pop(request.query["handler"])(request)

    async def request(
        self, handler: Callable[[web.Request], Awaitable[web.StreamResponse]], **options: Any
    ) -> ClientResponse:
        name = str(len(self._handlers))
        self._handlers[name] = handler
        return await self.client.get("/", params={"handler": name}, **options)

    async def change(self, change: Change = lambda session: None, gate: Gate | None = None) -> ClientResponse:
        """Send a request that loads its session, waits at a gate, and changes the session."""

        async def handler(request: web.Request) -> web.Response:
            session = await get_session(request)
            if gate:
                dict(session)
                await gate.wait()
            result = change(session)
            return web.json_response([result if isinstance(result, str | int | list | dict) else None])

        return await self.request(handler)

    async def values(self) -> dict[str, Any]:
        return (await (await self.change(dict)).json())[0]

    @property
    def cookie(self) -> str | None:
        found = self.client.session.cookie_jar.filter_cookies(self.client.make_url("/")).get(COOKIE)
        return found.value if found else None


NewSite = Callable[..., Awaitable[Site]]


@pytest.fixture
async def new_site(files: FileStore) -> AsyncIterator[NewSite]:
    sites: list[Site] = []

    async def make(store: FileStore | None = None, **options: Any) -> Site:
        site = Site(AsyncsessStorage(store or files, **options))
        sites.append(site)
        await site.client.start_server()
        return site

    yield make
    for site in sites:
        await site.client.close()


@pytest.fixture
async def site(new_site: NewSite) -> Site:
    return await new_site()


async def test_a_session_is_kept_from_request_to_request(site: Site) -> None:
    await site.change(lambda session: session.update(name="Ada", cart=["tea"]))
    assert await site.values() == {"name": "Ada", "cart": ["tea"]}


async def test_concurrent_changes_of_different_keys_are_both_kept(site: Site) -> None:
    await site.change(lambda session: session.update(name="Ada"))
    gate = Gate(2)
    one = asyncio.create_task(site.change(lambda session: session.update(one=1), gate))
    other = asyncio.create_task(site.change(lambda session: session.update(other=2), gate))
    await gate.open()
    assert [(await one).status, (await other).status] == [200, 200]
    assert await site.values() == {"name": "Ada", "one": 1, "other": 2}


@pytest.mark.parametrize("rule", [rules.append, rules.union])
async def test_concurrent_appends_are_both_kept_by_a_rule(new_site: NewSite, rule: rules.Rule) -> None:
    site = await new_site(resolve={"cart": rule})
    await site.change(lambda session: session.update(cart=["tea"]))
    gate = Gate(2)
    appends = [asyncio.create_task(site.change(lambda s, i=i: s["cart"].append(i), gate)) for i in ("milk", "rum")]
    await gate.open()
    assert [(await task).status for task in appends] == [200, 200]
    assert sorted((await site.values())["cart"]) == ["milk", "rum", "tea"]


async def test_concurrent_increments_are_both_counted_by_a_rule(new_site: NewSite) -> None:
    site = await new_site(resolve={"hits": rules.add})
    await site.change(lambda session: session.update(hits=1))
    gate = Gate(2)
    tasks = [asyncio.create_task(site.change(lambda s: s.update(hits=s["hits"] + 1), gate)) for _ in range(2)]
    await gate.open()
    await asyncio.gather(*tasks)
    assert await site.values() == {"hits": 3}


async def test_without_a_rule_one_of_two_concurrent_appends_is_told(site: Site) -> None:
    await site.change(lambda session: session.update(cart=["tea"]))
    gate = Gate(2)
    appends = [asyncio.create_task(site.change(lambda s, i=i: s["cart"].append(i), gate)) for i in ("milk", "rum")]
    await gate.open()
    assert sorted([(await task).status for task in appends]) == [200, 500]
    assert [type(error) for error in site.errors] == [ConflictError]
    assert len((await site.values())["cart"]) == 2


async def test_a_reader_beside_a_writer_undoes_nothing(site: Site, files: FileStore) -> None:
    await site.change(lambda session: session.update(name="Ada"))
    gate = Gate()
    reader = asyncio.create_task(site.change(gate=gate))
    await gate.until_all_wait()
    await site.change(lambda session: session.update(name="Bob"))
    committed = files.statistics().committed_bytes
    await gate.open()
    assert (await reader).status == 200
    assert files.statistics().committed_bytes == committed
    assert await site.values() == {"name": "Bob"}


async def test_a_logout_beside_a_slow_request_stays(site: Site, files: FileStore) -> None:
    await site.change(lambda session: session.update(user="Ada"))
    gate = Gate(2)
    writer = asyncio.create_task(site.change(lambda session: session.update(late=True), gate))
    reader = asyncio.create_task(site.change(gate=gate))
    await gate.until_all_wait()
    response = await site.change(lambda session: session.invalidate())
    assert response.headers["Set-Cookie"].startswith(f'{COOKIE}=""')
    await gate.open()
    assert [(await writer).status, (await reader).status] == [500, 200]
    assert [type(error) for error in site.errors] == [SessionNotFoundError]
    assert await keys_of(files) == []
    assert await site.values() == {}


@pytest.mark.parametrize("change", [lambda s: s["user"]["roles"].append("admin"), lambda s: s["user"].clear()])
async def test_a_nested_change_is_stored(site: Site, change: Change) -> None:
    await site.change(lambda session: session.update(user={"roles": []}))
    await site.change(change)
    assert await site.values() != {"user": {"roles": []}}


@pytest.mark.parametrize("change", [dict, lambda session: session.changed(), lambda session: session.pop("name", 0)])
async def test_an_anonymous_visitor_stores_nothing(site: Site, files: FileStore, change: Change) -> None:
    response = await site.change(change)
    assert "Set-Cookie" not in response.headers
    assert await keys_of(files) == []


@pytest.mark.parametrize("cookie", ["x", "chosen-by-the-client-" * 8, "../../etc/passwd", ".:.", "null", "a%00b"])
async def test_an_id_that_nobody_issued_is_not_adopted(site: Site, cookie: str) -> None:
    site.client.session.cookie_jar.update_cookies({COOKIE: cookie}, site.client.make_url("/"))
    assert await site.values() == {}
    await site.change(lambda session: session.update(name="Ada"))
    assert site.cookie != cookie
    assert len(site.cookie or "") == 43
    assert await site.values() == {"name": "Ada"}


async def test_the_id_is_not_on_the_disk(site: Site, files: FileStore, directory: Path) -> None:
    await site.change(lambda session: session.update(name="Ada"))
    found = await keys_of(files)
    assert site.cookie
    assert found != [hashlib.sha256(site.cookie.encode()).hexdigest()]
    assert not any(site.cookie.encode() in path.read_bytes() for path in directory.rglob("*") if path.is_file())


async def test_a_handler_may_choose_the_id_of_a_new_session(site: Site) -> None:
    async def handler(request: web.Request) -> web.Response:
        session = await new_session(request)
        session.set_new_identity("№ 7")
        session["name"] = "Ada"
        return web.Response()

    await site.request(handler)
    response = await site.request(lambda request: _answer(request), cookies={COOKIE: "№ 7"})
    assert await response.json() == {"name": "Ada"}


async def _answer(request: web.Request) -> web.Response:
    return web.json_response(dict(await get_session(request)))


async def test_what_is_put_into_an_ended_session_begins_another(site: Site, files: FileStore) -> None:
    await site.change(lambda session: session.update(user="Ada", cart=["tea"]))
    before = site.cookie
    gate = Gate()
    late = asyncio.create_task(site.change(lambda session: session.update(late=True), gate))
    await gate.until_all_wait()

    def log_in_as_another(session: aiohttp_session.Session) -> None:
        session.clear()
        session["user"] = "Bob"

    await site.change(log_in_as_another)
    await gate.open()
    assert (await late).status == 500
    assert site.cookie not in (before, None)
    assert await site.values() == {"user": "Bob"}
    assert len(await keys_of(files)) == 1


async def test_a_new_session_ends_the_one_before(site: Site, files: FileStore) -> None:
    async def log_in(request: web.Request) -> web.Response:
        (await new_session(request))["user"] = "Ada"
        return web.Response()

    await site.change(lambda session: session.update(planted=True))
    before = site.cookie
    await site.request(log_in)
    assert site.cookie != before
    assert await site.values() == {"user": "Ada"}
    assert len(await keys_of(files)) == 1


async def test_removing_the_last_key_keeps_what_others_added(site: Site) -> None:
    await site.change(lambda session: session.update(flash="hello"))
    gate = Gate(2)
    one = asyncio.create_task(site.change(lambda session: session.pop("flash"), gate))
    other = asyncio.create_task(site.change(lambda session: session.update(cart=["tea"]), gate))
    await gate.open()
    await asyncio.gather(one, other)
    assert await site.values() == {"cart": ["tea"]}


async def test_a_session_ends_max_age_after_it_was_last_changed(new_site: NewSite) -> None:
    site = await new_site(max_age=100)
    with time_machine.travel(2_000_000_000) as wall:
        response = await site.change(lambda session: session.update(cart=["tea"]))
        cookie = SimpleCookie(response.headers["Set-Cookie"])[COOKIE]
        assert (cookie["max-age"], cookie["expires"]) == ("100", "Wed, 18-May-2033 03:35:00 GMT")
        kept = {COOKIE: cookie.value}
        wall.shift(90)
        await site.request(lambda request: _append(request), cookies=kept)
        wall.shift(90)
        assert await (await site.request(_answer, cookies=kept)).json() == {"cart": ["tea", "milk"]}
        wall.shift(20)
        assert await (await site.request(_answer, cookies=kept)).json() == {}


async def _append(request: web.Request) -> web.Response:
    (await get_session(request))["cart"].append("milk")
    return web.Response()


async def test_a_session_tells_when_it_was_last_changed(site: Site) -> None:
    with time_machine.travel(2_000_000_000) as wall:
        await site.change(lambda session: session.update(cart=["tea"]))
        wall.shift(90)
        assert await (await site.change(lambda session: session.created)).json() == [2_000_000_000]
        await site.change(lambda session: session["cart"].append("milk"))
        wall.shift(90)
        assert await (await site.change(lambda session: session.created)).json() == [2_000_000_090]


async def test_a_session_that_was_marked_as_changed_is_renewed(new_site: NewSite) -> None:
    site = await new_site(max_age=100)

    async def renew(request: web.Request) -> web.Response:
        (await get_session(request)).changed()
        return web.Response()

    with time_machine.travel(2_000_000_000) as wall:
        response = await site.change(lambda session: session.update(user="Ada"))
        kept = {COOKIE: SimpleCookie(response.headers["Set-Cookie"])[COOKIE].value}
        wall.shift(90)
        await site.request(renew, cookies=kept)
        wall.shift(90)
        assert await (await site.request(_answer, cookies=kept)).json() == {"user": "Ada"}


async def test_a_max_age_that_a_handler_gave_stays_with_its_session(new_site: NewSite) -> None:
    site = await new_site(max_age=100)

    def remember(session: aiohttp_session.Session) -> None:
        session["user"] = "Ada"
        session.max_age = 1000

    with time_machine.travel(2_000_000_000) as wall:
        kept = {COOKIE: SimpleCookie((await site.change(remember)).headers["Set-Cookie"])[COOKIE].value}
        wall.shift(900)
        response = await site.request(lambda request: _visit(request), cookies=kept)
        assert SimpleCookie(response.headers["Set-Cookie"])[COOKIE]["max-age"] == "1000"
        wall.shift(900)
        assert await (await site.request(_answer, cookies=kept)).json() == {"user": "Ada", "visits": 1}


async def _visit(request: web.Request) -> web.Response:
    (await get_session(request))["visits"] = 1
    return web.Response()


async def test_a_slow_request_does_not_take_back_a_longer_max_age(new_site: NewSite) -> None:
    site = await new_site(max_age=100)
    await site.change(lambda session: session.update(user="Ada"))
    gate = Gate()
    slow = asyncio.create_task(site.change(lambda session: session.update(slow=True), gate))
    await gate.until_all_wait()

    def remember(session: aiohttp_session.Session) -> None:
        session["remember"] = True
        session.max_age = 1000

    await site.change(remember)
    await gate.open()
    assert SimpleCookie((await slow).headers["Set-Cookie"])[COOKIE]["max-age"] == "1000"
    assert await (await site.change(lambda session: session.max_age)).json() == [1000]


async def test_a_session_that_expires_during_a_request_goes_on(new_site: NewSite) -> None:
    site = await new_site(max_age=100)
    with time_machine.travel(2_000_000_000) as wall:
        response = await site.change(lambda session: session.update(user="Ada"))
        kept = {COOKIE: SimpleCookie(response.headers["Set-Cookie"])[COOKIE].value}

        async def slow(request: web.Request) -> web.Response:
            session = await get_session(request)
            wall.shift(150)
            session["slow"] = True
            return web.Response()

        assert (await site.request(slow, cookies=kept)).status == 200
        assert await (await site.request(_answer, cookies=kept)).json() == {"user": "Ada", "slow": True}


async def test_the_limits_of_the_store_hold_too(new_site: NewSite, directory: Path) -> None:
    async with FileStore(directory, idle_timeout=50, sweep_interval=None) as store:
        site = await new_site(store)
        with time_machine.travel(2_000_000_000) as wall:
            await site.change(lambda session: session.update(user="Ada"))
            wall.shift(49)
            assert await site.values() == {"user": "Ada"}
            wall.shift(51)
            assert await site.values() == {}


async def test_cookies_are_set_as_by_the_storages_of_aiohttp_session(new_site: NewSite) -> None:
    options: dict[str, Any] = {
        "cookie_name": "SID",
        "domain": "127.0.0.1",
        "max_age": 60,
        "path": "/app",
        "secure": True,
        "httponly": False,
        "samesite": "Strict",
    }
    site = await new_site(**options)
    storage, expected = SimpleCookieStorage(**options), web.Response()
    with time_machine.travel(2_000_000_000, tick=False):
        storage.save_cookie(expected, "value", max_age=60)
        response = await site.change(lambda session: session.update(name="Ada"))
    found = SimpleCookie(response.headers["Set-Cookie"])["SID"]
    assert dict(found) == dict(SimpleCookie(expected.cookies["SID"].OutputString())["SID"])


async def test_values_go_through_the_encoder_and_the_decoder(new_site: NewSite) -> None:
    def encode(value: object) -> str:
        return json.dumps(value, default=lambda number: {"decimal": str(number)})

    def decode(text: str) -> Any:
        return json.loads(text, object_hook=lambda found: Decimal(found["decimal"]) if "decimal" in found else found)

    site = await new_site(encoder=encode, decoder=decode, resolve={"total": rules.ours})
    await site.change(lambda session: session.update(total=Decimal("1.5"), pair=(1, 2)))
    gate = Gate(2)
    tasks = [asyncio.create_task(site.change(lambda s, n=n: s.update({"total": Decimal(n), n: 1}), gate)) for n in "34"]
    await gate.open()
    assert [(await task).status for task in tasks] == [200, 200]
    shown = (await (await site.change(repr)).json())[0]
    assert "'3': 1" in shown
    assert "'4': 1" in shown
    assert "'pair': [1, 2]" in shown
    assert "Decimal('3')" in shown or "Decimal('4')" in shown


async def test_what_the_encoder_refuses_is_told_and_nothing_is_stored(site: Site) -> None:
    await site.change(lambda session: session.update(user={}))
    for change in (lambda session: session.update(bad=object()), lambda session: session["user"].update(bad=object())):
        assert (await site.change(change)).status == 500
    assert [type(error) for error in site.errors] == [TypeError, TypeError]
    assert await site.values() == {"user": {}}


async def test_what_the_decoder_does_not_understand_is_told(site: Site, new_site: NewSite) -> None:
    await site.change(lambda session: session.update(name="Ada"))
    other = await new_site(decoder=lambda text: text)
    response = await other.request(_answer, cookies={COOKIE: site.cookie})
    assert response.status == 500
    assert "makes a str of the stored session" in str(other.errors[0])


async def test_a_session_saved_before_a_stream_may_be_saved_again(new_site: NewSite, files: FileStore) -> None:
    storage = AsyncsessStorage(files, resolve=rules.add)
    site = await new_site(resolve=rules.add)

    async def stream(request: web.Request) -> web.StreamResponse:
        session, response = await get_session(request), web.StreamResponse()
        session["sent"] = session.get("sent", 0) + 1
        await storage.save_session(request, response, session)
        await response.prepare(request)
        await response.write(b"...")
        session["sent"] += 1
        await storage.save_session(request, web.Response(), session)
        return response

    await site.request(stream)
    assert await site.values() == {"sent": 2}
    await site.request(stream)
    assert await site.values() == {"sent": 4}
    assert len(await keys_of(files)) == 1


async def test_the_session_of_a_redirect_is_stored(site: Site) -> None:
    async def log_in(request: web.Request) -> web.Response:
        (await get_session(request))["user"] = "Ada"
        raise web.HTTPFound("/welcome")

    assert (await site.request(log_in, allow_redirects=False)).status == 302
    assert await site.values() == {"user": "Ada"}


async def test_a_store_with_another_codec_serves_too(new_site: NewSite, directory: Path) -> None:
    async with FileStore(directory, codec=JSONCodec(), sweep_interval=None) as store:
        site = await new_site(store)
        await site.change(lambda session: session.update(name="Ada"))
        assert await site.values() == {"name": "Ada"}


async def test_a_store_serves_the_loops_of_several_threads_at_once(site: Site, files: FileStore) -> None:
    await site.change(lambda session: session.update(here=0, there=0))
    gate, cookie = Gate(2), {COOKIE: site.cookie}
    statuses: list[int] = []

    async def from_another_loop() -> None:
        other = Site(AsyncsessStorage(files))

        async def handler(request: web.Request) -> web.Response:
            session = await get_session(request)
            await gate.wait()
            session["there"] += 1
            return web.Response()

        await other.client.start_server()
        statuses.append((await other.request(handler, cookies=cookie)).status)
        await other.client.close()

    thread = threading.Thread(target=asyncio.run, args=[from_another_loop()])
    thread.start()
    here = asyncio.create_task(site.change(lambda session: session.update(here=1), gate))
    await gate.open()
    assert (await here).status == 200
    await asyncio.to_thread(thread.join)
    assert statuses == [200]
    assert await site.values() == {"here": 1, "there": 1}
