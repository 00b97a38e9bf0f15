"""What a handler does with its visitor's session: the same functions in every framework.

Each takes the request: that of aiohttp, that of an ASGI framework, a WebSocket, or an ASGI scope.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial, wraps
from typing import Any, Final, ParamSpec, TypeAlias, TypeVar, overload

from asyncsess.operations import Operation
from asyncsess.rules import Resolve
from asyncsess.session import Session
from asyncsess.web.visit import Timeout, Visit
from asyncsess.web.visits import Visits

P = ParamSpec("P")
R = TypeVar("R")
Handler: TypeAlias = Callable[P, Awaitable[R]]

KEY: Final = "asyncsess"
KEYS: Final[list[Any]] = [KEY]  # under which the visits of a request lie in it, or in its scope
_OK: Final = 200


def open_session(
    request: Any,
    *,
    readonly: bool = False,
    touch: bool = True,
    timeout: Timeout = None,
    lease: Timeout = None,
    cookie: str | None = None,
) -> AbstractAsyncContextManager[Session]:
    """Open the visitor's session for a block, exclusively or read-only, as `SessionStore.open`.

    A visitor who has none gets one once something is put in; read-only, it is empty. An id that is unknown, or that a
    browser made up, leads to a new session.

    Args:
        request: A request or a WebSocket.
        readonly: Take a snapshot: no lock, no wait, no change.
        touch: Whether that counts as a use of the session; not for a poll of a page that is left open.
        timeout: Seconds to wait for other holders; the store's ``lock_timeout`` if None.
        lease: Seconds after which those who wait may take the session over; the store's if None.
        cookie: The name of the cookie, where an application has several; the first that was set up if None.

    Raises:
        SessionNotFoundError: On entering: the session ended while this request was under way.
        SessionClosedError: On entering: a new session would begin, and the headers have left.
        LockTimeoutError and others: As `SessionStore.open`.
    """
    return visit_of(request, cookie).open(readonly=readonly, touch=touch, timeout=timeout, lease=lease)


def edit_session(
    request: Any, *, resolve: Resolve = None, timeout: Timeout = None, cookie: str | None = None
) -> AbstractAsyncContextManager[Session]:
    """Edit the visitor's session without a lock, as `SessionStore.edit`; see `open_session`."""
    return visit_of(request, cookie).edit(resolve=resolve, timeout=timeout)


def synchronize_session(
    request: Any,
    *variables: str,
    resolve: Resolve = None,
    timeout: Timeout = None,
    lease: Timeout = None,
    cookie: str | None = None,
) -> AbstractAsyncContextManager[Session]:
    """Lock variables of the visitor's session, as `SessionStore.synchronize`; see `open_session`."""
    return visit_of(request, cookie).synchronize(*variables, resolve=resolve, timeout=timeout, lease=lease)


async def get_session(request: Any, *, cookie: str | None = None) -> Session:
    """Return the visitor's session for the whole request, the same each time.

    It is an `edit`: nobody waits for it. It is committed before the headers leave, of a stream or a WebSocket as well;
    what is changed from then on raises.
    """
    return await visit_of(request, cookie).session()


async def apply_session(
    request: Any, *operations: Operation, timeout: Timeout = None, cookie: str | None = None
) -> tuple[Any, ...]:
    """Run operations on the visitor's session, as `SessionStore.apply`; see `open_session`."""
    return await visit_of(request, cookie).apply(*operations, timeout=timeout)


@overload
def retry_on_conflict(handler: Handler[P, R]) -> Handler[P, R]: ...
@overload
def retry_on_conflict(*, times: int = ...) -> Callable[[Handler[P, R]], Handler[P, R]]: ...
def retry_on_conflict(handler: Handler[P, R] | None = None, *, times: int = 5) -> Any:
    """Run a handler again, on fresh data, when what it changed by `get_session` or `edit_session` meets a conflict.

    The last time, what `get_session` gives is locked, and meets none, if the handler opens the session in no other way.
    Whatever it had stored before the conflict, by a block that had ended or by `flash`, happens again, like all else.

        @retry_on_conflict
        async def checkout(request): ...

    Args:
        handler: A coroutine function, one of whose arguments is the request, or has it as its ``request``.
        times: How often it runs at most.
    """
    if times < 1:
        raise ValueError(f"times must be 1 or more, not {times}")
    if handler is None:
        return partial(retry_on_conflict, times=times)

    @wraps(handler)
    async def retrying(*args: P.args, **kwargs: P.kwargs) -> R:
        if any(isinstance(argument, Session) for argument in (*args, *kwargs.values())):
            raise TypeError(
                "retry_on_conflict runs the handler again with the same arguments, so a session can't be one of them, "
                "such as by a dependency: take the request, and open the session inside of the handler"
            )
        for argument in (*args, *kwargs.values()):
            if visits := _visits_of(argument) or _visits_of(getattr(argument, "request", None)):
                return await visits.retry(partial(handler, *args, **kwargs), _status_of, times)
        raise TypeError("retry_on_conflict needs a handler that takes the request, of an application with sessions")

    return retrying


def visit_of(request: Any, cookie: str | None = None) -> Visit:
    """Return what a request does with the session of a cookie.

    Raises:
        RuntimeError: The application was not given sessions, or none with such a cookie.
    """
    visits = _visits_of(request)
    if not visits:
        raise RuntimeError(
            "this application has no sessions: call asyncsess.web.aiohttp.setup(app, store), or wrap it in "
            "asyncsess.web.asgi.SessionMiddleware, outside of all that uses the session"
        )
    name = next(iter(visits)) if cookie is None else cookie
    if name not in visits:
        raise RuntimeError(f"no sessions were set up with a cookie {name!r}; there are {', '.join(visits)}")
    return visits[name]


def _visits_of(request: Any) -> Visits:
    """Return the visits of a request; none for what is no request."""
    found = getattr(request, "scope", request)
    if isinstance(found, Mapping):
        for key in KEYS:
            if isinstance(visits := found.get(key), Visits):
                return visits
    return Visits()


def _status_of(response: Any) -> int:
    if isinstance(response, tuple):  # as in Quart: a body, its status, headers
        return next((part for part in response if isinstance(part, int)), _OK)
    status = getattr(response, "status_code", getattr(response, "status", _OK))
    return status if isinstance(status, int) else _OK
