"""The examples, run as a reader runs them: each prints what it promises, and no warning."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import aiohttp
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
PATIENCE = 120  # seconds after which something hangs


def command(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments]


def run(name: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(name, *arguments), cwd=cwd, capture_output=True, text=True, timeout=PATIENCE)


def lines_of(name: str, cwd: Path) -> list[str]:
    done = run(name, cwd=cwd)
    assert (done.returncode, done.stderr) == (0, "")
    assert not list(cwd.iterdir())
    return done.stdout.splitlines()


def test_every_example_has_a_test():
    untested = [
        path.name
        for path in EXAMPLES.glob("*.py")
        if not any(name.startswith(f"test_{path.stem}_") for name in globals())
    ]
    assert not untested


def test_quickstart_keeps_a_cart_until_the_logout(tmp_path):
    assert lines_of("quickstart.py", tmp_path) == [
        "ada has tea and milk in the cart",
        "after the logout, there is no such session: it was destroyed, and so that no request in flight brings it "
        "back, its id stays dead for 60 s more",
    ]


def test_early_release_lets_others_in_while_the_bank_is_asked(tmp_path):
    assert lines_of("early_release.py", tmp_path) == [
        "checkout: the order is stored; asking the bank",
        "help: opened meanwhile, and the order of tea is there",
        "delivery: opened meanwhile, and the order of tea is there",
        "checkout: the bank agrees to the order of tea",
        "in the end: {'pages': ['help', 'delivery'], 'order': 'tea', 'paid': True}",
    ]


def test_worker_processes_lose_no_update(tmp_path):
    assert lines_of("worker_processes.py", tmp_path) == ["100 of 100 jobs done, the sum is 5050 and should be 5050"]


class Counter:
    """A running ``aiohttp_counter.py`` on a free port."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        address = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
        assert address, process.communicate(timeout=PATIENCE)
        self.url = address[0]

    def end(self, number: signal.Signals) -> tuple[int, str]:
        """Send a signal; return the exit code, and what was written to standard error."""
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, errors


@pytest.fixture
def start_counter(tmp_path) -> Iterator[Callable[[], Counter]]:
    with ExitStack() as stack:

        def start() -> Counter:
            process = subprocess.Popen(
                command("aiohttp_counter.py", "--port", "0"),
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return Counter(process)

        yield start


@pytest.fixture
def counter(start_counter) -> Counter:
    return start_counter()


def browser(**cookies: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(cookies=cookies, cookie_jar=aiohttp.CookieJar(unsafe=True), raise_for_status=True)


async def visit(client: aiohttp.ClientSession, url: str) -> str:
    async with client.get(url) as response:
        return await response.text()


async def test_aiohttp_counter_counts_every_concurrent_request_of_a_browser(counter):
    async with browser() as client:
        assert await visit(client, counter.url) == "visits: 1\n"
        answers = await asyncio.gather(*(visit(client, counter.url) for _ in range(30)))
    assert sorted(answers) == sorted(f"visits: {number}\n" for number in range(2, 32))


async def test_aiohttp_counter_shares_its_sessions_with_a_second_server(start_counter):
    servers = [start_counter(), start_counter()]
    async with browser() as client:
        await visit(client, servers[0].url)
        answers = await asyncio.gather(*(visit(client, server.url) for server in servers * 10))
    assert sorted(answers) == sorted(f"visits: {number}\n" for number in range(2, 22))


async def test_aiohttp_counter_hides_the_cookie_from_scripts_and_sends_it_once(counter):
    async with browser() as client:
        async with client.get(counter.url) as response:
            cookie = response.cookies["session"]
            assert (cookie["httponly"], cookie["samesite"], cookie["path"]) == (True, "Lax", "/")
            assert response.headers["Cache-Control"] == "no-store"
        async with client.get(counter.url) as response:
            assert not response.cookies


@pytest.mark.parametrize("planted", ["planted-by-somebody", "../../planted", ""])
async def test_aiohttp_counter_never_adopts_an_id_that_the_client_made_up(counter, planted):
    for _ in range(2):
        async with browser(session=planted) as client, client.get(counter.url) as response:
            assert await response.text() == "visits: 1\n"
            assert len(response.cookies["session"].value) == 43


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_aiohttp_counter_ends_cleanly(counter, number, tmp_path):
    async with browser() as client:
        await visit(client, counter.url)
    assert counter.end(number) == (0, "")
    assert (tmp_path / "var" / "sessions").is_dir()


@pytest.mark.parametrize("is_in_use", [True, False])
def test_aiohttp_counter_says_what_is_wrong_with_its_port(tmp_path, is_in_use):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1] if is_in_use else 65536
        done = run("aiohttp_counter.py", "--port", str(port), cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.endswith("Choose another port with --port.\n")
    assert "Traceback" not in done.stderr
