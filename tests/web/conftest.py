"""What the tests of the web share: sites in each framework, and browsers."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.web.sites import AiohttpSite, HypercornSite, Site, StarletteSite

SITES = {"aiohttp": AiohttpSite, "starlette": StarletteSite, "hypercorn": HypercornSite}


@pytest.fixture(params=["file"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=SITES)
def site(request: pytest.FixtureRequest) -> Site:
    return SITES[request.param]()


@pytest.fixture
async def browser() -> AsyncIterator[aiohttp.ClientSession]:
    """A visitor, who keeps cookies."""
    async with new_browser() as browser:
        yield browser


def new_browser(**options: object) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True), **options)


async def visit(browser: aiohttp.ClientSession, url: str) -> str:
    """Return the text of an answer that is no error."""
    async with browser.get(url, allow_redirects=False) as response:
        text = await response.text()
        assert response.status < 400, text
        return text


async def status_of(browser: aiohttp.ClientSession, url: str) -> int:
    async with browser.get(url, allow_redirects=False) as response:
        await response.read()
        return response.status
