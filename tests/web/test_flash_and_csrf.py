"""Messages for the next page, and tokens for forms."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from asyncsess import SessionStore
from asyncsess.web import aiohttp as for_aiohttp
from asyncsess.web import asgi, login
from tests.conftest import NewStore, keys_of
from tests.web.conftest import new_browser, visit
from tests.web.pages import add_basics, shown
from tests.web.sites import PLAIN, AiohttpSite, Site, by_uvicorn


@pytest.fixture
async def store(new_store: NewStore) -> SessionStore:
    return new_store()


# Messages.


def add_messages(site: Site) -> None:
    async def leave(request: Any) -> str:
        await site.web.flash(request, site.query(request, "text"))
        await site.web.flash(request, "look out", "warning")
        return "left"

    async def see(request: Any) -> str:
        return "|".join(f"{flash.category}: {flash.text}" for flash in await site.web.get_flashes(request))

    site.add("/leave", leave)
    site.add("/see", see)


async def test_a_message_is_seen_once_on_the_next_page(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession
) -> None:
    add_basics(site)
    add_messages(site)
    async with site.serve(store) as url:
        assert await visit(browser, url + "/see") == ""
        assert await keys_of(store) == []
        await visit(browser, url + "/leave?text=saved")
        assert await visit(browser, url + "/see") == "info: saved|warning: look out"
        assert await visit(browser, url + "/see") == ""
        assert await shown(browser, url) == {}


async def test_of_several_pages_at_once_one_shows_the_messages(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession
) -> None:
    add_messages(site)
    async with site.serve(store) as url:
        await visit(browser, url + "/leave?text=saved")
        pages = await asyncio.gather(*(visit(browser, url + "/see") for _ in range(8)))
    assert sorted(pages) == [""] * 7 + ["info: saved|warning: look out"]


async def test_a_page_without_messages_waits_for_nobody(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession
) -> None:
    add_basics(site)
    add_messages(site)
    async with site.serve(store) as url:
        session_id = await visit(browser, url + "/put?key=n&value=1")
        async with store.open(session_id):
            assert await visit(browser, url + "/see") == ""


@pytest.mark.parametrize("is_new", [False, True], ids=["known", "new"])
@pytest.mark.parametrize("way", ["open", "edit", "get"])
async def test_a_message_in_a_block_that_has_the_session_is_committed_with_it(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession, way: str, is_new: bool
) -> None:
    async def leave(request: Any) -> str:
        if way == "get":
            (await site.web.get_session(request))["n"] = "2"
            await site.web.flash(request, "saved")
            return await site.web.csrf_token(request)
        opens = site.web.open_session if way == "open" else site.web.edit_session
        async with opens(request) as session:
            session["n"] = "2"
            await site.web.flash(request, "saved")
            return await site.web.csrf_token(request)

    async def token(request: Any) -> str:
        return await site.web.csrf_token(request)

    add_basics(site)
    add_messages(site)
    site.add("/both", leave)
    site.add("/token", token)
    async with site.serve(store) as url:
        if not is_new:
            await visit(browser, url + "/put?key=n&value=1")
        given = await visit(browser, url + "/both")
        assert await visit(browser, url + "/see") == "info: saved"
        assert await visit(browser, url + "/token") == given
        assert (await shown(browser, url))["n"] == "2"
        assert len(await keys_of(store)) == 1


async def test_a_message_in_a_block_that_fails_is_not_left(
    site: Site, store: SessionStore, browser: aiohttp.ClientSession
) -> None:
    async def leave(request: Any) -> tuple[int, str]:
        with pytest.raises(ZeroDivisionError):
            async with site.web.open_session(request):
                await site.web.flash(request, "saved")
                raise ZeroDivisionError
        return 200, "failed"

    add_basics(site)
    add_messages(site)
    site.add("/leave_then_fail", leave)
    async with site.serve(store) as url:
        await visit(browser, url + "/put?key=n&value=1")
        assert await visit(browser, url + "/leave_then_fail") == "failed"
        assert await visit(browser, url + "/see") == ""


# Tokens. The forms of a site in each framework.


class Guarded:
    """A site whose changes are guarded."""

    def __init__(self, url: str, browser: aiohttp.ClientSession, *, reads_files: bool = False) -> None:
        self.url = url
        self.browser = browser
        self.reads_files = reads_files

    async def token(self) -> str:
        return await visit(self.browser, self.url + "/form")

    async def send(self, how: str = "form", token: str | None = None, **options: Any) -> tuple[int, str]:
        fields = {"item": "tea", **({"csrf_token": token} if token is not None and how != "header" else {})}
        data: Any = fields
        if how == "multipart":
            data = aiohttp.FormData(fields, default_to_multipart=True)
        if how == "header" and token is not None:
            options["headers"] = {"X-CSRF-Token": token}
        async with self.browser.post(self.url + "/send", data=data, **options) as response:
            return response.status, await response.text()


@pytest.fixture(params=["aiohttp", "starlette"])
async def guarded(request: pytest.FixtureRequest, store: SessionStore, browser: aiohttp.ClientSession) -> Any:
    if request.param == "aiohttp":
        site = AiohttpSite()

        async def form(request: Any) -> str:
            return await for_aiohttp.csrf_token(request)

        async def send(request: Any) -> str:
            return str((await request.post())["item"])

        async def log_in(request: Any) -> str:
            async with for_aiohttp.open_session(request) as session:
                await login(session, "ada")
            return "in"

        for path, handle in (("/form", form), ("/send", send), ("/login", log_in)):
            site.add(path, handle)
        site.app.middlewares.append(for_aiohttp.csrf_protection)
        async with site.serve(store) as url:
            yield Guarded(url, browser, reads_files=True)
        return

    async def asgi_form(request: Request) -> PlainTextResponse:
        return PlainTextResponse(await asgi.csrf_token(request))

    async def asgi_send(request: Request) -> PlainTextResponse:
        return PlainTextResponse((await request.form())["item"])  # type: ignore[arg-type]

    async def asgi_log_in(request: Request) -> PlainTextResponse:
        async with asgi.open_session(request) as session:
            await login(session, "ada")
        return PlainTextResponse("in")

    routes = [
        Route("/form", asgi_form),
        Route("/send", asgi_send, methods=["POST"]),
        Route("/login", asgi_log_in),
    ]
    app = asgi.SessionMiddleware(asgi.CSRFMiddleware(Starlette(routes=routes), max_form=10_000), store, PLAIN)
    async with by_uvicorn(app) as url:
        yield Guarded(url, browser)


@pytest.mark.parametrize("how", ["form", "header"])
async def test_a_form_with_the_token_of_its_session_is_accepted(guarded: Guarded, how: str) -> None:
    token = await guarded.token()
    assert token == await guarded.token()
    for _ in range(2):
        assert await guarded.send(how, token) == (200, "tea")


async def test_a_form_with_files_brings_the_token_in_the_header_and_in_aiohttp_in_a_field_too(guarded: Guarded) -> None:
    token = await guarded.token()
    status, _ = await guarded.send("multipart", token)
    assert status == (200 if guarded.reads_files else 403)
    data = aiohttp.FormData({"item": "tea"}, default_to_multipart=True)
    async with guarded.browser.post(guarded.url + "/send", data=data, headers={"X-CSRF-Token": token}) as response:
        assert (response.status, await response.text()) == (200, "tea")


@pytest.mark.parametrize("how", ["form", "header"])
@pytest.mark.parametrize("token", [None, "", "made up", "é", "x" * 43])
async def test_a_form_without_the_token_is_refused(guarded: Guarded, how: str, token: str | None) -> None:
    assert (await guarded.send(how, token))[0] == 403
    await guarded.token()
    status, text = await guarded.send(how, token)
    assert (status, "load the page again" in text) == (403, True)


async def test_the_token_of_another_session_is_refused(guarded: Guarded) -> None:
    await guarded.token()
    async with new_browser() as attacker:
        stolen = await Guarded(guarded.url, attacker).token()
    assert (await guarded.send("form", stolen))[0] == 403


async def test_a_login_changes_the_token(guarded: Guarded) -> None:
    before = await guarded.token()
    await visit(guarded.browser, guarded.url + "/login")
    assert (await guarded.send("form", before))[0] == 403
    after = await guarded.token()
    assert after != before
    assert await guarded.send("form", after) == (200, "tea")


async def test_a_big_form_reaches_the_application_whole(guarded: Guarded) -> None:
    token, item = await guarded.token(), "x" * 9000
    async with guarded.browser.post(guarded.url + "/send", data={"csrf_token": token, "item": item}) as response:
        assert (response.status, await response.text()) == (200, item)


async def test_many_first_pages_at_once_agree_on_one_token(guarded: Guarded) -> None:
    await visit(guarded.browser, guarded.url + "/login")
    tokens = await asyncio.gather(*(guarded.token() for _ in range(8)))
    assert len(set(tokens)) == 1


async def test_a_form_of_too_many_fields_is_not_searched(store: SessionStore, browser: aiohttp.ClientSession) -> None:
    async def endpoint(request: Request) -> PlainTextResponse:
        return PlainTextResponse(await asgi.csrf_token(request))

    app = Starlette(routes=[Route("/", endpoint, methods=["GET", "POST"])])
    async with by_uvicorn(asgi.SessionMiddleware(asgi.CSRFMiddleware(app), store, PLAIN)) as url:
        token = await visit(browser, url)
        for fields, status in ((900, 200), (1000, 403)):
            form = {f"f{number}": "x" for number in range(fields)} | {"csrf_token": token}
            async with browser.post(url, data=form) as response:
                assert response.status == status
