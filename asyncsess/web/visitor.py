"""`Visitor`: who came with a cookie, and what his browser is to be told of it."""

from __future__ import annotations

from typing import Final

from asyncsess.errors import SessionClosedError, SessionNotFoundError
from asyncsess.session import Session
from asyncsess.web.settings import Settings

_ON_THE_WAY: Final = 30.0  # seconds for which a request may be


class Visitor:
    """Who came with a cookie, and what his browser is to be told.

    Args:
        settings: Those of the application.
        value: The cookie's; None if there was none.

    Attributes:
        session_id: The id that leads to his session; None if he has none.
        late: Set once his session turned out to have ended or moved while the request was on its way.
        has_left: Whether the headers have left, so that he can't be told anything any more.
    """

    def __init__(self, settings: Settings, value: str | None) -> None:
        self._settings = settings
        self._began = settings.store.clock()
        self._has_cookie = value is not None
        self._cookie = ""
        self.session_id = settings.cookie.session_id(value)
        self.late: SessionNotFoundError | None = None
        self.has_left = False

    def forget(self, error: SessionNotFoundError) -> None:
        """Take him for a new one, unless his session ended or moved while this request was on its way.

        A request that was sent before a login may arrive after it. If it began a session, its cookie would replace that
        of the login.
        """
        self.session_id = None
        if error.died_at is not None:
            died_at = error.died_at.timestamp()
            if died_at > (self._began - _ON_THE_WAY if error.was_replaced else self._began):
                self.late = error

    def check_may_begin(self, *, is_late_fine: bool) -> None:
        """Raise if a new session would be out of place: nobody could be told, or he has another by now."""
        if self.late is not None and not is_late_fine:
            raise self.late
        if self.has_left:
            raise SessionClosedError(
                "the headers have left, so the visitor can't be told of a new session; begin it before the response"
            )

    def gets(self, session: Session) -> None:
        """Give him a session, under the id that it has now."""
        cookie = self._settings.cookie
        self.session_id, self._cookie = session.id, cookie.issue(session.id, self._left(session))

    def loses(self) -> None:
        """Take his session from him."""
        self.session_id, self._cookie = None, self._settings.cookie.delete() if self._has_cookie else ""

    @property
    def has_news(self) -> bool:
        """Whether he is to be told of his session."""
        return bool(self._cookie)

    def take_headers(self) -> list[tuple[str, str]]:
        """Return, once, what tells him of his session."""
        cookie, self._cookie = self._cookie, ""
        return [("Set-Cookie", cookie), ("Cache-Control", "no-store")] if cookie else []

    def _left(self, session: Session) -> float | None:
        store, created_at = self._settings.store, session.created_at
        if store.lifetime is None or created_at is None:
            return None
        return max(0.0, created_at.timestamp() + store.lifetime - store.clock())
