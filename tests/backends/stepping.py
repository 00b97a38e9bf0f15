"""Backends in memory that let others run before and after each of their steps, or stop there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Self

from asyncsess.backends.base import Found, Held
from asyncsess.backends.memory import MemoryBackend

Step = Callable[[], Awaitable[None]]


async def pause() -> None:
    await asyncio.sleep(0)


class SteppingBackend(MemoryBackend):
    """A backend in memory that takes a step before and after whatever it does.

    Attributes:
        step: What it does there.
    """

    def __init__(self, step: Step = pause) -> None:
        super().__init__()
        self.step = step

    async def read(self, key: str) -> Found:
        await self.step()
        found = await super().read(key)
        await self.step()
        return found

    def hold(self, *args: Any, **options: Any) -> Any:
        return SteppingHold(super().hold(*args, **options), self)

    def create(self, *args: Any, **options: Any) -> Any:
        return SteppingHold(super().create(*args, **options), self)


class SteppingHold:
    """A hold that takes a step before and after whatever it does."""

    def __init__(self, hold: AbstractAsyncContextManager[Held], backend: SteppingBackend) -> None:
        self._hold = hold
        self._backend = backend

    async def __aenter__(self) -> Self:
        await self._backend.step()
        held = await self._hold.__aenter__()
        try:
            await self._backend.step()
        except BaseException:
            await self._hold.__aexit__(None, None, None)
            raise
        self._held = held
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._hold.__aexit__(kind, error, traceback)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._held, name)
        if name not in ("commit", "delete", "renew"):
            return found

        async def stepping(*args: Any, **options: Any) -> Any:
            await self._backend.step()
            result = await found(*args, **options)
            await self._backend.step()
            return result

        return stepping
