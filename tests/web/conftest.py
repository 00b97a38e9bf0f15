"""What the tests of the web share: sites in each framework, and browsers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import aiohttp
import pytest
import uvloop

from tests.web.sites import AiohttpSite, HypercornSite, Site, StarletteSite

BOTH_LOOPS = "test_failures_of_others"  # the other tests are about rules that no event loop knows of
SITES = {"aiohttp": AiohttpSite, "starlette": StarletteSite, "hypercorn": HypercornSite}


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    factories = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
    return factories if item.path.stem == BOTH_LOOPS else {"uvloop": uvloop.new_event_loop}


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
