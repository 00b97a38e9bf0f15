"""What goes over the wire to a Redis server and back: RESP, as far as scripts and plain reads need it."""

from __future__ import annotations

from typing import Any, Final

from redis.exceptions import BusyLoadingError, NoScriptError, ReadOnlyError, RedisError, ResponseError

_ERRORS: Final = {"NOSCRIPT": NoScriptError, "READONLY": ReadOnlyError, "LOADING": BusyLoadingError}
_END: Final = b"\r\n"

Word = bytes | str | float


class IncompleteError(Exception):
    """More bytes are to come."""


class Push(tuple[Any, ...]):
    """What the server says unasked."""

    __slots__ = ()


def pack(*words: Word) -> bytes:
    """Return a command as it is sent."""
    return begin(len(words)) + go_on(*words)


def begin(count: int, *words: Word) -> bytes:
    """Return the beginning of a command of so many words."""
    return b"*%d\r\n" % count + go_on(*words)


def go_on(*words: Word) -> bytes:
    """Return words of a command that was begun."""
    parts = []
    for word in words:
        data = word if isinstance(word, bytes) else str(word).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


def parse(data: bytes, start: int) -> tuple[Any, int]:
    """Return the answer that begins there, and where it ends; an error is an answer too.

    Raises:
        IncompleteError: There is only a part of it.
        ValueError: It is nothing that a server says to what is asked here.
    """
    stop = data.find(_END, start)
    if stop < 0:
        raise IncompleteError
    kind, line, end = data[start : start + 1], data[start + 1 : stop], stop + 2
    if kind == b"$":
        return _bulk(data, int(line), end)
    if kind == b":":
        return int(line), end
    if kind in {b"*", b">"}:
        items: list[Any] | None = None if line == b"-1" else []
        for _ in range(int(line)):
            item, end = parse(data, end)
            items.append(item)  # type: ignore[union-attr]
        return (Push(items or ()) if kind == b">" else items), end
    if kind == b"_":
        return None, end
    if kind == b"+":
        return line, end
    if kind == b"-":
        return _error(line.decode(errors="replace")), end
    raise ValueError(f"a Redis server does not begin an answer with {kind!r}")


def _bulk(data: bytes, size: int, start: int) -> tuple[bytes | None, int]:
    if size < 0:
        return None, start
    end = start + size
    if len(data) < end + 2:
        raise IncompleteError
    return data[start:end], end + 2


def _error(text: str) -> RedisError:
    return _ERRORS.get(text.partition(" ")[0], ResponseError)(text)
