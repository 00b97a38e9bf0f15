"""Who a session belongs to: `login` and `logout`."""

from __future__ import annotations

from asyncsess.openings.owned import ownership
from asyncsess.session import Session
from asyncsess.values import CSRF, OWNER


async def login(session: Session, owner: str, *, label: str | None = "") -> None:
    """Make a session that of somebody who has just proved who they are, under a fresh id.

    The old id is dead at once, so whoever planted it or saw it has nothing. What the session holds stays, but for its
    CSRF token. It is stored when this returns.

        async with open_session(request) as session:
            await login(session, user.id, label=request.headers.get("User-Agent", ""))

    Args:
        session: That of the visitor, open for writing, perhaps a new one.
        owner: Who, by a name that does not change, such as a user's id in the database.
        label: What the owner knows this session by in a list, such as the browser; at most 256 characters are kept.

    Raises:
        ValueError: The owner is no string, or empty.
        SessionError: As `Session.regenerate_id`; nobody is logged in.
    """
    before = {key: session[key] for key in (OWNER, CSRF) if key in session}
    session[OWNER] = ownership(owner, label)
    session.pop(CSRF, None)
    try:
        await session.regenerate_id(grace=0)
    except BaseException:
        if not session.has_new_id:  # else whoever goes on would store the owner under the old id
            _restore(session, before)
        raise


async def logout(session: Session) -> None:
    """End a session, for all who have it open and all who come later."""
    await session.destroy()


def _restore(session: Session, before: dict[str, object]) -> None:
    session.pop(OWNER, None)
    session.update(before)
