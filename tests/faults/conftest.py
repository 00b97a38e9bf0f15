"""What the fault tests share."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from .injection import Injection
from .needs import need_strace


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.new_event_loop}  # faults are the system's; what a loop makes of them is tested elsewhere


@pytest.fixture
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory whose content is the test's own business, leftovers included."""
    directory = tmp_path_factory.mktemp("faults")
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def injection(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Injection]:
    """A program under strace with the fault that the test names; kept for the next test with the same one."""
    need_strace()
    fault, *rest = request.param
    options = {"is_persistent": "persistent" in rest, "limit": 1300 if "sweep" in rest else 40}
    with Injection(tmp_path_factory.mktemp("traces"), fault, **options) as injection:
        yield injection
