"""What concerns all sessions on a Redis server: listing them, and deleting what has expired."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, TypeVar

T = TypeVar("T")

_AT_ONCE: Final = 16


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
