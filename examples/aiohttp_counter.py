"""Count a visitor's requests; the cookie carries nothing but the session id.

    python examples/aiohttp_counter.py --port 8080

Needs aiohttp. Several such processes, on several ports, may share one directory of sessions; or, on several machines,
a server such as Redis, whose URL is then the value of SESSIONS in their environment.
"""

import os

from aiohttp import web
from common import run_aiohttp

from asyncsess import increment, open_store
from asyncsess.web import CookiePolicy
from asyncsess.web.aiohttp import apply_session, setup


async def home(request: web.Request) -> web.Response:
    (visits,) = await apply_session(request, increment("visits"))  # a new visitor's session begins here
    return web.Response(text=f"visits: {visits}\n")


store = open_store(os.environ.get("SESSIONS", "file:var/sessions"))
app = web.Application()
app.router.add_get("/", home)
# Plain http is for one's own machine alone: elsewhere, take the default, which is for https.
setup(app, store, CookiePolicy(secure=False))

if __name__ == "__main__":
    run_aiohttp(app, __doc__)
