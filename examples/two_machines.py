"""Let two servers that share nothing but Redis count the visits of one browser; no visit is lost.

    python examples/two_machines.py redis://localhost

Each has a folder of its own, as if it ran on another machine. Needs aiohttp and redis, and a server of Redis or Valkey;
whatever else `open_store` understands will do as well.
"""

import asyncio
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import aiohttp

SERVER = Path(__file__).with_name("aiohttp_counter.py")
VISITS = 100


@contextmanager
def machine(sessions: str) -> Iterator[str]:
    """Run a server in a folder of its own; give its address."""
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, SERVER, "--port", "0"],
            cwd=folder,
            env=os.environ | {"SESSIONS": sessions},
            stdout=subprocess.PIPE,
            text=True,
        )
        with process:
            try:
                found = re.search(r"http://\S+", process.stdout.readline())
                if found is None:
                    sys.exit("the server did not start")
                yield found[0]
            finally:
                process.terminate()


async def visit(urls: list[str]) -> None:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True), raise_for_status=True) as browser:
        await (await browser.get(urls[0])).text()  # which begins the session

        async def answer(number: int) -> str:
            async with browser.get(urls[number % 2]) as response:
                return await response.text()

        answers = await asyncio.gather(*map(answer, range(VISITS - 1)))
    counted = {int(answer.split()[1]) for answer in answers}
    print(f"{VISITS} visits to two machines, {max(counted)} of them counted")


def main() -> None:
    sessions = sys.argv[1] if len(sys.argv) > 1 else "redis://localhost"
    with ExitStack() as stack:
        urls = [stack.enter_context(machine(sessions)) for _ in range(2)]
        asyncio.run(visit(urls))


if __name__ == "__main__":
    main()
