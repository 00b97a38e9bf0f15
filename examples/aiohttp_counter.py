"""Count a visitor's requests with plain aiohttp; the cookie carries nothing but the session id.

    python examples/aiohttp_counter.py --port 8080

Needs aiohttp. Several such processes, on several ports, may share one directory of sessions.
"""

import argparse
import sys
from collections.abc import AsyncIterator

from aiohttp import web

from asyncsess import FileStore, InvalidSessionIdError, SessionNotFoundError

COOKIE = "session"
STORE = web.AppKey("store", FileStore)


async def open_store(app: web.Application) -> AsyncIterator[None]:
    async with FileStore("var/sessions") as app[STORE]:
        yield  # the application runs here; the store is closed with it


async def count_visit(store: FileStore, session_id: str | None) -> tuple[str, int]:
    async with store.open(session_id) as session:  # None starts a new session under a fresh id
        session["visits"] = session.get("visits", 0) + 1
        return session.id, session["visits"]


async def home(request: web.Request) -> web.Response:
    store, sent_id = request.app[STORE], request.cookies.get(COOKIE)
    try:
        session_id, visits = await count_visit(store, sent_id)
    except (InvalidSessionIdError, SessionNotFoundError):  # expired, or made up: never adopt it
        session_id, visits = await count_visit(store, None)
    response = web.Response(text=f"visits: {visits}\n", headers={"Cache-Control": "no-store"})
    if session_id != sent_id:
        response.set_cookie(COOKIE, session_id, httponly=True, samesite="Lax", secure=request.secure)
    return response


def main() -> None:
    parser = argparse.ArgumentParser(description="A counter of visits at http://127.0.0.1:PORT/")
    parser.add_argument("--port", type=int, default=8080, help="default: %(default)s")
    port = parser.parse_args().port
    app = web.Application()
    app.cleanup_ctx.append(open_store)
    app.router.add_get("/", home)
    try:
        web.run_app(app, host="127.0.0.1", port=port)
    except (OSError, OverflowError) as error:
        sys.exit(f"{error}\nChoose another port with --port.")


if __name__ == "__main__":
    main()
