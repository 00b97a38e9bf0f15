"""The examples as processes: those that end by themselves, those that serve, and visitors of these."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp

from asyncsess import FileStore

EXAMPLES = Path(__file__).parents[2] / "examples"
PATIENCE = 120  # seconds after which something hangs


def command(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments]


def run(name: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run an example until it ends by itself."""
    return subprocess.run(command(name, *arguments), cwd=cwd, capture_output=True, text=True, timeout=PATIENCE)


class Server:
    """An example that serves, on a free port of its own."""

    def __init__(self, name: str, cwd: Path) -> None:
        self.process = subprocess.Popen(
            command(name, "--port", "0"), cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.output = ""
        try:
            self.url = self._address()
        except BaseException:
            self.kill()
            raise

    def _address(self) -> str:
        assert self.process.stdout
        for line in self.process.stdout:
            self.output += line
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                return found[0]
        raise AssertionError(self.output)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal; return the exit code, once all of the output is there."""
        if self.process.returncode is None:
            self.process.send_signal(number)
            self.output += self.process.communicate(timeout=PATIENCE)[0]
        return self.process.returncode

    def kill(self) -> None:
        self.end(signal.SIGKILL)


Start = Callable[[str], Server]


async def expire_all(directory: Path) -> None:
    """Have the sessions of an example end as if nobody had used them for long."""
    async with FileStore(directory / "var" / "sessions", clock=lambda: time.time() + 86400) as store:
        await store.delete_expired()


class Visitor:
    """Somebody with a browser, who keeps cookies and sends the token of the page seen last."""

    def __init__(self, url: str, agent: str) -> None:
        self.client = aiohttp.ClientSession(
            cookie_jar=aiohttp.CookieJar(unsafe=True),  # which takes cookies of hosts that are numbers
            headers={"User-Agent": agent},
            timeout=aiohttp.ClientTimeout(PATIENCE),
        )
        self.url = url
        self.token = ""

    async def look(self) -> str:
        """Load the page; return what it is and its message."""
        async with self.client.get(self.url) as response:
            return self._seen(await response.text())

    async def log_in(self, name: str = "ada", password: str = "lovelace") -> str:
        await self.look()
        return await self.submit("/login", name=name, password=password)

    async def submit(self, path: str, **fields: str) -> str:
        """Send a form; return what the page is that follows, and its message."""
        data = {"csrf_token": self.token, **fields}
        async with self.client.post(self.url + path, data=data, raise_for_status=True) as response:
            assert [step.status for step in response.history] == [303]
            return self._seen(await response.text())

    async def post(self, path: str) -> tuple[int, Any]:
        return await self._called("POST", path)

    async def get(self, path: str) -> tuple[int, Any]:
        return await self._called("GET", path)

    async def status(self) -> dict[str, Any]:
        """Return what the background poll of the page is told."""
        code, found = await self.get("/status")
        assert code == 200, found
        return found

    async def until_report_is(self, text: str) -> None:
        async with asyncio.timeout(PATIENCE):
            while (await self.status())["report"] != text:
                pass

    def session_id(self) -> str:
        """Return the cookie that the browser keeps."""
        return next((cookie.value for cookie in self.client.cookie_jar if cookie.key == "session"), "")

    def _seen(self, html: str) -> str:
        title, message = (
            re.search(pattern, html)[1] for pattern in ("<title>(.*?)</title>", r'<p id="messages".*?>([^<]*)</p>')
        )
        self.token = re.search('name="csrf_token" value="(.*?)"', html)[1]
        return f"{title}: {message}"

    async def _called(self, method: str, path: str) -> tuple[int, Any]:
        headers = {"X-CSRF-Token": self.token}
        async with self.client.request(method, self.url + path, headers=headers) as response:
            is_json = response.content_type == "application/json"
            return response.status, await (response.json() if is_json else response.text())


NewVisitor = Callable[..., Visitor]
