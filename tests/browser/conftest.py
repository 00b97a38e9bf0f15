"""What the tests with a real browser share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from shutil import which
from tempfile import TemporaryDirectory

import pytest
from playwright.async_api import BrowserContext, async_playwright, expect

from tests.examples.conftest import start as start
from tests.faults.needs import need

ARGUMENTS = [
    "--no-sandbox",  # which needs rights that a container has not
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
NewBrowser = Callable[[], Awaitable[BrowserContext]]

expect.set_options(timeout=60_000)  # milliseconds after which something hangs


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.new_event_loop}  # it is Playwright's, and no business of the servers


@pytest.fixture
async def new_browser() -> AsyncIterator[NewBrowser]:
    """Return what starts a browser that knows nothing yet."""
    chromium = which("chromium")
    need(chromium, "chromium (apt-get install chromium)")
    async with async_playwright() as playwright, AsyncExitStack() as stack:

        async def new_browser() -> BrowserContext:
            profile = stack.enter_context(TemporaryDirectory(ignore_cleanup_errors=True))
            browser = await playwright.chromium.launch_persistent_context(
                profile, executable_path=chromium, headless=True, args=ARGUMENTS
            )
            stack.push_async_callback(browser.close)
            return browser

        yield new_browser
