"""What ``python -m asyncsess.demo`` runs; it imports what the extra brings only after looking whether it is there."""

from __future__ import annotations

import asyncio
import signal
import sys
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Coroutine
from importlib.util import find_spec
from typing import Any

_INTERRUPTED = 128 + signal.SIGINT
_TERMINATED = 128 + signal.SIGTERM


def main() -> int:
    """Run the demo; return 0 if asyncsess lost nothing, and otherwise something else."""
    parser = ArgumentParser(
        prog="python -m asyncsess.demo",
        description="Many requests of one session at once, through two server processes, with and without locking. "
        "Ends by itself; the exit code is 0 if asyncsess lost nothing.",
    )
    parser.add_argument(
        "--requests", type=_count, default=600, metavar="N", help="updates sent for each way of writing (default: 600)"
    )
    options = parser.parse_args()
    missing = [name for name in ("aiohttp", "rich") if find_spec(name) is None]
    if missing:
        print(f"The demo needs {' and '.join(missing)}. Run: pip install 'asyncsess[demo]'", file=sys.stderr)
        return 2
    try:
        from asyncsess.demo.run import run

        return asyncio.run(_until_terminated(run(options.requests)))
    except KeyboardInterrupt:
        print("Interrupted; the servers have ended.", file=sys.stderr)
        return _INTERRUPTED
    except asyncio.CancelledError:
        return _TERMINATED


async def _until_terminated(demo: Coroutine[Any, Any, int]) -> int:
    """Run the demo, and let it end its servers if this process is told to end."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await demo


def _count(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise ArgumentTypeError(f"{text!r} is not a number of requests; give 1 or more")
    return number


if __name__ == "__main__":
    sys.exit(main())
