"""Several worker processes of real servers on one directory."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest

from tests.web.conftest import visit

AT_ONCE = 20


@pytest.fixture(params=["uvicorn", "hypercorn"])
def url(request: pytest.FixtureRequest, directory: Path) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        application = "tests.web.application:app"
        commands = {
            "uvicorn": ["uvicorn", application, "--workers", "3", "--port", str(port), "--no-access-log"],
            "hypercorn": ["hypercorn", application, "--workers", "3", "--bind", f"127.0.0.1:{port}"],
        }
    with subprocess.Popen(
        [sys.executable, "-m", *commands[request.param]],
        env={**os.environ, "SESSIONS": str(directory)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as server:
        try:
            yield f"http://127.0.0.1:{port}"
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) in (0, -signal.SIGTERM)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)


async def test_no_worker_loses_what_another_counted(url: str, browser: aiohttp.ClientSession) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                await visit(browser, url + "/count")
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.05)
            else:
                break

    async def count() -> str:
        # A connection of its own for each, so that every worker gets some.
        async with aiohttp.ClientSession(cookie_jar=browser.cookie_jar) as client:
            return await visit(client, url + "/count")

    workers: list[str] = []
    async with asyncio.timeout(60):
        while len(workers) < 3 * AT_ONCE or len(set(workers)) < 2:
            workers += await asyncio.gather(*(count() for _ in range(AT_ONCE)))
    expected = str(len(workers) + 1)
    assert await visit(browser, url + "/show") == f"{expected} {expected} {expected}"
