"""Who a session belongs to: `login` and `logout`."""

from __future__ import annotations

from asyncsess.openings.owned import ownership
from asyncsess.session import Session
from asyncsess.values import CSRF, OWNER


async def login(session: Session, owner: str, *, label: str | None = "") -> None:
    """Make a session that of somebody who has just proved who they are, under a fresh id.

    The old id is dead at once, so whoever planted it or saw it has nothing. What a visitor's session holds stays, save
    for its CSRF token; what that of another owner holds does not. It is stored when this returns.

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
    before, owned = dict(session), ownership(owner, label)
    if session.owner not in (None, owner):
        session.clear()
    session[OWNER] = owned
    session.pop(CSRF, None)
    try:
        await session.regenerate_id(grace=0)
    except BaseException:
        if not session.has_new_id:  # else whoever goes on would store the owner under the old id
            session.clear()
            session.update(before)
        raise


async def logout(session: Session) -> None:
    """End a session, for all who have it open and all who come later."""
    await session.destroy()
