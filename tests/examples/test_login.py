"""The login applications: two frameworks, the same behaviour, on one directory of sessions."""

from __future__ import annotations

import asyncio
import signal
import socket
from pathlib import Path

import aiohttp
import pytest

from asyncsess import FileStore

from .servers import PATIENCE, NewVisitor, Server, Start, Visitor, run

APPLICATIONS = ["aiohttp_login.py", "fastapi_login.py"]
CHANGES = ["/cart/tea", "/report/0", "/sessions/x/end", "/logout-elsewhere", "/logout"]


@pytest.fixture(params=APPLICATIONS)
def server(start: Start, request: pytest.FixtureRequest) -> Server:
    return start(request.param)


@pytest.fixture
async def ada(server: Server, new_visitor: NewVisitor) -> Visitor:
    visitor = new_visitor(server, "a phone")
    assert await visitor.log_in() == "Shop: Welcome, ada."
    return visitor


# Who one is.


async def test_a_visitor_logs_in_by_the_form_and_out_again(server: Server, new_visitor: NewVisitor) -> None:
    visitor = new_visitor(server)
    assert await visitor.look() == "Log in: "
    before = visitor.session_id()
    assert await visitor.log_in() == "Shop: Welcome, ada."
    inside = visitor.session_id()
    assert await visitor.look() == "Shop: "  # a message is shown once
    assert await visitor.submit("/logout") == "Log in: You are logged out."
    assert len({before, inside, visitor.session_id()}) == 3


async def test_an_id_from_before_the_login_or_after_the_logout_is_worth_nothing(
    server: Server, new_visitor: NewVisitor
) -> None:
    visitor, thief = new_visitor(server), new_visitor(server)
    await visitor.look()
    before = visitor.session_id()
    await visitor.log_in()
    inside = visitor.session_id()
    await visitor.submit("/logout")
    for stolen in (before, inside):
        async with thief.client.get(server.url + "/status", cookies={"session": stolen}) as response:
            assert response.status == 401


async def test_nobody_comes_in_with_another_password(server: Server, new_visitor: NewVisitor) -> None:
    visitor = new_visitor(server)
    for name, password in (("ada", "hopper"), ("ada", ""), ("nobody", "lovelace"), ("", "")):
        assert await visitor.log_in(name, password) == "Log in: There is no such user, or the password is another."
        assert (await visitor.get("/status"))[0] == 401


async def test_without_a_login_there_is_nothing_to_see_or_to_change(server: Server, new_visitor: NewVisitor) -> None:
    visitor = new_visitor(server)
    await visitor.look()
    for path in ("/status", "/sessions"):
        assert (await visitor.get(path))[0] == 401
    for path in CHANGES[:-1]:
        assert (await visitor.post(path))[0] == 401


async def test_whoever_logs_in_after_another_finds_nothing_of_the_other(server: Server, ada: Visitor) -> None:
    await ada.post("/cart/tea")
    assert await ada.log_in("grace", "hopper") == "Shop: Welcome, grace."
    assert (await ada.status())["cart"] == []


async def test_a_request_without_the_token_of_the_page_changes_nothing(ada: Visitor) -> None:
    token = ada.token
    for wrong in ("", "x" * len(token)):
        ada.token = wrong
        for path in ("/login", *CHANGES):
            code, text = await ada.post(path)
            assert (code, "load the page again" in text) == (403, True)
    ada.token = token
    assert await ada.status() == {"cart": [], "report": "none"}


async def test_the_cookie_is_hidden_from_scripts(server: Server, new_visitor: NewVisitor) -> None:
    async with new_visitor(server).client.get(server.url) as response:
        cookie = response.cookies["session"]
        assert (cookie["httponly"], cookie["samesite"], cookie["secure"]) == (True, "Lax", "")


# The cart and the report.


async def test_nothing_is_lost_that_many_requests_put_into_the_cart_at_once(ada: Visitor) -> None:
    answers = await asyncio.gather(*(ada.post(f"/cart/{number}") for number in range(40)))
    assert {code for code, _ in answers} == {200}
    assert sorted((await ada.status())["cart"], key=int) == [str(number) for number in range(40)]


async def test_the_cart_and_the_poll_do_not_wait_for_the_report(ada: Visitor, server: Server) -> None:
    writing = asyncio.create_task(ada.post("/report/99"))
    await ada.until_report_is("being written")
    assert (await ada.post("/cart/tea"))[0] == 200
    assert await ada.status() == {"cart": ["tea"], "report": "being written"}
    assert not writing.done()
    server.kill()
    with pytest.raises(aiohttp.ClientError):
        await writing


async def test_the_poll_and_the_page_wait_for_nobody(ada: Visitor, tmp_path: Path) -> None:
    await ada.look()
    async with FileStore(tmp_path / "var" / "sessions") as store, store.open(ada.session_id(), lease=2 * PATIENCE):
        assert await ada.status() == {"cart": [], "report": "none"}
        assert await ada.look() == "Shop: "
        assert len((await ada.get("/sessions"))[1]) == 1


async def test_a_report_is_of_the_cart_as_it_was(ada: Visitor) -> None:
    await ada.post("/cart/tea")
    writing = asyncio.create_task(ada.post("/report/1"))
    await ada.until_report_is("being written")
    await ada.post("/cart/milk")
    report = "1 in the cart when it was begun"
    assert await writing == (200, {"report": report})
    assert await ada.status() == {"cart": ["tea", "milk"], "report": report}


async def test_a_logout_while_the_report_is_written_stays(ada: Visitor) -> None:
    writing = asyncio.create_task(ada.post("/report/1"))
    await ada.until_report_is("being written")
    assert await ada.submit("/logout") == "Log in: You are logged out."
    assert (await writing)[0] == 409
    assert await ada.look() == "Log in: "


# The sessions of a user.


@pytest.mark.parametrize(("one", "other"), [*zip(APPLICATIONS, APPLICATIONS, strict=True), APPLICATIONS])
async def test_who_logs_out_elsewhere_at_one_server_ends_what_began_at_another(
    start: Start, new_visitor: NewVisitor, one: str, other: str
) -> None:
    first, second = start(one), start(other)
    here, there, grace = new_visitor(first, "a phone"), new_visitor(second, "a laptop"), new_visitor(second)
    await here.log_in()
    await there.log_in()
    await grace.log_in("grace", "hopper")
    assert {each["label"] for each in (await here.get("/sessions"))[1]} == {"a phone", "a laptop"}
    assert await here.submit("/logout-elsewhere") == "Shop: Other sessions that were ended: 1."
    assert (await there.get("/status"))[0] == 401
    assert (await there.post("/cart/tea"))[0] == 403
    assert await there.look() == "Log in: "
    assert [(each["label"], each["is_this"]) for each in (await here.get("/sessions"))[1]] == [("a phone", True)]
    assert (await here.post("/cart/tea"))[0] == (await grace.post("/cart/tea"))[0] == 200


async def test_one_session_is_ended_by_its_owner_alone(server: Server, ada: Visitor, new_visitor: NewVisitor) -> None:
    other, grace = new_visitor(server, "a laptop"), new_visitor(server)
    await other.log_in()
    await grace.log_in("grace", "hopper")
    (handle,) = [each["handle"] for each in (await ada.get("/sessions"))[1] if not each["is_this"]]
    for visitor, has_ended in ((grace, False), (ada, True), (ada, False)):
        assert await visitor.post(f"/sessions/{handle}/end") == (200, {"has_ended": has_ended})
    assert (await other.get("/status"))[0] == 401
    assert (await ada.get("/status"))[0] == 200


# The process.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_it_ends_cleanly(server: Server, ada: Visitor, number: signal.Signals, tmp_path: Path) -> None:
    await ada.post("/cart/tea")
    assert server.end(number) in (0, -number)  # uvicorn passes a SIGTERM on
    assert server.output == f"Running on {server.url}/ until Ctrl-C\n"
    assert (tmp_path / "var" / "sessions").is_dir()


@pytest.mark.parametrize("name", APPLICATIONS)
@pytest.mark.parametrize("is_in_use", [True, False])
def test_it_says_what_is_wrong_with_its_port(tmp_path: Path, name: str, is_in_use: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1] if is_in_use else 65536
        done = run(name, "--port", str(port), cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.endswith("Choose another port with --port.\n")
    assert "Traceback" not in done.stderr
