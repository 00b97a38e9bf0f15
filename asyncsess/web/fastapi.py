"""Sessions as dependencies of FastAPI, beside a `asyncsess.web.asgi.SessionMiddleware`.

    @app.post("/cart/{item}")
    async def add(item: str, session: Annotated[Session, Depends(exclusive_session)]):
        session.setdefault("cart", []).append(item)

Each is committed before the headers of the answer leave, whether FastAPI leaves the dependency after that, as by
default, or before, with ``scope="function"``. For what a dependency can't say, such as a timeout, take the request and
use the functions of `asyncsess.web.asgi`; so too for what is run again by `retry_on_conflict`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from starlette.requests import HTTPConnection

from asyncsess.rules import Resolve
from asyncsess.session import Session
from asyncsess.web.sessions import edit_session, get_session, open_session, synchronize_session


async def readonly_session(connection: HTTPConnection) -> AsyncIterator[Session]:
    """Give a snapshot of the visitor's session: no lock, no wait, no change."""
    async with open_session(connection, readonly=True) as session:
        yield session


async def exclusive_session(connection: HTTPConnection) -> AsyncIterator[Session]:
    """Give the visitor's session, which nobody else changes meanwhile."""
    async with open_session(connection) as session:
        yield session


async def current_session(connection: HTTPConnection) -> Session:
    """Give the session of the whole request, the same as ``request.session``."""
    return await get_session(connection)


def edited_session(resolve: Resolve = None) -> Callable[[HTTPConnection], AsyncIterator[Session]]:
    """Return a dependency that gives the visitor's session without a lock, to be merged by rules.

    Args:
        resolve: What settles conflicts, as for `SessionStore.edit`.
    """

    async def edited(connection: HTTPConnection) -> AsyncIterator[Session]:
        async with edit_session(connection, resolve=resolve) as session:
            yield session

    return edited


def synchronized_session(
    *variables: str, resolve: Resolve = None
) -> Callable[[HTTPConnection], AsyncIterator[Session]]:
    """Return a dependency that gives the visitor's session with some variables locked.

    Args:
        variables: Which.
        resolve: What settles conflicts with those who have not locked them, as for `SessionStore.synchronize`.
    """

    async def synchronized(connection: HTTPConnection) -> AsyncIterator[Session]:
        async with synchronize_session(connection, *variables, resolve=resolve) as session:
            yield session

    return synchronized
