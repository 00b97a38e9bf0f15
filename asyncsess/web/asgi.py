"""Sessions for ASGI applications: Starlette, FastAPI, Litestar, Quart, and those without a framework.

app = Starlette(middleware=[Middleware(SessionMiddleware, store=FileStore("var/sessions"))], ...)

async def add(request):
async with open_session(request) as session:
session.setdefault("cart", []).append(request.query_params["item"])
return PlainTextResponse("added")
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import AbstractAsyncContextManager
from functools import partial, wraps
from typing import Any, Final, ParamSpec, Protocol, TypeAlias, TypeVar, overload

from asyncsess.errors import SessionError
from asyncsess.operations import Operation
from asyncsess.rules import Resolve
from asyncsess.session import Session
from asyncsess.store import SessionStore
from asyncsess.web.answers import Answer, answer_to
from asyncsess.web.cookie import CookiePolicy
from asyncsess.web.lifespan import ASGIApp, Lifespan, Message, Receive, Scope, Send
from asyncsess.web.scope import ScopeSession
from asyncsess.web.settings import Settings, below_400
from asyncsess.web.visit import Timeout, Visit

P = ParamSpec("P")
R = TypeVar("R")

_VISITS: Final = "asyncsess"
_SWITCHING_PROTOCOLS: Final = 101
_FORBIDDEN: Final = 403  # what a server answers when a WebSocket is closed before it was accepted
_SERVER_ERROR: Final = 500
_TRY_AGAIN_LATER: Final = 1013
_STATUS_OF: Final[dict[str, Callable[[Message], int]]] = {
    "http.response.start": lambda message: int(message["status"]),
    "websocket.accept": lambda message: _SWITCHING_PROTOCOLS,
    "websocket.http.response.start": lambda message: int(message["status"]),
    "websocket.close": lambda message: _FORBIDDEN,
}


class HasScope(Protocol):
    """A request or a WebSocket of a framework."""

    @property
    def scope(self) -> Any:
        """The scope of the connection."""
        ...


Connection: TypeAlias = HasScope | Scope


class SessionMiddleware:
    """Give an application sessions. Its store is entered and closed by the lifespan protocol.

    ``scope["session"]``, which is ``request.session`` in Starlette, FastAPI and Litestar, is an `edit` of the whole
    request's session: committed before the headers leave; what is changed from then on raises.

    Without the lifespan protocol, the store is opened by the first request, and nobody deletes what has expired: run
    `SessionStore.delete_expired` from time to time.

    Args:
        app: The application.
        store: Where the sessions are.
        cookie: How browsers keep their ids; `CookiePolicy()` if None. Each of several middlewares has another name.
        scope_key: Under which key the session is in the scope; None for not at all.
        commits: Tells from the status of an answer whether what the request changed is stored. By default, what leads
            to an error (from 400 on) is not.
        answer: Tells what is answered to an error of a session: by default, 409 to a conflict, 503 to a session that
            others hold, 500 to a store that fails. None for an error raises it.
    """

    def __init__(
        self,
        app: ASGIApp,
        store: SessionStore,
        cookie: CookiePolicy | None = None,
        *,
        scope_key: str | None = "session",
        commits: Callable[[int], bool] = below_400,
        answer: Callable[[SessionError], Answer | None] = answer_to,
    ) -> None:
        self._app = app
        self._scope_key = scope_key
        self._settings = Settings(store, cookie or CookiePolicy(), _status_of, commits, answer)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a connection, or take part in the application's lifespan."""
        if scope["type"] == "lifespan":
            await Lifespan(self._settings.store, receive, send).run(self._app, scope)
        elif scope["type"] in ("http", "websocket"):
            await self._serve(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        settings, headers = self._settings, scope["headers"]
        settings.warn_if_unfit(scope.get("scheme", "http"), _header(headers, b"host"))
        visit = Visit(settings, _cookie_in(headers, settings.cookie.name))
        scope[_VISITS] = {settings.cookie.name: visit, **scope.get(_VISITS, {})}
        response = _Response(visit, scope, self._scope_key, send)
        try:
            await response.of(self._app, receive)
        except SessionError as error:
            if not response.is_replaced and (visit.has_left or not await response.answer(error)):
                raise
        finally:
            await visit.close()


class _Response:
    """What an application sends, and what is sent instead if its session can't be had, or not be stored.

    Attributes:
        is_replaced: Whether that was sent instead.
    """

    def __init__(self, visit: Visit, scope: Scope, scope_key: str | None, send: Send) -> None:
        self._visit = visit
        self._scope = scope
        self._scope_key = scope_key
        self._send_on = send
        self._session: ScopeSession | None = None
        self.is_replaced = False

    async def of(self, app: ASGIApp, receive: Receive) -> None:
        """Have the application respond."""
        visit = self._visit
        try:
            if self._scope_key is not None:
                self._scope[self._scope_key] = self._session = ScopeSession(visit, await visit.load())
            await app(self._scope, receive, self._send)
        finally:
            await visit.settle(is_failure=True)  # what is still open has been left by an exception, or without a word

    async def _send(self, message: Message) -> None:
        """Commit before the headers leave, and tell the browser of its session."""
        if self.is_replaced:
            return
        status_of = _STATUS_OF.get(message["type"])
        if status_of is not None and not self._visit.has_left:
            self._look_for_another_session()
            status, error = status_of(message), self._visit.error
            if status == _SERVER_ERROR and error is not None and await self.answer(error):
                return  # the framework has nothing better to say of it
            try:
                await self._visit.finish(status)
            except SessionError as error:
                if await self.answer(error):
                    return
                raise
            if message["type"] != "websocket.close":
                message = {**message, "headers": _with(message.get("headers", ()), self._visit.take_headers())}
        await self._send_on(message)

    def _look_for_another_session(self) -> None:
        if self._session is not None and self._scope_key is not None:
            found = self._scope.get(self._scope_key)
            if found is not self._session:
                self._session.replace(found)

    async def answer(self, error: SessionError) -> bool:
        """Answer to an error; return False if the application is to do that."""
        answer = self._visit.settings.answer(error)
        if answer is None:
            return False
        await self._visit.settle(is_failure=True)
        self.is_replaced = True
        if self._scope["type"] == "websocket":
            await self._send_on({"type": "websocket.close", "code": _TRY_AGAIN_LATER})
            return True
        body = answer.text.encode()
        headers = {"Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(body)), **answer.headers}
        raw = _with((), [*headers.items(), *self._visit.take_headers()])
        await self._send_on({"type": "http.response.start", "status": answer.status, "headers": raw})
        await self._send_on({"type": "http.response.body", "body": body})
        return True


def open_session(
    connection: Connection,
    *,
    readonly: bool = False,
    timeout: Timeout = None,
    lease: Timeout = None,
    cookie: str | None = None,
) -> AbstractAsyncContextManager[Session]:
    """Open the visitor's session for a block, exclusively or read-only, as `SessionStore.open`.

    A visitor who has none gets one once something is put in; read-only, it is empty. An id that is unknown, or that a
    browser made up, leads to a new session.

    Args:
        connection: A request, a WebSocket, or a scope.
        readonly: Take a snapshot: no lock, no wait, no change.
        timeout: Seconds to wait for other holders; the store's ``lock_timeout`` if None.
        lease: Seconds after which those who wait may take the session over; the store's if None.
        cookie: The name of the cookie, if there are several `SessionMiddleware`s; the outermost's if None.

    Raises:
        SessionNotFoundError: On entering: the session ended while this request was under way.
        SessionClosedError: On entering: a new session would begin, and the headers have left.
        LockTimeoutError and others: As `SessionStore.open`.
    """
    return visit_of(connection, cookie).open(readonly=readonly, timeout=timeout, lease=lease)


def edit_session(
    connection: Connection, *, resolve: Resolve = None, timeout: Timeout = None, cookie: str | None = None
) -> AbstractAsyncContextManager[Session]:
    """Edit the visitor's session without a lock, as `SessionStore.edit`; see `open_session`."""
    return visit_of(connection, cookie).edit(resolve=resolve, timeout=timeout)


def synchronize_session(
    connection: Connection,
    *variables: str,
    resolve: Resolve = None,
    timeout: Timeout = None,
    lease: Timeout = None,
    cookie: str | None = None,
) -> AbstractAsyncContextManager[Session]:
    """Lock variables of the visitor's session, as `SessionStore.synchronize`; see `open_session`."""
    return visit_of(connection, cookie).synchronize(*variables, resolve=resolve, timeout=timeout, lease=lease)


async def get_session(connection: Connection, *, cookie: str | None = None) -> Session:
    """Return the visitor's session for the whole request, the same each time, and the same as in the scope."""
    return await visit_of(connection, cookie).session()


async def apply_session(
    connection: Connection, *operations: Operation, timeout: Timeout = None, cookie: str | None = None
) -> tuple[Any, ...]:
    """Run operations on the visitor's session, as `SessionStore.apply`; see `open_session`."""
    return await visit_of(connection, cookie).apply(*operations, timeout=timeout)


Endpoint: TypeAlias = Callable[P, Awaitable[R]]


@overload
def retry_on_conflict(endpoint: Endpoint[P, R]) -> Endpoint[P, R]: ...
@overload
def retry_on_conflict(*, times: int = ...) -> Callable[[Endpoint[P, R]], Endpoint[P, R]]: ...
def retry_on_conflict(endpoint: Endpoint[P, R] | None = None, *, times: int = 5) -> Any:
    """Run an endpoint again, on fresh data, when what it changed by `get_session` or `edit_session` meets a conflict.

    The last time, what `get_session` gives is locked, and meets none. The endpoint should do nothing else that must not
    happen twice, and take the session by `get_session`: that in the scope was loaded before it runs.

        @retry_on_conflict
        async def checkout(request): ...

    Args:
        endpoint: A coroutine function, one of whose arguments is the request.
        times: How often it runs at most.
    """
    if times < 1:
        raise ValueError(f"times must be 1 or more, not {times}")
    if endpoint is None:
        return partial(retry_on_conflict, times=times)

    @wraps(endpoint)
    async def retrying(*args: P.args, **kwargs: P.kwargs) -> R:
        connection = next((each for each in (*args, *kwargs.values()) if hasattr(each, "scope")), None)
        if connection is None:
            raise TypeError("retry_on_conflict needs an endpoint that takes the request")
        run = partial(endpoint, *args, **kwargs)
        return await visit_of(connection).retry(run, lambda result: getattr(result, "status_code", 200), times)

    return retrying


def visit_of(connection: Connection, cookie: str | None = None) -> Visit:
    """Return what a request does with the session of a cookie.

    Raises:
        RuntimeError: There is no `SessionMiddleware` around the application, or none with such a cookie.
    """
    scope = connection if isinstance(connection, MutableMapping) else connection.scope
    visits: dict[str, Visit] = scope.get(_VISITS, {})
    if not visits:
        raise RuntimeError("this application has no sessions: wrap it in asyncsess.web.asgi.SessionMiddleware")
    name = cookie or next(reversed(visits))
    if name not in visits:
        raise RuntimeError(f"there is no SessionMiddleware with a cookie {name!r}; there are {', '.join(visits)}")
    return visits[name]


def _header(headers: Any, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in headers if key.lower() == name), "")


def _cookie_in(headers: Any, name: str) -> str | None:
    """Return the value of a cookie; of several, that of the longest path, which browsers send first (RFC 6265, 5.4)."""
    for key, line in headers:
        if key.lower() == b"cookie":
            for part in line.decode("latin-1").split(";"):
                found, equals, value = part.strip().partition("=")
                if equals and found == name:
                    return str(value.strip('"'))
    return None


def _with(headers: Any, more: list[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
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


def _status_of(error: BaseException) -> int | None:
    """Return the status of a framework's ``HTTPException``."""
    for framework in ("starlette.exceptions", "litestar.exceptions", "werkzeug.exceptions"):
        kind = getattr(sys.modules.get(framework), "HTTPException", None)
        if kind is not None and isinstance(error, kind):
            status = getattr(error, "status_code", getattr(error, "code", None))
            return status if isinstance(status, int) else None
    return None
