"""Chat by WebSockets that end when their session does; with FastAPI.

    python examples/chat.py --port 8080

Needs fastapi, uvicorn, websockets and python-multipart. This is the application of fastapi_login.py with a chat: log in
at http://127.0.0.1:8080/ in two browsers, go to http://127.0.0.1:8080/chat in both, and say something, such as
"/name Countess". Then log out everywhere else in one of them.

A socket may last for hours, so it never keeps a session open: it takes a snapshot before each message, and changes the
session by operations. Who talks to whom is kept in memory; several processes would need something that connects them.
"""

import asyncio
from contextlib import suppress
from urllib.parse import urlsplit

from common import page, run_asgi
from fastapi import WebSocket, WebSocketDisconnect
from fastapi.responses import HTMLResponse
from fastapi_login import app

from asyncsess import SessionNotFoundError, put
from asyncsess.web.asgi import apply_session, open_session

LOGGED_OUT = 4401  # from 4000 on, the codes are the application's own
room: set[asyncio.Queue[str]] = set()


@app.get("/chat")
async def chat_page() -> HTMLResponse:
    return HTMLResponse(page("chat.html"))


@app.websocket("/chat")
async def chat(socket: WebSocket) -> None:
    async with open_session(socket, readonly=True) as session:
        owner, name = session.owner, session.get("name", session.owner)
    # Browsers let pages of any site open a socket here, and SameSite takes another port for the same site.
    if owner is None or urlsplit(socket.headers.get("Origin", "")).netloc != socket.headers["Host"]:
        await socket.close()  # not accepted yet, so this is a 403
        return
    await socket.accept()
    inbox = asyncio.Queue[str]()
    room.add(inbox)
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(deliver(socket, owner, inbox))
            tasks.create_task(listen(socket, owner, name))
    except* WebSocketDisconnect:
        pass
    except* SessionNotFoundError:
        with suppress(WebSocketDisconnect):
            await socket.close(LOGGED_OUT, "Your session was ended.")
    finally:
        room.remove(inbox)


async def listen(socket: WebSocket, owner: str, name: str) -> None:
    """Tell the room what the visitor says, until he leaves or his session has ended."""
    while True:
        text = await socket.receive_text()
        await check_session(socket, owner)
        if text.startswith("/name "):
            (name,) = await apply_session(socket, put("name", text.removeprefix("/name ")[:30]))
        else:
            for inbox in room:
                inbox.put_nowait(f"{name}: {text}")


async def deliver(socket: WebSocket, owner: str, inbox: asyncio.Queue[str]) -> None:
    """Send the visitor what the room says, until he leaves or his session has ended."""
    while True:
        line = ""
        with suppress(TimeoutError):  # in silence, look every second whether the session is still there
            async with asyncio.timeout(1):
                line = await inbox.get()
        await check_session(socket, owner)
        if line:
            await socket.send_text(line)


async def check_session(socket: WebSocket, owner: str) -> None:
    async with open_session(socket, readonly=True) as session:
        if session.owner != owner:
            raise SessionNotFoundError("the session has ended, or is another user's")


if __name__ == "__main__":
    run_asgi(app, __doc__)
