"""`Settings`: what an application says once of a cookie and its sessions."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from asyncsess.errors import SessionError
from asyncsess.store import SessionStore
from asyncsess.web.answers import Answer, answer_to
from asyncsess.web.cookie import CookiePolicy

logger = logging.getLogger("asyncsess")

_LOOPBACK: Final = ("localhost", "testserver")  # which is what Starlette's test client calls it


def below_400(status: int) -> bool:
    """Tell whether an answer with this status is no error."""
    return status < 400


@dataclass(frozen=True, slots=True)
class Settings:
    """What an application has been told once of a cookie and its sessions.

    Attributes:
        store: Where the sessions are.
        cookie: How the browser keeps their ids.
        status_of: Tells the status of an exception that is an answer, such as a redirect; None for any other.
        commits: Tells from the status of an answer whether what the handler changed is stored.
        answer: Tells what is answered to an error; None to raise it.
    """

    store: SessionStore
    cookie: CookiePolicy
    status_of: Callable[[BaseException], int | None]
    commits: Callable[[int], bool] = below_400
    answer: Callable[[SessionError], Answer | None] = answer_to
    _warned: set[str] = field(default_factory=set[str], compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.store, SessionStore):
            raise TypeError(f"the store is one of asyncsess, such as FileStore(...), not {type(self.store).__name__}")
        if not isinstance(self.cookie, CookiePolicy):
            raise TypeError(f"the cookie is a CookiePolicy(...), not {type(self.cookie).__name__}")

    def warn_if_unfit(self, scheme: str, host: str) -> None:
        """Say once what will not work, or is not safe, with a request that came like this."""
        if scheme in ("https", "wss"):
            return
        if self.cookie.secure and _is_loopback(host):
            self._warn(
                f"the cookie {self.cookie.name!r} is for https only, and this request came by http: most clients will "
                "not send it back; for development, use CookiePolicy(secure=False)"
            )
        elif not self.cookie.secure and not _is_loopback(host):
            self._warn(
                f"the cookie {self.cookie.name!r} travels by plain http, where anybody on the way can take the session "
                "over; CookiePolicy(secure=False) is for development on one machine"
            )

    def _warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            logger.warning("%s", text)


@lru_cache(maxsize=64)
def _is_loopback(host: str) -> bool:
    name = host.rpartition(":")[0] if host.count(":") == 1 or (host.startswith("[") and "]:" in host) else host
    name = name.strip("[]").lower()
    if name in _LOOPBACK or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
