"""The demo from its first process to its verdict."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import aiohttp

from asyncsess.demo.clients import Browser, Row
from asyncsess.demo.processes import ServerError, server_processes
from asyncsess.demo.screen import Screen, console
from asyncsess.demo.ways import WAYS


async def run(requests: int) -> int:
    """Run the demo; return its exit code: 0 if no way that is safe lost anything, 1 if one did, 2 without servers."""
    screen = Screen(console())
    try:
        rows = await measure(requests, screen)
    except ServerError as error:
        print(error, file=sys.stderr)
        return 2
    screen.show(rows)
    return 0 if all(row.is_good for row in rows if row.way.is_safe) else 1


async def measure(requests: int, screen: Screen) -> list[Row]:
    """Return what came of each way, with two servers over one session directory.

    Raises:
        ServerError: They did not get ready.
    """
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="asyncsess-demo-") as directory:
        async with server_processes(2, Path(directory)) as servers, _http() as http:
            screen.say(f"Two servers, {' and '.join(servers)}, share one session directory.")
            with screen.progress() as bars:
                for way in WAYS:
                    with bars.bar(way, None if way.has_slow_writer else requests) as advance:
                        rows.append(await Browser(http, servers, way, advance).measure(requests))
    return rows


def _http() -> aiohttp.ClientSession:
    # A jar that keeps cookies of bare addresses too; as in a browser, one cookie is for all ports.
    return aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True), connector=aiohttp.TCPConnector(limit=0))
