"""Give a session back before slow work, so that the same user's other requests need not wait for it.

The bank answers only after two other requests are done. Without `release()` they would wait for the checkout, and the
checkout for the bank: a `LockTimeoutError` would end it.
"""

import asyncio
import tempfile

from asyncsess import FileStore


async def check_out(store: FileStore, session_id: str, bank: asyncio.Event) -> None:
    async with store.open(session_id) as session:
        session["order"] = "tea"
        await session.release()  # stores the order, and lets others in
        print("checkout: the order is stored; asking the bank")
        await bank.wait()
        print(f"checkout: the bank agrees to the order of {session['order']}")  # what was read can still be read

    async with store.open(session_id) as session:  # to change it again, open it again
        session["paid"] = True


async def look_at(page: str, store: FileStore, session_id: str) -> None:
    async with store.open(session_id) as session:
        session["pages"].append(page)
        print(f"{page}: opened meanwhile, and the order of {session['order']} is there")


async def main(directory: str) -> None:
    bank = asyncio.Event()
    async with FileStore(directory) as store:
        session_id = await store.create({"pages": []})
        checkout = asyncio.create_task(check_out(store, session_id, bank))
        await asyncio.gather(look_at("help", store, session_id), look_at("delivery", store, session_id))
        bank.set()
        await checkout
        async with store.open(session_id, readonly=True) as session:
            print(f"in the end: {dict(session)}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(main(directory))
