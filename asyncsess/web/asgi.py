"""Sessions for ASGI applications: Starlette, FastAPI, Litestar, Quart, and those without a framework.

app = Starlette(middleware=[Middleware(SessionMiddleware, store=FileStore("var/sessions"))], ...)

async def add(request):
async with open_session(request) as session:
session.setdefault("cart", []).append(request.query_params["item"])
return PlainTextResponse("added")
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from functools import partial
from typing import Final
from urllib.parse import parse_qs

from asyncsess.errors import SessionError
from asyncsess.store import SessionStore
from asyncsess.web.answers import Answer, answer_to
from asyncsess.web.cookie import CookiePolicy
from asyncsess.web.csrf import FIELD, HEADER, REFUSAL, csrf_token, is_same_token, needs_token, token_of
from asyncsess.web.flash import Flash, flash, get_flashes
from asyncsess.web.lifespan import Lifespan
from asyncsess.web.messages import ASGIApp, Message, Receive, Scope, Send, cookie_in, header, respond, with_headers
from asyncsess.web.scope import ScopeSession
from asyncsess.web.sessions import (
    KEY,
    apply_session,
    edit_session,
    get_session,
    open_session,
    retry_on_conflict,
    synchronize_session,
)
from asyncsess.web.settings import Settings, below_400
from asyncsess.web.visit import Visit
from asyncsess.web.visits import Visits

__all__ = [
    "CSRFMiddleware",
    "Flash",
    "SessionMiddleware",
    "apply_session",
    "csrf_token",
    "edit_session",
    "flash",
    "get_flashes",
    "get_session",
    "open_session",
    "retry_on_conflict",
    "synchronize_session",
]

_SWITCHING_PROTOCOLS: Final = 101
_FORBIDDEN: Final = 403  # what a server answers when a WebSocket is closed before it was accepted
_SERVER_ERROR: Final = 500
_FORM: Final = "application/x-www-form-urlencoded"
_MOST_FIELDS: Final = 1000
_TRY_AGAIN_LATER: Final = 1013
_STATUS_OF: Final[dict[str, Callable[[Message], int]]] = {
    "http.response.start": lambda message: int(message["status"]),
    "websocket.accept": lambda message: _SWITCHING_PROTOCOLS,
    "websocket.http.response.start": lambda message: int(message["status"]),
    "websocket.close": lambda message: _FORBIDDEN,
}


class SessionMiddleware:
    """Give an application sessions. Its store is entered and closed by the lifespan protocol.

    ``scope["session"]``, which is ``request.session`` in Starlette, FastAPI and Litestar, is an `edit` of the whole
    request's session: committed before the headers leave; what is changed from then on raises. That of a WebSocket is
    as it was on connecting: open it by `open_session` for each message.

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
        visits = scope[KEY] = Visits(scope.get(KEY))
        visit = visits.begin(self._settings, cookie_in(scope["headers"], self._settings.cookie))
        if self._scope_key is not None and isinstance(scope.get(self._scope_key), ScopeSession):
            raise RuntimeError(
                f"there are two SessionMiddlewares with a session in scope[{self._scope_key!r}]; give one another "
                "scope_key, or None"
            )
        try:
            await _Response(visit, visits, scope, self._scope_key, send).of(self._app, receive)
        finally:
            await visit.close()


class CSRFMiddleware:
    """Refuse with 403 what would change something and does not bring its session's `csrf_token`.

        app = SessionMiddleware(CSRFMiddleware(app), store)

    The token comes in the header ``X-CSRF-Token``, or in the field ``csrf_token`` of a form that is URL-encoded; a form
    with files has to send the header. It is that of the outermost `SessionMiddleware`'s session. WebSockets pass: from
    other sites, browsers do not send a cookie with ``SameSite=Lax``.

    Args:
        app: The application.
        max_form: Bytes of a form that are read to find its token.
    """

    def __init__(self, app: ASGIApp, *, max_form: int = 1024 * 1024) -> None:
        self._app = app
        self._max_form = max_form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a connection, unless it is refused."""
        if scope["type"] == "http" and needs_token(scope["method"]):
            sent: str | None = header(scope["headers"], HEADER.lower().encode())
            is_form = header(scope["headers"], b"content-type").lower().startswith(_FORM)
            expected = await token_of(scope)
            if expected and not sent and is_form:
                sent, receive = await self._token_in_form(receive)
            if not is_same_token(expected, sent):
                await respond(send, Answer(403, REFUSAL))
                return
        await self._app(scope, receive, send)

    async def _token_in_form(self, receive: Receive) -> tuple[str | None, Receive]:
        """Return the token in a form, and what gives the application the form again."""
        read: list[Message] = []
        length, has_more = 0, True
        while has_more and length <= self._max_form:
            message = await receive()
            read.append(message)
            length += len(message.get("body", b""))
            has_more = message["type"] == "http.request" and message.get("more_body", False)
        text = b"".join(message.get("body", b"") for message in read).decode("latin-1")
        waiting = iter(read)

        async def receive_again() -> Message:
            message = next(waiting, None)
            return await receive() if message is None else message

        try:
            form = parse_qs(text, max_num_fields=_MOST_FIELDS)
        except ValueError:  # no form of a page has so many
            form = {}
        return form.get(FIELD, [None])[0], receive_again


class _Unheard(BaseException):
    """What an application sends is heard by nobody: another answer was sent, since its session could not be stored.

    Like a cancellation, it is nothing that went wrong in the application, whose handlers of exceptions need not know.
    """


class _Response:
    """What an application sends, and what is sent instead if its session can't be had, or not be stored."""

    def __init__(self, visit: Visit, visits: Visits, scope: Scope, scope_key: str | None, send: Send) -> None:
        self._visit = visit
        self._told = visits.told
        self._scope = scope
        self._scope_key = scope_key
        self._send_on = send
        self._session: ScopeSession | None = None
        self._is_replaced = False
        self._held: list[Message] = []
        self._sending = asyncio.Lock()

    async def of(self, app: ASGIApp, receive: Receive) -> None:
        """Have the application respond."""
        visit = self._visit
        try:
            if self._scope_key is not None:
                await visit.try_load()
                self._scope[self._scope_key] = self._session = ScopeSession(visit)
                visit.before_end = self._look_for_another_session
            await app(self._scope, partial(self._receive, receive), self._send)
        except _Unheard:
            return
        except BaseExceptionGroup as group:
            _, rest = group.split(_Unheard)
            if rest is not None:
                await self._fail()
                raise rest from None
            return
        except Exception as error:  # whatever it is comes out, unless it is the session's and has become an answer
            if not isinstance(error, SessionError) or not await self._is_answered(error):
                await self._fail()
                raise
            return
        await self._send_held()

    async def _receive(self, receive: Receive) -> Message:
        """Receive for an application, which goes on: so what it has sent is its answer."""
        if self._held:
            async with self._sending:
                await self._send_held()
        return await receive()

    async def _send(self, message: Message) -> None:
        """Commit before the headers leave, and tell the browser of its session.

        Raises:
            _Unheard: Another answer was sent, so the application would go on for nobody.
        """
        if self._is_replaced:
            raise _Unheard
        async with self._sending:  # one after the other
            await self._pass_on(message)

    async def _pass_on(self, message: Message) -> None:
        status_of = _STATUS_OF.get(message["type"])
        if status_of is None or self._visit.visitor.has_left:
            await (self._send_on(message) if not self._held else self._hold(message))
            return
        status = status_of(message)
        try:
            await self._visit.finish(status)
        except SessionError as error:
            if await self._answer(error):
                raise _Unheard from error
            raise
        if status == _SERVER_ERROR and not self._held:  # a framework's answer to an exception that comes out later
            await self._hold(message)
        else:
            await self._start(message)

    async def _hold(self, message: Message) -> None:
        self._held.append(message)

    async def _send_held(self) -> None:
        held, self._held = self._held, []
        for message in held:
            await (self._start(message) if message["type"] in _STATUS_OF else self._send_on(message))

    async def _start(self, message: Message) -> None:
        headers = self._leave()
        if message["type"] != "websocket.close":
            message = {**message, "headers": with_headers(message.get("headers", ()), headers)}
        await self._send_on(message)

    async def _fail(self) -> None:
        """Answer to an exception of the application, if nobody else will tell the browser of its session."""
        visit = self._visit
        await visit.settle(is_failure=True)
        if self._held:
            await self._send_held()
        elif not visit.visitor.has_left and visit.visitor.has_news and self._scope["type"] == "http":
            await respond(self._send_on, Answer(_SERVER_ERROR, "Internal Server Error\n"), self._leave())

    def _leave(self) -> list[tuple[str, str]]:
        """Return what the headers say of the session; a cookie with a warning if it will not work, or is not safe."""
        headers = self._visit.leave()
        if len(headers) > 1:
            host = header(self._scope["headers"], b"host")
            self._visit.settings.warn_if_unfit(self._scope.get("scheme", "http"), host)
        self._told += [(name, value) for name, value in headers if name == "Set-Cookie"]
        return headers

    def _look_for_another_session(self) -> None:
        """Take what the application has put in the place of its session."""
        assert self._session is not None
        assert self._scope_key is not None
        found = self._scope.get(self._scope_key)
        if not isinstance(found, ScopeSession):
            self._session.replace(found)
            self._scope[self._scope_key] = self._session

    async def _is_answered(self, error: SessionError) -> bool:
        """Answer to an error, unless that was done, or is too late; return whether there is an answer."""
        return self._is_replaced or (not self._visit.visitor.has_left and await self._answer(error))

    async def _answer(self, error: SessionError) -> bool:
        """Answer to an error; return False if the application is to do that."""
        await self._visit.settle(is_failure=True)
        answer = self._visit.settings.answer(error)
        if answer is None:
            return False
        self._is_replaced = True
        headers = [*self._told, *self._leave()]
        if self._scope["type"] == "http":
            await respond(self._send_on, answer, headers)
        elif "websocket.http.response" in self._scope.get("extensions", {}):
            await respond(self._send_on, answer, headers, kind="websocket.http.response")
        else:
            await self._send_on({"type": "websocket.close", "code": _TRY_AGAIN_LATER})
        return True


def _status_of(error: BaseException) -> int | None:
    """Return the status of a framework's ``HTTPException``."""
    for framework in ("starlette.exceptions", "litestar.exceptions", "werkzeug.exceptions"):
        kind = getattr(sys.modules.get(framework), "HTTPException", None)
        if kind is not None and isinstance(error, kind):
            for source, name in (
                (error, "status_code"),
                (error, "code"),
                (getattr(error, "response", 0), "status_code"),
            ):
                status = getattr(source, name, None)
                if isinstance(status, int):
                    return status
    return None
