import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import pytest

from asyncsess import FileStore

ROOT = Path(__file__).parents[2]


class Worker(subprocess.Popen[str]):
    """A process of a module of workers; stopped ones go on, and all are ended, at the end of the test."""

    def __init__(
        self, *arguments: object, module: str = "tests.processes.worker", environment: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(
            [sys.executable, "-m", module, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | (environment or {}),
        )

    def says(self) -> str:
        assert self.stdout is not None
        return self.stdout.readline().strip()

    def tell(self, line: str = "") -> None:
        assert self.stdin is not None
        print(line, file=self.stdin, flush=True)

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.send_signal(signal.SIGCONT)
        self.kill()
        self.wait()
        for pipe in (self.stdin, self.stdout):
            if pipe and not pipe.closed:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


@pytest.fixture
def start(directory: Path) -> Iterator[Callable[..., Worker]]:
    """Start a worker in a role on the store's directory."""
    workers: list[Worker] = []

    def start(role: str, *arguments: object) -> Worker:
        workers.append(Worker(role, directory, *arguments))
        return workers[-1]

    yield start
    for worker in workers:
        worker.end()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "sessions"


@pytest.fixture
async def shared(directory: Path) -> AsyncIterator[FileStore]:
    """The store that the workers use too."""
    async with FileStore(directory, lock_timeout=60) as store:
        yield store
