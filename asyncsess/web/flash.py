"""Messages for the next page that a visitor sees, such as "saved" after a redirect."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from asyncsess.operations import append, pop
from asyncsess.web.sessions import apply_session, open_session

_FLASHES: Final = "_flashes"


class Flash(NamedTuple):
    """A message for a visitor.

    Attributes:
        text: What to show.
        category: How, such as ``"info"`` or ``"error"``.
    """

    text: str
    category: str


async def flash(request: Any, text: str, category: str = "info", *, cookie: str | None = None) -> None:
    """Leave a message for the next page that shows messages.

    It is stored at once; in a session that this request has locked, with what its block commits.

    Args:
        request: A request or a WebSocket.
        text: The message.
        category: How to show it.
        cookie: As for `open_session`.
    """
    await apply_session(request, append(_FLASHES, [text, category]), cookie=cookie)


async def get_flashes(request: Any, *, cookie: str | None = None) -> list[Flash]:
    """Return the messages that were left, each once: of several pages at the same time, one gets them.

    A page without messages waits for nobody and stores nothing.

    Args:
        request: A request or a WebSocket.
        cookie: As for `open_session`.
    """
    async with open_session(request, readonly=True, cookie=cookie) as session:
        if _FLASHES not in session:
            return []
    (found,) = await apply_session(request, pop(_FLASHES, None), cookie=cookie)
    return [Flash(*each) for each in found or ()]
