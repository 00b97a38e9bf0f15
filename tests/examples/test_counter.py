"""The counter of the README: its cookie, its port, and its end."""

from __future__ import annotations

import asyncio
import signal
import socket
from pathlib import Path

import pytest

from .servers import NewVisitor, Server, Start, Visitor, run


@pytest.fixture
def counter(start: Start) -> Server:
    return start("aiohttp_counter.py")


@pytest.fixture
async def visitor(new_visitor: NewVisitor, counter: Server) -> Visitor:
    return new_visitor(counter)


async def visit(visitor: Visitor, url: str = "") -> str:
    async with visitor.client.get(url or visitor.url, raise_for_status=True) as response:
        return await response.text()


async def test_every_concurrent_request_of_a_browser_is_counted(visitor: Visitor) -> None:
    assert await visit(visitor) == "visits: 1\n"
    answers = await asyncio.gather(*(visit(visitor) for _ in range(30)))
    assert sorted(answers) == sorted(f"visits: {number}\n" for number in range(2, 32))


async def test_a_second_server_shares_the_sessions(counter: Server, start: Start, visitor: Visitor) -> None:
    second = start("aiohttp_counter.py")
    await visit(visitor)
    answers = await asyncio.gather(*(visit(visitor, url) for url in [counter.url, second.url] * 10))
    assert sorted(answers) == sorted(f"visits: {number}\n" for number in range(2, 22))


async def test_the_cookie_is_hidden_from_scripts_and_sent_once(visitor: Visitor) -> None:
    async with visitor.client.get(visitor.url) as response:
        cookie = response.cookies["session"]
        assert (cookie["httponly"], cookie["samesite"], cookie["path"]) == (True, "Lax", "/")
        assert response.headers["Cache-Control"] == "no-store"
    async with visitor.client.get(visitor.url) as response:
        assert not response.cookies


@pytest.mark.parametrize("planted", ["planted-by-somebody", "../../planted", ""])
async def test_an_id_that_the_client_made_up_is_never_adopted(
    counter: Server, new_visitor: NewVisitor, planted: str
) -> None:
    for _ in range(2):
        visitor = new_visitor(counter)
        async with visitor.client.get(counter.url, cookies={"session": planted}) as response:
            assert await response.text() == "visits: 1\n"
            assert len(response.cookies["session"].value) == 43


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_it_ends_cleanly(counter: Server, visitor: Visitor, number: signal.Signals, tmp_path: Path) -> None:
    await visit(visitor)
    assert counter.end(number) == 0
    assert counter.output == f"Running on {counter.url}/ until Ctrl-C\n"
    assert (tmp_path / "var" / "sessions").is_dir()


@pytest.mark.parametrize("is_in_use", [True, False])
def test_it_says_what_is_wrong_with_its_port(tmp_path: Path, is_in_use: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1] if is_in_use else 65536
        done = run("aiohttp_counter.py", "--port", str(port), cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.endswith("Choose another port with --port.\n")
    assert "Traceback" not in done.stderr
