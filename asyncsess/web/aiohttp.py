"""Sessions for aiohttp applications.

app = web.Application()
setup(app, FileStore("var/sessions"))

async def add(request):
async with open_session(request) as session:
session.setdefault("cart", []).append(request.query["item"])
return web.Response(text="added")
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial, wraps
from typing import Any, Final, overload

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from asyncsess.errors import SessionError
from asyncsess.operations import Operation
from asyncsess.rules import Resolve
from asyncsess.session import Session
from asyncsess.store import SessionStore
from asyncsess.web.answers import Answer, answer_to
from asyncsess.web.cookie import CookiePolicy
from asyncsess.web.settings import Settings, below_400
from asyncsess.web.visit import Timeout, Visit

# Since aiohttp 3.14 there are keys of requests that can not be mistaken for others.
_VISITS: Final[Any] = web.RequestKey("asyncsess", dict) if hasattr(web, "RequestKey") else "asyncsess"
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
    everything below means unless it is told the name of a ``cookie``.

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


def open_session(
    request: web.BaseRequest,
    *,
    readonly: bool = False,
    timeout: Timeout = None,
    lease: Timeout = None,
    cookie: str | None = None,
) -> AbstractAsyncContextManager[Session]:
    """Open the visitor's session for a block, exclusively or read-only, as `SessionStore.open`.

    A visitor who has none gets one once something is put in; read-only, it is empty. An id that is unknown, or that a
    browser made up, leads to a new session.

    Raises:
        SessionNotFoundError: On entering: the session ended while this request was under way.
        SessionClosedError: On entering: a new session would begin, and the headers have left.
        LockTimeoutError and others: As `SessionStore.open`.
    """
    return visit_of(request, cookie).open(readonly=readonly, timeout=timeout, lease=lease)


def edit_session(
    request: web.BaseRequest, *, resolve: Resolve = None, timeout: Timeout = None, cookie: str | None = None
) -> AbstractAsyncContextManager[Session]:
    """Edit the visitor's session without a lock, as `SessionStore.edit`; see `open_session`."""
    return visit_of(request, cookie).edit(resolve=resolve, timeout=timeout)


def synchronize_session(
    request: web.BaseRequest,
    *variables: str,
    resolve: Resolve = None,
    timeout: Timeout = None,
    lease: Timeout = None,
    cookie: str | None = None,
) -> AbstractAsyncContextManager[Session]:
    """Lock variables of the visitor's session, as `SessionStore.synchronize`; see `open_session`."""
    return visit_of(request, cookie).synchronize(*variables, resolve=resolve, timeout=timeout, lease=lease)


async def get_session(request: web.BaseRequest, *, cookie: str | None = None) -> Session:
    """Return the visitor's session for the whole request, the same each time.

    It is an `edit`: nobody waits for it. It is committed before the headers leave, of a stream or a WebSocket as well;
    what is changed from then on raises.
    """
    return await visit_of(request, cookie).session()


async def apply_session(
    request: web.BaseRequest, *operations: Operation, timeout: Timeout = None, cookie: str | None = None
) -> tuple[Any, ...]:
    """Run operations on the visitor's session, as `SessionStore.apply`; see `open_session`."""
    return await visit_of(request, cookie).apply(*operations, timeout=timeout)


@overload
def retry_on_conflict(handler: Handler) -> Handler: ...
@overload
def retry_on_conflict(*, times: int = ...) -> Callable[[Handler], Handler]: ...
def retry_on_conflict(handler: Handler | None = None, *, times: int = 5) -> Handler | Callable[[Handler], Handler]:
    """Run a handler again, on fresh data, when what it changed by `get_session` or `edit_session` meets a conflict.

    The last time, what `get_session` gives is locked, and meets none. The handler should do nothing else that must not
    happen twice.

        @retry_on_conflict
        async def checkout(request): ...

    Args:
        handler: A coroutine function that takes the request.
        times: How often it runs at most.
    """
    if handler is None:
        return partial(_retrying, times=times)
    return _retrying(handler, times=times)


def visit_of(request: web.BaseRequest, cookie: str | None = None) -> Visit:
    """Return what a request does with the session of a cookie.

    Raises:
        RuntimeError: `setup` was not called for the application, or not with such a cookie.
    """
    visits: dict[str, Visit] = request.get(_VISITS, {})
    if not visits:
        raise RuntimeError("this application has no sessions: call asyncsess.web.aiohttp.setup(app, store) first")
    if cookie is None:
        return next(iter(visits.values()))
    if cookie not in visits:
        raise RuntimeError(f"no sessions were set up with a cookie {cookie!r}; there are {', '.join(visits)}")
    return visits[cookie]


async def _while_it_runs(store: SessionStore, app: web.Application) -> AsyncIterator[None]:
    async with store:
        yield


def _middleware(all_settings: Sequence[Settings]) -> Middleware:
    @web.middleware
    async def sessions(request: web.Request, handler: Handler) -> web.StreamResponse:
        visits = []
        for settings in all_settings:
            settings.warn_if_unfit(request.scheme, request.host)
            visits.append(Visit(settings, request.cookies.get(settings.cookie.name)))
        request[_VISITS] = {**request.get(_VISITS, {}), **{visit.settings.cookie.name: visit for visit in visits}}
        try:
            return await _answered(visits, request, handler)
        except SessionError as error:
            answer = None if any(visit.has_left for visit in visits) else all_settings[0].answer(error)
            if answer is None:
                raise
            return web.Response(status=answer.status, text=answer.text, headers=answer.headers)
        finally:
            for visit in visits:
                await visit.close()

    return sessions


async def _answered(visits: Sequence[Visit], request: web.Request, handler: Handler) -> web.StreamResponse:
    """Run a handler, and commit before its answer leaves, so that a conflict can still become another."""
    try:
        try:
            response = await handler(request)
        except web.HTTPException as answer:
            await _settle(visits, answer.status)
            raise
        await _settle(visits, response.status)
    except BaseException:
        for visit in visits:
            await visit.settle(is_failure=True)
        raise
    return response


async def _settle(visits: Sequence[Visit], status: int) -> None:
    for visit in visits:
        await visit.settle(is_failure=not visit.settings.commits(status))


async def _prepare(request: web.Request, response: web.StreamResponse) -> None:
    """Commit before the headers leave, those of a stream as well, and tell the browser of its session."""
    for visit in request.get(_VISITS, {}).values():
        await visit.finish(response.status)
        for name, value in visit.take_headers():
            if name == "Vary" and name in response.headers:
                response.headers[name] = f"{response.headers[name]}, {value}"
            elif name == "Set-Cookie":
                response.headers.add(name, value)
            else:
                response.headers[name] = value


def _retrying(handler: Handler, *, times: int) -> Handler:
    if times < 1:
        raise ValueError(f"times must be 1 or more, not {times}")

    @wraps(handler)
    async def retrying(request: web.Request) -> web.StreamResponse:
        run: Callable[[], Awaitable[web.StreamResponse]] = partial(handler, request)
        return await visit_of(request).retry(run, lambda response: response.status, times)

    return retrying


def _status_of(error: BaseException) -> int | None:
    return error.status if isinstance(error, web.HTTPException) else None
