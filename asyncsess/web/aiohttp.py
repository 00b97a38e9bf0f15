"""Sessions for aiohttp applications.

app = web.Application()
setup(app, FileStore("var/sessions"))

async def add(request):
async with open_session(request) as session:
session.setdefault("cart", []).append(request.query["item"])
return web.Response(text="added")
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any, Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from asyncsess.errors import SessionError
from asyncsess.store import SessionStore
from asyncsess.web.answers import Answer, answer_to
from asyncsess.web.cookie import CookiePolicy
from asyncsess.web.csrf import FIELD, HEADER, REFUSAL, csrf_token, is_same_token, needs_token, token_of
from asyncsess.web.flash import Flash, flash, get_flashes
from asyncsess.web.sessions import (
    KEY,
    KEYS,
    apply_session,
    edit_session,
    get_session,
    open_session,
    retry_on_conflict,
    synchronize_session,
)
from asyncsess.web.settings import Settings, below_400
from asyncsess.web.visit import Visit
from asyncsess.web.visits import Visits, close

__all__ = [
    "Flash",
    "apply_session",
    "csrf_protection",
    "csrf_token",
    "edit_session",
    "flash",
    "get_flashes",
    "get_session",
    "open_session",
    "retry_on_conflict",
    "setup",
    "synchronize_session",
]

# Since aiohttp 3.14 there are keys of requests that can not be mistaken for others.
_VISITS: Final[Any] = web.RequestKey("asyncsess", Visits) if hasattr(web, "RequestKey") else KEY
KEYS.insert(0, _VISITS)
_FORMS: Final = ("application/x-www-form-urlencoded", "multipart/form-data")
_SETTINGS: Final = web.AppKey("asyncsess", list[Settings])


def setup(
    app: web.Application,
    store: SessionStore,
    cookie: CookiePolicy | None = None,
    *,
    commits: Callable[[int], bool] = below_400,
    answer: Callable[[SessionError], Answer | None] = answer_to,
) -> None:
    """Give an application sessions. Its store is entered and closed with it.

    Called again with a cookie of another name, it gives another session to each visitor; the first is the one that
    everything below means unless it is told the name of a ``cookie``, and its ``answer`` holds for all.

    Args:
        app: The application; its subapplications have the sessions too.
        store: Where the sessions are.
        cookie: How browsers keep their ids; `CookiePolicy()` if None.
        commits: Tells from the status of an answer, returned or raised, whether what `get_session` gave is stored, and
            whether a block is that the answer is raised from. By default, errors (from 400 on) are not.
        answer: Tells what is answered to an error of a session: by default, 409 to a conflict, 503 to a session that
            others hold, 500 to a store that fails. None for an error raises it.
    """
    settings = Settings(store, cookie or CookiePolicy(), _status_of, commits, answer)
    if _SETTINGS not in app:
        all_settings: list[Settings] = []
        app[_SETTINGS] = all_settings
        app.middlewares.insert(0, _middleware(all_settings))  # so that all others can use the session
        app.on_response_prepare.append(_prepare)
    if any(settings.cookie.name == other.cookie.name for other in app[_SETTINGS]):
        raise ValueError(f"there is a session with a cookie {settings.cookie.name!r} already; give this one a name")
    if all(settings.store is not other.store for other in app[_SETTINGS]):
        app.cleanup_ctx.append(partial(_while_it_runs, store))
    app[_SETTINGS].append(settings)


@web.middleware
async def csrf_protection(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse with 403 what would change something and does not bring its session's `csrf_token`.

        setup(app, store)
        app.middlewares.append(csrf_protection)

    The token comes in the header ``X-CSRF-Token``, or in the field ``csrf_token`` of a form; in the header alone for a
    handler that reads ``request.multipart()`` itself, since looking for the field reads the form. It is that of the
    first cookie's session. WebSockets pass: from other sites, browsers do not send a cookie with ``SameSite=Lax``.
    """
    if needs_token(request.method):
        expected, sent = await token_of(request), request.headers.get(HEADER)
        if expected and sent is None and request.content_type in _FORMS:
            sent = await _field_of(request)
        if not is_same_token(expected, sent):
            return web.Response(status=403, text=REFUSAL)
    return await handler(request)


async def _field_of(request: web.Request) -> str | None:
    """Return the token in a form; None also if the form can't be read."""
    try:
        field = (await request.post()).get(FIELD)
    except (ValueError, LookupError, AssertionError):
        return None
    return field if isinstance(field, str) else None


async def _while_it_runs(store: SessionStore, app: web.Application) -> AsyncIterator[None]:
    async with store:
        yield


def _middleware(all_settings: Sequence[Settings]) -> Middleware:
    @web.middleware
    async def sessions(request: web.Request, handler: Handler) -> web.StreamResponse:
        cookies, all_visits = request.cookies, request.setdefault(_VISITS, Visits())
        visits = [all_visits.begin(settings, cookies.get(settings.cookie.name)) for settings in all_settings]
        try:
            return await _answered(visits, request, handler)
        except BaseException as error:
            if any(visit.visitor.has_left for visit in visits):
                raise
            _forget_stream(request)
            answer = all_settings[0].answer(error) if isinstance(error, SessionError) else None
            if answer is None:
                raise
            return web.Response(status=answer.status, text=answer.text, headers=answer.headers)
        finally:
            await close(visits)

    return sessions


def _forget_stream(request: web.Request) -> None:
    """Have the connection ready for another response: aiohttp prepares it for a stream before it asks."""
    writer: Any = request._payload_writer
    writer.chunked, writer.length, writer._compress = False, None, None


async def _answered(visits: Sequence[Visit], request: web.Request, handler: Handler) -> web.StreamResponse:
    """Run a handler, and commit before its answer leaves, so that a conflict can still become another."""
    try:
        response = await handler(request)
    except web.HTTPException as answer:
        await _settle(visits, answer.status)
        raise
    if isinstance(response, web.StreamResponse):  # else aiohttp says what is wrong with it
        await _settle(visits, response.status)
    return response


async def _settle(visits: Sequence[Visit], status: int) -> None:
    for visit in visits:
        await visit.finish(status)


async def _prepare(request: web.Request, response: web.StreamResponse) -> None:
    """Commit before the headers leave, those of a stream as well, and tell the browser of its session."""
    visits = request.get(_VISITS, Visits())
    await visits.finish(response.status)
    for visit in visits.values():
        for name, value in visit.leave():
            if name == "Vary":
                response.headers[name] = ", ".join([*response.headers.popall(name, ()), value])
            elif name == "Set-Cookie":
                visit.settings.warn_if_unfit(request.scheme, request.host)
                response.headers.add(name, value)
            else:
                response.headers[name] = value


def _status_of(error: BaseException) -> int | None:
    return error.status if isinstance(error, web.HTTPException) else None
