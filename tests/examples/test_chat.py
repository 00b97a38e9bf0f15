"""The chat: who may come in, what others read, and when a socket ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest

from .servers import PATIENCE, NewVisitor, Server, Start, Visitor, expire_all

Socket = aiohttp.ClientWebSocketResponse
Enter = Callable[[Visitor], Awaitable[Socket]]
LOGGED_OUT = 4401


@pytest.fixture
def server(start: Start) -> Server:
    return start("chat.py")


@pytest.fixture
async def ada(server: Server, new_visitor: NewVisitor) -> Visitor:
    visitor = new_visitor(server)
    await visitor.log_in()
    return visitor


@pytest.fixture
async def grace(server: Server, new_visitor: NewVisitor) -> Visitor:
    visitor = new_visitor(server)
    await visitor.log_in("grace", "hopper")
    return visitor


@pytest.fixture
async def enter(server: Server) -> Enter:
    """Return what opens a socket, and returns once it gets what the room says."""
    async with AsyncExitStack() as stack:

        async def enter(visitor: Visitor) -> Socket:
            socket = await stack.enter_async_context(
                visitor.client.ws_connect(visitor.url + "/chat", origin=visitor.url)
            )
            await socket.send_str("here")
            while not (await heard(socket)).endswith(": here"):
                pass
            return socket

        yield enter


async def heard(socket: Socket) -> str:
    async with asyncio.timeout(PATIENCE):  # that of aiohttp begins anew with each ping
        return await socket.receive_str()


async def end_of(socket: Socket) -> tuple[int | None, str | None]:
    """Wait for the end of a socket; return its code and reason."""
    async with asyncio.timeout(PATIENCE):
        message = await socket.receive()
    assert message.type is aiohttp.WSMsgType.CLOSE, message
    return message.data, message.extra


async def test_everybody_in_the_room_reads_what_somebody_says(ada: Visitor, grace: Visitor, enter: Enter) -> None:
    one = await enter(ada)
    other = await enter(grace)
    assert await heard(one) == "grace: here"
    for socket, line in ((one, "hello"), (other, "hello to you")):
        await socket.send_str(line)
        name = "ada" if socket is one else "grace"
        assert [await heard(one), await heard(other)] == [f"{name}: {line}"] * 2


async def test_a_name_is_kept_in_the_session(ada: Visitor, enter: Enter) -> None:
    socket = await enter(ada)
    await socket.send_str("/name Countess")
    await socket.send_str("hello")
    assert await heard(socket) == "Countess: hello"
    await socket.close()
    socket = await enter(ada)
    await socket.send_str("here again")
    assert await heard(socket) == "Countess: here again"


async def test_nobody_comes_in_without_a_login_or_from_another_site(
    server: Server, ada: Visitor, new_visitor: NewVisitor
) -> None:
    stranger = new_visitor(server)
    await stranger.look()
    for visitor, origin in ((stranger, server.url), (ada, "http://127.0.0.1:1"), (ada, "null"), (ada, None)):
        with pytest.raises(aiohttp.WSServerHandshakeError) as error:
            await visitor.client.ws_connect(server.url + "/chat", origin=origin)
        assert error.value.status == 403


async def test_an_open_socket_keeps_nobody_waiting(ada: Visitor, enter: Enter) -> None:
    socket = await enter(ada)
    assert (await ada.post("/cart/tea"))[0] == 200
    await socket.send_str("still there")
    assert await heard(socket) == "ada: still there"


@pytest.mark.parametrize("is_said", [True, False], ids=["something is said", "nothing is said"])
async def test_a_logout_everywhere_cuts_the_sockets_of_the_other_device(
    start: Start, server: Server, ada: Visitor, grace: Visitor, new_visitor: NewVisitor, enter: Enter, is_said: bool
) -> None:
    """It comes by another process, so the first hears of it by nothing but the session."""
    there = new_visitor(start("chat.py"))
    await there.log_in()
    cut, kept = await enter(ada), await enter(grace)
    assert await heard(cut) == "grace: here"
    await there.submit("/logout-elsewhere")
    if is_said:
        await kept.send_str("not for everybody")
    assert await end_of(cut) == (LOGGED_OUT, "Your session was ended.")
    await kept.send_str("who is left?")
    assert [await heard(kept) for _ in range(1 + is_said)][-1] == "grace: who is left?"


async def test_a_socket_ends_with_a_session_that_has_expired(ada: Visitor, enter: Enter, tmp_path: Path) -> None:
    socket = await enter(ada)
    await expire_all(tmp_path)
    assert (await end_of(socket))[0] == LOGGED_OUT


@pytest.mark.parametrize("end", ["logout", "login"])
async def test_nothing_is_said_in_the_name_of_a_session_that_has_ended(
    ada: Visitor, grace: Visitor, enter: Enter, end: str
) -> None:
    late, other = await enter(ada), await enter(grace)
    await (ada.submit("/logout") if end == "logout" else ada.log_in())  # which gives the session another id
    await late.send_str("too late")
    await other.send_str("done")
    assert await heard(other) == "grace: done"
    assert await heard(late) == "grace: here"  # from before
    assert await end_of(late) == (LOGGED_OUT, "Your session was ended.")


async def test_a_socket_of_a_server_that_ends_is_closed(server: Server, ada: Visitor, enter: Enter) -> None:
    socket = await enter(ada)
    server.process.terminate()
    assert (await end_of(socket))[0] == aiohttp.WSCloseCode.SERVICE_RESTART
    await socket.close()
    server.end()
    assert server.output == f"Running on {server.url}/ until Ctrl-C\n"
