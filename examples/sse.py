"""Follow one's session by server-sent events, in all tabs; with aiohttp.

    python examples/sse.py --port 8080

Needs aiohttp. Open http://127.0.0.1:8080/ in two tabs of a browser, and click in one of them. Stop the server and start
it again: the tabs go on. Then end the session.

A stream may last for hours, so it never keeps the session open: it takes one snapshot after the other, which waits for
nobody, and sends those that are new. The id of an event is the version of the session, so that a browser that comes
back is told what it has missed, and nothing twice.
"""

import asyncio
from contextlib import suppress

from aiohttp import web
from common import page, run_aiohttp

from asyncsess import FileStore, SessionNotFoundError, increment
from asyncsess.web import CookiePolicy, logout
from asyncsess.web.aiohttp import apply_session, csrf_protection, csrf_token, open_session, setup

PAUSE = 0.2  # seconds between two looks; one takes some ten microseconds
NO_SESSION = "0"  # the version of what is not stored
routes = web.RouteTableDef()


@routes.get("/")
async def home(request: web.Request) -> web.Response:
    return web.Response(text=page("sse.html", token=await csrf_token(request)), content_type="text/html")


@routes.post("/click")
async def click(request: web.Request) -> web.Response:
    (clicks,) = await apply_session(request, increment("clicks"))
    return web.json_response(clicks)


@routes.post("/end")
async def end(request: web.Request) -> web.Response:
    async with open_session(request) as session:
        await logout(session)
    return web.Response(status=204)


@routes.get("/events")
async def events(request: web.Request) -> web.StreamResponse:
    sent = request.headers.get("Last-Event-ID")
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
    await response.prepare(request)
    with suppress(ConnectionResetError):  # the browser went away
        await response.write(b"retry: 1000\n\n")  # milliseconds after which it connects again
        while request.transport is not None:
            clicks, version = await look(request)
            if version == NO_SESSION:
                await response.write(b"event: end\ndata:\n\n")
                break
            if version != sent:
                await response.write(f"id: {version}\ndata: {clicks}\n\n".encode())
                sent = version
            await asyncio.sleep(PAUSE)
    return response


async def look(request: web.Request) -> tuple[int, str]:
    """Return the clicks so far, and the version of the session."""
    with suppress(SessionNotFoundError):  # it was ended after this request had begun
        async with open_session(request, readonly=True) as session:
            return session.get("clicks", 0), str(session.version)
    return 0, NO_SESSION


app = web.Application()
app.add_routes(routes)
# Plain http is for one's own machine alone: elsewhere, take the default, which is for https.
setup(app, FileStore("var/sessions"), CookiePolicy(secure=False))
app.middlewares.append(csrf_protection)

if __name__ == "__main__":
    run_aiohttp(app, __doc__)
