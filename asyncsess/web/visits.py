"""`Visits`: what one request does with its visitor's sessions, of which there may be several."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from asyncsess.errors import ConflictError
from asyncsess.web.settings import Settings
from asyncsess.web.visit import Visit

T = TypeVar("T")

_FIRST_PAUSE: Final = 0.01


class Visits(dict[str, Visit]):
    """What a request does with its visitor's sessions, by the names of their cookies.

    Args:
        others: Those of the parts of the application around this one.

    Attributes:
        told: The cookies by which inner parts have told the browser of their sessions.
    """

    def __init__(self, others: Visits | None = None) -> None:
        super().__init__({} if others is None else others)
        self.told: list[tuple[str, str]] = [] if others is None else others.told

    def begin(self, settings: Settings, value: str | None) -> Visit:
        """Add a visit.

        Args:
            settings: Those of the application.
            value: The cookie's; None if there was none.

        Raises:
            RuntimeError: There is one with a cookie of that name.
        """
        name = settings.cookie.name
        if name in self:
            raise RuntimeError(
                f"this request has two sessions with a cookie {name!r}, such as by the setups of an application and of "
                "a part of it; keep one of them, or give one another name"
            )
        visit = self[name] = Visit(settings, value)
        return visit

    async def finish(self, status: int) -> None:
        """Settle what is open, since the headers of an answer are about to leave: all of it, before any is told.

        Raises:
            SessionError: Something could not be stored; what is to be answered is another matter.
        """
        for visit in self.values():
            await visit.finish(status)

    async def retry(self, run: Callable[[], Awaitable[T]], status_of: Callable[[T], int], times: int) -> T:
        """Run a handler until what it changed meets no conflict; exclusively, the last time.

        Args:
            run: The handler.
            status_of: Tells the status of what it returns.
            times: How often, at most.

        Raises:
            ConflictError: The last try met one nevertheless; or the headers had left by then, or another session of the
                request was stored.
        """
        visits = self.values()
        for number in range(1, times + 1):
            for visit in visits:
                await visit.begin_try(number, times)
            try:
                return await self._run_once(run, status_of)
            except ConflictError:
                if number == times or any(visit.visitor.has_left or visit.has_stored for visit in visits):
                    raise
            await asyncio.sleep(random.uniform(0, _FIRST_PAUSE * 2**number))
        raise ValueError(f"times must be 1 or more, not {times}")

    async def _run_once(self, run: Callable[[], Awaitable[T]], status_of: Callable[[T], int]) -> T:
        """Run a handler, and commit what it changed unless the headers left before, or it is to be rolled back."""
        try:
            result = await run()
        except BaseException as error:
            status = next(iter(self.values())).settings.status_of(error)
            if status is not None:
                await self._keep(status)
            raise
        await self._keep(status_of(result))
        return result

    async def _keep(self, status: int) -> None:
        for visit in self.values():
            if not visit.visitor.has_left and visit.settings.commits(status):
                await visit.keep()


async def close(visits: Sequence[Visit]) -> None:
    """Close visits, each whatever becomes of the others."""
    try:
        await visits[-1].close()
    finally:
        if others := visits[:-1]:
            await close(others)
