"""The login applications in a real browser: Debian's chromium, with tabs, forms, scripts and cookies of its own."""

from __future__ import annotations

import asyncio
import re

import pytest
from playwright.async_api import BrowserContext, Page, expect

from tests.examples.servers import Start

from .conftest import NewBrowser

EACH = 25  # items that a tab adds at once; the browser has six connections for both tabs


@pytest.fixture(params=["aiohttp_login.py", "fastapi_login.py"])
def url(start: Start, request: pytest.FixtureRequest) -> str:
    return start(request.param).url


async def log_in(browser: BrowserContext, url: str) -> Page:
    page = browser.pages[0]
    await page.goto(url)
    await page.get_by_label("Name").fill("ada")
    await page.get_by_label("Password").fill("lovelace")
    await press(page, "Log in")
    await expect(page.locator("#messages")).to_have_text("Welcome, ada.")
    return page


async def press(page: Page, button: str) -> None:
    await page.get_by_role("button", name=button, exact=True).click()


async def add_at_once(tab: Page, name: str) -> None:
    """Add items to the cart by fetches that are under way together."""
    await tab.evaluate(
        "([name, number]) => Promise.all(Array.from({length: number}, (_, index) => add(`${name}-${index}`)))",
        [name, EACH],
    )


async def cart(tab: Page) -> list[str]:
    return (await tab.evaluate("call('GET', '/status')"))["cart"]


async def test_parallel_fetches_of_two_tabs_lose_nothing(url: str, new_browser: NewBrowser) -> None:
    browser = await new_browser()
    one = await log_in(browser, url)
    other = await browser.new_page()
    await other.goto(url)
    await asyncio.gather(add_at_once(one, "one"), add_at_once(other, "other"))
    expected = {f"{name}-{index}" for name in ("one", "other") for index in range(EACH)}
    for tab in (one, other):
        found = await cart(tab)
        assert (set(found), len(found)) == (expected, 2 * EACH)
        await expect(tab.locator("#count")).to_have_text(str(2 * EACH))  # by the poll in the background


async def test_the_buttons_of_the_page_do_what_they_say(url: str, new_browser: NewBrowser) -> None:
    browser = await new_browser()
    one = await log_in(browser, url)
    other = await browser.new_page()
    await other.goto(url)
    await press(one, "write a slow report")
    await asyncio.gather(press(one, "ten at once"), press(other, "ten at once"))
    await press(one, "tea")
    for tab in (one, other):
        await expect(tab.locator("#count")).to_have_text("21")
        await expect(tab.locator("#report")).to_have_text(re.compile(r"^\d+ in the cart when it was begun$"))
    await press(other, "Log out")
    await expect(other.locator("#messages")).to_have_text("You are logged out.")
    await expect(one).to_have_title("Log in")


@pytest.mark.parametrize("seen_by", ["click", "poll"])
async def test_who_logs_out_everywhere_else_ends_what_another_browser_has_open(
    url: str, new_browser: NewBrowser, seen_by: str
) -> None:
    mine, theirs = await log_in(await new_browser(), url), await log_in(await new_browser(), url)
    if seen_by == "click":
        await theirs.evaluate("clearInterval(polling)")
    await press(mine, "Log out everywhere else")
    await expect(mine.locator("#messages")).to_have_text("Other sessions that were ended: 1.")
    if seen_by == "click":
        await expect(theirs).to_have_title("Shop")
        await press(theirs, "tea")
    await expect(theirs.locator("#messages")).to_have_text("Your session was ended.")
    await expect(theirs.get_by_label("Password")).to_be_visible()
    await press(mine, "tea")
    await expect(mine.locator("#count")).to_have_text("1")


async def test_one_session_is_ended_by_its_button(url: str, new_browser: NewBrowser) -> None:
    mine, theirs = await log_in(await new_browser(), url), await log_in(await new_browser(), url)
    await mine.reload()
    await expect(mine.get_by_role("listitem")).to_have_count(2)
    await press(mine, "end this one")
    await expect(mine.get_by_role("listitem")).to_have_count(1)
    await expect(mine.get_by_role("listitem")).to_contain_text("(this one)")
    await expect(theirs.locator("#messages")).to_have_text("Your session was ended.")


async def test_scripts_do_not_see_the_cookie(url: str, new_browser: NewBrowser) -> None:
    browser = await new_browser()
    page = await log_in(browser, url)
    (cookie,) = await browser.cookies()
    assert (cookie["name"], cookie["httpOnly"], cookie["sameSite"]) == ("session", True, "Lax")
    assert await page.evaluate("document.cookie") == ""


async def test_a_chat_ends_with_its_session(start: Start, new_browser: NewBrowser) -> None:
    url = start("chat.py").url
    here, there = await new_browser(), await new_browser()
    mine, theirs = await log_in(here, url), await log_in(there, url)
    rooms = [await browser.new_page() for browser in (here, there)]
    for room in rooms:
        await room.goto(url + "/chat")
        await expect(room.locator("#state")).to_have_text("connected")
    await rooms[0].get_by_role("textbox").fill("hello <b>there</b>")
    await press(rooms[0], "say")
    for room in rooms:
        await expect(room.get_by_role("listitem")).to_have_text("ada: hello <b>there</b>")
    await press(mine, "Log out everywhere else")
    await expect(rooms[1].locator("#state")).to_have_text("Your session was ended.")
    await expect(theirs).to_have_title("Log in")
    await expect(rooms[0].locator("#state")).to_have_text("connected")


async def test_a_click_is_seen_in_all_tabs_until_the_session_ends(start: Start, new_browser: NewBrowser) -> None:
    url, browser = start("sse.py").url, await new_browser()
    one, other = browser.pages[0], await browser.new_page()
    for tab in (one, other):
        await tab.goto(url)
        await expect(tab.locator("#state")).to_have_text("following")
    await press(one, "click")
    await expect(other.locator("#clicks")).to_have_text("1")
    await press(other, "end the session")
    for tab in (one, other):
        await expect(tab.locator("#state")).to_have_text("The session has ended: load the page again.")
