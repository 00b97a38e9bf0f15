"""Start a session, change it, read it without waiting for anybody, and end it."""

import asyncio
import tempfile

from asyncsess import FileStore, SessionNotFoundError


async def main(directory: str) -> None:
    async with FileStore(directory, idle_timeout=1800, lifetime=86400) as store:
        session_id = await store.create({"user": "ada", "cart": []})

        async with store.open(session_id) as session:  # nobody else changes it meanwhile
            session["cart"].append("tea")
            session["cart"].append("milk")
        # here it is stored; an exception inside the block would have stored nothing

        async with store.open(session_id, readonly=True) as session:  # waits for nobody
            print(f"{session['user']} has {' and '.join(session['cart'])} in the cart")

        await store.destroy(session_id)
        try:
            async with store.open(session_id):
                print("never printed")
        except SessionNotFoundError as error:
            print(f"after the logout, {error}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:  # a server would have one that stays, such as var/sessions
        asyncio.run(main(directory))
