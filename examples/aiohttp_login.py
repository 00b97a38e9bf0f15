"""Log in, fill a cart from several tabs, and end one's other sessions, with aiohttp.

    python examples/aiohttp_login.py --port 8080

Needs aiohttp. Open http://127.0.0.1:8080/ in two browsers, log in as ada with "lovelace", and try: "ten at once" in two
tabs; the cart while a report is being written; the end of the other browser's session. fastapi_login.py is the same
with FastAPI; both may run at the same time, on two ports.
"""

import asyncio
import os

from aiohttp import web
from common import is_password_of, page, run_aiohttp

from asyncsess import Session, append, open_store, put
from asyncsess.web import CookiePolicy, login, logout
from asyncsess.web.aiohttp import apply_session, csrf_protection, csrf_token, flash, get_flashes, open_session, setup

store = open_store(os.environ.get("SESSIONS", "file:var/sessions"), max_sessions_per_owner=10)
routes = web.RouteTableDef()


def owner_of(session: Session) -> str:
    if session.owner is None:
        raise web.HTTPUnauthorized(text="Log in first.\n")
    return session.owner


@routes.get("/")
async def home(request: web.Request) -> web.Response:
    token, messages = await csrf_token(request), await get_flashes(request)
    async with open_session(request, readonly=True) as session:
        name = "shop.html" if session.owner else "login.html"
        text = page(name, user=session.owner, token=token, messages="\n".join(message.text for message in messages))
    return web.Response(text=text, content_type="text/html")


@routes.post("/login")
async def log_in(request: web.Request) -> web.Response:
    form = await request.post()
    name, password = str(form.get("name", "")), str(form.get("password", ""))
    if await is_password_of(name, password):
        async with open_session(request) as session:
            if session.owner != name:
                session.clear()  # what was another user's
            await login(session, name, label=request.headers.get("User-Agent", ""))
        await flash(request, f"Welcome, {name}.")
    else:
        await flash(request, "There is no such user, or the password is another.")
    raise web.HTTPSeeOther("/")


@routes.post("/logout")
async def log_out(request: web.Request) -> web.Response:
    async with open_session(request) as session:
        await logout(session)
    await flash(request, "You are logged out.")  # this begins a new session, which is nobody's
    raise web.HTTPSeeOther("/")


@routes.post("/logout-elsewhere")
async def log_out_elsewhere(request: web.Request) -> web.Response:
    async with open_session(request, readonly=True) as session:
        ended = await store.destroy_all(owner_of(session), keep=session)
    await flash(request, f"Other sessions that were ended: {ended}.")
    raise web.HTTPSeeOther("/")


@routes.get("/sessions")
async def list_sessions(request: web.Request) -> web.Response:
    async with open_session(request, readonly=True) as session:
        found = await store.sessions_of(owner_of(session))
        return web.json_response(
            [{"handle": each.handle, "label": each.label, "is_this": each.handle == session.handle} for each in found]
        )


@routes.post("/sessions/{handle}/end")
async def end_session(request: web.Request) -> web.Response:
    async with open_session(request, readonly=True) as session:
        has_ended = await store.destroy_one(owner_of(session), request.match_info["handle"])
    return web.json_response({"has_ended": has_ended})


@routes.post("/cart/{item}")
async def add_to_cart(request: web.Request) -> web.Response:
    async with open_session(request, readonly=True) as session:
        owner_of(session)
    (cart,) = await apply_session(
        request, append("cart", request.match_info["item"])
    )  # none is lost, and each takes but a moment
    return web.json_response({"cart": cart})


@routes.post(r"/report/{seconds:\d\d?}")
async def write_report(request: web.Request) -> web.Response:
    async with open_session(request) as session:
        owner_of(session)
        session["report"] = "being written"
        await session.release()  # stored; from here on others may change the session, and this only reads
        await asyncio.sleep(int(request.match_info["seconds"]))
        report = f"{len(session.get('cart', []))} in the cart when it was begun"
    await apply_session(request, put("report", report))
    return web.json_response({"report": report})


@routes.get("/status")
async def status(request: web.Request) -> web.Response:
    async with open_session(request, readonly=True, touch=False) as session:  # a poll is no use of the session
        owner_of(session)
        return web.json_response({"cart": session.get("cart", []), "report": session.get("report", "none")})


app = web.Application()
app.add_routes(routes)
# Plain http is for one's own machine alone: elsewhere, take the default, which is for https.
setup(app, store, CookiePolicy(secure=False))
app.middlewares.append(csrf_protection)

if __name__ == "__main__":
    run_aiohttp(app, __doc__)
