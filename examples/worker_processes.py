"""Let several worker processes note their progress in one session; no update is lost.

The program chose the session's name itself, so whichever worker comes first creates it, with ``create=True``. Never
do that with an id that a client sent: whoever made it up could share it with somebody else.
"""

import asyncio
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from asyncsess import FileStore

WORKERS = 4
JOBS = range(1, 101)
PROGRESS = "import-of-monday"


async def work(directory: str, job: int) -> None:
    async with FileStore(directory) as store, store.open(PROGRESS, create=True) as session:
        session["done"] = session.get("done", 0) + 1
        session["sum"] = session.get("sum", 0) + job


def run(directory: str, job: int) -> None:
    """Run one job, as a worker of any job queue would."""
    asyncio.run(work(directory, job))


async def report(directory: str) -> None:
    async with FileStore(directory) as store, store.open(PROGRESS, readonly=True) as session:
        print(f"{session['done']} of {len(JOBS)} jobs done, the sum is {session['sum']} and should be {sum(JOBS)}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        with ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("spawn")) as workers:
            list(workers.map(partial(run, directory), JOBS))
        asyncio.run(report(directory))
