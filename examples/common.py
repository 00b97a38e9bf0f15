"""What the examples share and is no business of sessions: users, pages, and how to run. It is no example itself."""

import argparse
import asyncio
import html
import re
import socket
import sys
from contextlib import suppress
from hashlib import scrypt
from hmac import compare_digest
from pathlib import Path
from typing import Any

# Salt and scrypt of each user's password: "lovelace" and "hopper".
USERS = {
    "ada": "14240315fa23601d83801a36dae78c49 f98b5cb92f49ef67e6dedf836f829318b533cdecc3d4e23ff97bb4515680f481",
    "grace": "5659e5d92c056435ca6b72c68cd429f5 e3b077317c9df72aae85569a52aaa65a6abc6b10f0aa2bef0b44a0633e44024f",
}
NOBODY = f"{'0' * 32} {'0' * 64}"


async def is_password_of(name: str, password: str) -> bool:
    """Check a password; it takes as long for a user that does not exist, so the time tells nothing."""
    salt, expected = map(bytes.fromhex, USERS.get(name, NOBODY).split())
    # In a thread, since it takes a while on purpose; the parameters are those of OWASP's Password Storage Cheat Sheet.
    found = await asyncio.to_thread(scrypt, password.encode(), salt=salt, n=2**14, r=8, p=5, dklen=32)
    return compare_digest(found, expected)


def page(name: str, **values: object) -> str:
    """Return an HTML page with its ``{{names}}`` replaced by values, which are escaped."""
    template = Path(__file__).parent.joinpath("pages", name).read_text(encoding="utf-8")
    return re.sub(r"{{(\w+)}}", lambda found: html.escape(str(values[found[1]])), template)


def run_aiohttp(app: Any, description: str) -> None:
    """Serve an aiohttp application until Ctrl-C."""
    from aiohttp import web

    # Streams, and whatever else is slow, would go on for a minute after Ctrl-C.
    web.run_app(app, sock=listen(description), print=None, shutdown_timeout=1)


def run_asgi(app: Any, description: str) -> None:
    """Serve an ASGI application until Ctrl-C."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listen(description)])


def listen(description: str) -> socket.socket:
    """Listen at the port that the command line names, and say where."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8080, help="0 for any that is free; default: %(default)s")
    try:
        server = socket.create_server(("127.0.0.1", parser.parse_args().port))
    except (OSError, OverflowError) as error:
        sys.exit(f"{error}\nChoose another port with --port.")
    print(f"Running on http://127.0.0.1:{server.getsockname()[1]}/ until Ctrl-C", flush=True)
    return server
