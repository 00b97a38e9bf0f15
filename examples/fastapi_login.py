"""Log in, fill a cart from several tabs, and end one's other sessions, with FastAPI.

    python examples/fastapi_login.py --port 8080

Needs fastapi, uvicorn and python-multipart. Open http://127.0.0.1:8080/ in two browsers, log in as ada with "lovelace",
and try: "ten at once" in two tabs; the cart while a report is being written; the end of the other browser's session.
aiohttp_login.py is the same with aiohttp; both may run at the same time, on two ports.
"""

import asyncio
import os
from typing import Annotated

from common import is_password_of, page, run_asgi
from fastapi import Depends, FastAPI, Form, HTTPException, Path, Request
from fastapi.responses import HTMLResponse, RedirectResponse

from asyncsess import Session, append, open_store, put
from asyncsess.web import CookiePolicy, login, logout
from asyncsess.web.asgi import (
    CSRFMiddleware,
    SessionMiddleware,
    apply_session,
    csrf_token,
    flash,
    get_flashes,
    open_session,
)
from asyncsess.web.fastapi import exclusive_session, readonly_session

store = open_store(os.environ.get("SESSIONS", "file:var/sessions"), max_sessions_per_owner=10)
app = FastAPI()
app.add_middleware(CSRFMiddleware)
# Added last, so it is the outer one. Plain http is for one's own machine alone: elsewhere, take the default, for https.
app.add_middleware(SessionMiddleware, store=store, cookie=CookiePolicy(secure=False))


def owner_of(session: Session) -> str:
    if session.owner is None:
        raise HTTPException(401, "Log in first.")
    return session.owner


Snapshot = Annotated[Session, Depends(readonly_session)]  # waits for nobody, and nobody waits for it
Exclusive = Annotated[Session, Depends(exclusive_session)]


@app.get("/")
async def home(request: Request) -> HTMLResponse:
    token, messages = await csrf_token(request), await get_flashes(request)
    async with open_session(request, readonly=True) as session:
        name = "shop.html" if session.owner else "login.html"
        text = page(name, user=session.owner, token=token, messages="\n".join(message.text for message in messages))
    return HTMLResponse(text)


@app.post("/login")
async def log_in(
    request: Request, name: Annotated[str, Form()] = "", password: Annotated[str, Form()] = ""
) -> RedirectResponse:
    if await is_password_of(name, password):
        async with open_session(request) as session:
            if session.owner != name:
                session.clear()  # what was another user's
            await login(session, name, label=request.headers.get("User-Agent", ""))
        await flash(request, f"Welcome, {name}.")
    else:
        await flash(request, "There is no such user, or the password is another.")
    return RedirectResponse("/", 303)


@app.post("/logout")
async def log_out(request: Request) -> RedirectResponse:
    async with open_session(request) as session:
        await logout(session)
    await flash(request, "You are logged out.")  # this begins a new session, which is nobody's
    return RedirectResponse("/", 303)


@app.post("/logout-elsewhere")
async def log_out_elsewhere(request: Request, session: Snapshot) -> RedirectResponse:
    ended = await store.destroy_all(owner_of(session), keep=session)
    await flash(request, f"Other sessions that were ended: {ended}.")
    return RedirectResponse("/", 303)


@app.get("/sessions")
async def list_sessions(session: Snapshot) -> list[dict[str, str | bool]]:
    found = await store.sessions_of(owner_of(session))
    return [{"handle": each.handle, "label": each.label, "is_this": each.handle == session.handle} for each in found]


@app.post("/sessions/{handle}/end")
async def end_session(handle: str, session: Snapshot) -> dict[str, bool]:
    return {"has_ended": await store.destroy_one(owner_of(session), handle)}


@app.post("/cart/{item}")
async def add_to_cart(request: Request, item: str, session: Snapshot) -> dict[str, list[str]]:
    owner_of(session)
    (cart,) = await apply_session(request, append("cart", item))  # none is lost, and each takes but a moment
    return {"cart": cart}


@app.post("/report/{seconds}")
async def write_report(
    request: Request, seconds: Annotated[int, Path(ge=0, lt=100)], session: Exclusive
) -> dict[str, str]:
    owner_of(session)
    session["report"] = "being written"
    await session.release()  # stored; from here on others may change the session, and this only reads
    await asyncio.sleep(seconds)
    report = f"{len(session.get('cart', []))} in the cart when it was begun"
    await apply_session(request, put("report", report))
    return {"report": report}


@app.get("/status")
async def status(request: Request) -> dict[str, str | list[str]]:
    async with open_session(request, readonly=True, touch=False) as session:  # a poll is no use of the session
        owner_of(session)
        return {"cart": session.get("cart", []), "report": session.get("report", "none")}


if __name__ == "__main__":
    run_asgi(app, __doc__)
