"""ASGI's messages: their types, what is in their headers, and how an answer is sent by them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, TypeAlias

from asyncsess.web.answers import Answer
from asyncsess.web.cookie import CookiePolicy

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


def header(headers: Any, name: bytes) -> str:
    """Return the first header of a name, in lower case; "" if there is none."""
    return next((value.decode("latin-1") for key, value in headers if key.lower() == name), "")


def cookie_in(headers: Any, cookie: CookiePolicy) -> str | None:
    """Return the value of a cookie.

    Browsers send those of longer paths first (RFC 6265, 5.4). So of several of the name, the last is that of the root,
    and what else there is was planted; one of a longer path comes before that of the root.
    """
    values: list[str] = []
    for key, line in headers:
        if key.lower() == b"cookie":
            for part in line.decode("latin-1").split(";"):
                found, equals, value = part.strip().partition("=")
                if equals and found == cookie.name:
                    values.append(value.strip('"'))
    if not values:
        return None
    return values[-1] if cookie.path == "/" else values[0]


def with_headers(headers: Any, more: Sequence[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    """Return headers with more of them: the values of ``Vary`` together, and but one ``Cache-Control``."""
    result = [(bytes(name), bytes(value)) for name, value in headers]
    for name, value in more:
        key, data = name.lower().encode("latin-1"), value.encode("latin-1")
        if key == b"vary":
            data = b", ".join([*(old for found, old in result if found.lower() == key), data])
        if key in (b"vary", b"cache-control"):
            result = [(found, old) for found, old in result if found.lower() != key]
        result.append((key, data))
    return result


async def respond(
    send: Send, answer: Answer, more: Sequence[tuple[str, str]] = (), *, kind: str = "http.response"
) -> None:
    """Send an answer with more headers, as the response to a request or to a WebSocket's."""
    body = answer.text.encode()
    headers = {"Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(body)), **answer.headers}
    raw = with_headers((), [*headers.items(), *more])
    await send({"type": f"{kind}.start", "status": answer.status, "headers": raw})
    await send({"type": f"{kind}.body", "body": body})
