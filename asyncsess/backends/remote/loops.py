"""`drop_ended`: what is kept for an event loop may keep it alive, and so itself, also in a weak dictionary."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any


def drop_ended(kept: MutableMapping[asyncio.AbstractEventLoop, Any]) -> None:
    """Forget the event loops that have ended, as each task of theirs refers to them."""
    for loop in list(kept):
        if loop.is_closed():
            kept.pop(loop, None)
