"""`Lifespan`: a store that lives as long as an ASGI application."""

from __future__ import annotations

from typing import Final

from asyncsess.errors import SessionError
from asyncsess.store import SessionStore
from asyncsess.web.messages import ASGIApp, Message, Receive, Scope, Send

_STORES: Final = "asyncsess.stores"


class Lifespan:
    """Enters a store before an application starts, and closes it after the application has ended."""

    def __init__(self, store: SessionStore, receive: Receive, send: Send) -> None:
        self._store = store
        self._receive_on = receive
        self._send_on = send
        self._is_entered = False

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        """Run the application's own lifespan. Of several middlewares of one store, the outermost enters it."""
        stores = scope.setdefault(_STORES, [])
        if any(self._store is other for other in stores):
            await app(scope, self._receive_on, self._send_on)
            return
        stores.append(self._store)
        try:
            await app(scope, self._receive, self._send)
        finally:
            await self._close()

    async def _receive(self) -> Message:
        message = await self._receive_on()
        if message["type"] == "lifespan.startup":
            try:
                await self._store.__aenter__()
            except SessionError as error:  # else servers take it that there is no lifespan, and go on
                await self._send_on({"type": "lifespan.startup.failed", "message": str(error)})
                raise
            self._is_entered = True
        return message

    async def _send(self, message: Message) -> None:
        if message["type"] in ("lifespan.shutdown.complete", "lifespan.shutdown.failed", "lifespan.startup.failed"):
            await self._close()
        await self._send_on(message)

    async def _close(self) -> None:
        if self._is_entered:
            self._is_entered = False
            await self._store.__aexit__(None, None, None)
