"""`CookiePolicy`: how the browser keeps a session id. It does no I/O and knows no framework.

The attributes are those of RFC 6265bis; what they are by default follows OWASP's Session Management Cheat Sheet.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final, Literal

from asyncsess.ids import is_issued

SameSite = Literal["Lax", "Strict", "None"]

_LONGEST_AGE: Final = 400 * 86400  # browsers keep no cookie for longer
_LONGEST: Final = 4096
_is_name = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII).fullmatch
_is_value = re.compile(r"[ -:<-~]*", re.ASCII).fullmatch


@dataclass(frozen=True, slots=True)
class CookiePolicy:
    """What is said with a session id when it is handed to a browser.

    Attributes:
        name: The cookie's; by default ``__Host-session``, or what comes closest with the other attributes.
        secure: Whether it is sent over https only. Without, anybody on the way can take the session over: for
            development on the developer's own machine.
        http_only: Whether it is hidden from scripts.
        same_site: Which requests of other sites it comes with.
        path: Where it is sent; this is no boundary between applications of one host.
        domain: Whose subdomains get it as well; None for this host alone.
        is_persistent: Whether the browser keeps it when it is closed, until the session's ``lifetime`` is over.
        is_partitioned: Whether each site that embeds this one has a cookie of its own (CHIPS).

    Raises:
        ValueError: Browsers would refuse the cookie.
    """

    name: str = ""
    secure: bool = True
    http_only: bool = True
    same_site: SameSite = "Lax"
    path: str = "/"
    domain: str | None = None
    is_persistent: bool = False
    is_partitioned: bool = False
    _tail: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self._best_name())
        self._check()
        object.__setattr__(self, "_tail", "; ".join(self._attributes()))
        if len(self.issue("x" * 43, _LONGEST_AGE)) > _LONGEST:
            raise ValueError(f"the cookie would have more than {_LONGEST} bytes, so that browsers drop it")

    def _best_name(self) -> str:
        if not self.secure:
            return "session"
        return "__Host-session" if self._is_host_only() else "__Secure-session"

    def _is_host_only(self) -> bool:
        return self.secure and self.path == "/" and self.domain is None

    def _check(self) -> None:
        if not _is_name(self.name):
            raise ValueError(f"{self.name!r} is no name for a cookie: use letters, digits, '-' and '_'")
        if self.same_site not in ("Lax", "Strict", "None"):
            raise ValueError(f"same_site is 'Lax', 'Strict' or 'None', not {self.same_site!r}")
        for name, value in (("path", self.path), ("domain", self.domain or "")):
            if not _is_value(value):
                raise ValueError(f"{name}={value!r} has characters that end a cookie's attribute")
        if not self.path.startswith("/"):
            raise ValueError(f"the path of a cookie begins with '/', not {self.path!r}")
        if self.name.startswith("__Host-") and not self._is_host_only():
            raise ValueError("browsers refuse a cookie named __Host-... unless it has secure=True, path='/', no domain")
        if not self.secure:
            for reason, is_so in (
                ("a name with __Secure-", self.name.startswith("__Secure-")),
                ("same_site='None'", self.same_site == "None"),
                ("is_partitioned=True", self.is_partitioned),
            ):
                if is_so:
                    raise ValueError(f"browsers refuse a cookie with {reason} unless it has secure=True")

    def _attributes(self) -> list[str]:
        return [
            f"Path={self.path}",
            *([f"Domain={self.domain}"] if self.domain else []),
            f"SameSite={self.same_site}",
            *(["Secure"] if self.secure else []),
            *(["HttpOnly"] if self.http_only else []),
            *(["Partitioned"] if self.is_partitioned else []),
        ]

    def session_id(self, value: str | None) -> str | None:
        """Return the session id in the value of a cookie; None unless it has the form of those that are issued."""
        return value if value is not None and is_issued(value) else None

    def issue(self, session_id: str, seconds: float | None) -> str:
        """Return the ``Set-Cookie`` header that hands out a session id.

        Args:
            session_id: The id.
            seconds: How long the session can last at most; None for any time.
        """
        age = ""
        if self.is_persistent:
            age = f"Max-Age={int(_LONGEST_AGE if seconds is None else min(seconds, _LONGEST_AGE))}; "
        return f"{self.name}={session_id}; {age}{self._tail}"

    def delete(self) -> str:
        """Return the ``Set-Cookie`` header that has the browser forget the id."""
        return f"{self.name}=; Max-Age=0; {self._tail}"
