"""`ScopeSession`: what an ASGI application finds in its scope as the session."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from asyncsess.session import Session
from asyncsess.web.visit import Visit


class ScopeSession(MutableMapping[str, Any]):
    """The session of a whole request, loaded beforehand; it notes that it was accessed.

    Whatever else a `Session` has is there too, such as ``id``, ``owner`` and ``await save()``.
    """

    __slots__ = ("_visit",)

    def __init__(self, visit: Visit) -> None:
        self._visit = visit

    def __repr__(self) -> str:
        return repr(self._visit.loaded)

    @property
    def session(self) -> Session:
        """The session itself, for `asyncsess.web.login`; now it is accessed."""
        return self._visit.use()

    def __getitem__(self, key: str) -> Any:
        return self.session[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.session[key] = value

    def __delitem__(self, key: str) -> None:
        del self.session[key]

    def __contains__(self, key: object) -> bool:
        return key in self.session

    def __iter__(self) -> Iterator[str]:
        return iter(self.session)

    def __len__(self) -> int:
        return len(self.session)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # a copy looks for some before there is a visit
            raise AttributeError(name)
        return getattr(self.session, name)

    def replace(self, values: object) -> None:
        """Take what an application has put in the place of this: a mapping, or nothing at all."""
        copied = dict(values) if isinstance(values, Mapping) else {}  # it may read from the session itself
        self.session.clear()
        self.session.update(copied)
