"""Sessions on the web: cookies, aiohttp, ASGI."""
