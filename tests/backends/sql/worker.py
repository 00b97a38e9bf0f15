"""The roles of `tests.processes.worker`, on a database."""

import asyncio
import sys
from typing import Any

from asyncsess import SQLStore
from tests.processes.worker import ROLES


async def main(role: str, url: str, prefix: str, locking: Any, session_id: str, *arguments: str) -> None:
    async with SQLStore(url, prefix=prefix, locking=locking) as store:
        await ROLES[role](store, session_id, *arguments)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
