"""What concerns all sessions on a Redis server: listing them, and deleting what has expired."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, TypeVar

from asyncsess.backends.redis.connections import Client

T = TypeVar("T")

_PER_SCAN: Final = 500
_AT_ONCE: Final = 16


async def names(client: Client, pattern: str) -> AsyncIterator[str]:
    """Yield the names of the keys that match, each once."""
    seen = set[str]()
    async for name in client.scan_iter(match=pattern, count=_PER_SCAN):
        text = name.decode()
        if text not in seen:
            seen.add(text)
            yield text


async def each(items: AsyncIterator[str], ask: Callable[[str], Awaitable[T]]) -> AsyncIterator[tuple[str, T]]:
    """Ask for each of many items, several at once; yield them with their answers."""
    batch = list[str]()
    async for item in items:
        batch.append(item)
        if len(batch) == _AT_ONCE:
            for pair in zip(batch, await asyncio.gather(*map(ask, batch)), strict=True):
                yield pair
            batch.clear()
    for pair in zip(batch, await asyncio.gather(*map(ask, batch)), strict=True):
        yield pair
