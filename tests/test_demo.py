"""The demo: its ways to open a session, what it shows, and that it leaves nothing behind."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
import pytest
from rich.console import Console

from asyncsess import FileStore
from asyncsess.demo.clients import Row
from asyncsess.demo.processes import ServerError, server_processes
from asyncsess.demo.run import run
from asyncsess.demo.screen import Screen, verdict
from asyncsess.demo.ways import WAYS, Exclusive, LockingReaders, NoLocking, ReadonlyReaders

PATIENCE = 120  # seconds after which something hangs
SAFE = [way for way in WAYS if way.is_safe]


@pytest.fixture
async def store(tmp_path):
    async with FileStore(tmp_path / "sessions") as store:
        yield store


async def nothing() -> None:
    """Work that takes no time."""


async def until(is_so: Callable[[], object]) -> None:
    while not is_so():
        await asyncio.sleep(0)


# The ways.


async def test_without_locking_one_of_two_updates_at_the_same_time_is_lost(tmp_path, store):
    way = NoLocking(tmp_path, store)
    session_id = await way.start()
    both_have_loaded = asyncio.Barrier(2)
    await asyncio.gather(*(way.add(session_id, both_have_loaded.wait) for _ in range(2)))
    assert await way.read(session_id) == 1


@pytest.mark.parametrize("kind", SAFE)
async def test_a_safe_way_loses_neither_of_two_updates_at_the_same_time(tmp_path, store, kind):
    way = kind(tmp_path, store)
    session_id = await way.start()

    others = []

    async def until_another_has_come() -> None:
        others.append(asyncio.create_task(way.add(session_id, nothing)))
        await until(lambda: others[0].done() or store.statistics().waiting)

    await way.add(session_id, until_another_has_come)
    await others[0]
    assert await way.read(session_id) == 2


async def test_a_readonly_reader_waits_for_no_writer(tmp_path, store):
    way = ReadonlyReaders(tmp_path, store)
    session_id = await way.start()
    seen = []

    async def read_meanwhile() -> None:
        seen.append(await asyncio.create_task(way.read(session_id)))

    await way.add(session_id, read_meanwhile)
    assert seen == [0]


async def test_a_locking_reader_waits_for_the_writer(tmp_path, store):
    way = LockingReaders(tmp_path, store)
    session_id = await way.start()
    readers = []

    async def until_a_reader_waits() -> None:
        readers.append(asyncio.create_task(way.read(session_id)))
        await until(lambda: store.statistics().waiting)

    await way.add(session_id, until_a_reader_waits)
    assert await readers[0] == 1


def test_every_way_has_a_name_and_a_title_of_its_own():
    assert len({way.name for way in WAYS}) == len({way.title for way in WAYS}) == len(WAYS)


# The server processes.


async def test_servers_end_with_the_block_also_after_an_error(tmp_path):
    urls = []

    async def ask_and_fail() -> None:
        async with server_processes(2, tmp_path) as addresses, aiohttp.ClientSession() as client:
            for url in addresses:
                async with client.get(url) as response:
                    assert await response.text() == "ready\n"
            urls.extend(addresses)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await ask_and_fail()
    assert len(urls) == 2
    async with aiohttp.ClientSession() as client:
        for url in urls:
            with pytest.raises(aiohttp.ClientConnectorError):
                await client.get(url)


async def test_a_server_that_does_not_start_is_an_error_that_shows_its_reason(tmp_path, capfd):
    (tmp_path / "sessions").mkdir()
    (tmp_path / "sessions").chmod(0o777)
    with pytest.raises(ServerError, match="exit code 1"):
        async with server_processes(1, tmp_path):
            pytest.fail("it started")
    assert "run: chmod 700" in capfd.readouterr().err


# The program.


@pytest.fixture(autouse=True)
def _sigint_is_not_ignored() -> Iterator[None]:
    """A shell that runs the tests in the background ignores SIGINT for all processes below."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def demo(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start the demo. Its servers write to the same standard error, so its end is also theirs."""
    environment = {name: value for name, value in os.environ.items() if "COLOR" not in name and "TTY" not in name}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "asyncsess.demo", *arguments],
        cwd=directory,
        env=environment | {"TMPDIR": str(directory)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def table_in(output: str) -> dict[str, dict[str, str]]:
    """Return the rows of the Markdown table by their titles, each with its cells by their headings."""
    lines = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in output.splitlines()
        if line.startswith("|")
    ]
    headings, _, *rows = lines
    return {row[0]: dict(zip(headings[1:], row[1:], strict=True)) for row in rows}


def test_the_demo_shows_what_was_lost_and_leaves_nothing_behind(tmp_path):
    with demo(tmp_path, "--requests", "60") as process:
        output, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (0, "")
    assert not list(tmp_path.iterdir())

    rows = table_in(output)
    assert list(rows) == [way.title for way in WAYS]
    for way in WAYS:
        row = rows[way.title]
        assert row["requests sent"] == row["answered OK"]
        assert int(row["updates expected"]) == (1 if way.has_slow_writer else 60)
        assert int(row["updates expected"]) - int(row["updates found"]) == int(row["updates lost"])
        assert row["updates lost"] == "0" or not way.is_safe
        assert (row["longest wait of a reader, ms"] == "-") is not way.has_slow_writer
    assert "asyncsess lost none of 242 updates" in output


@pytest.mark.parametrize(
    ("number", "code", "message"),
    [(signal.SIGINT, 130, "Interrupted; the servers have ended.\n"), (signal.SIGTERM, 143, "")],
)
@pytest.mark.parametrize("moment", ["Two servers", Exclusive.title])
def test_a_signal_ends_the_demo_and_its_servers(tmp_path, number, code, message, moment):
    with demo(tmp_path) as process:
        while not process.stdout.readline().startswith(moment):
            pass
        process.send_signal(number)
        _, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (code, message)
    assert not list(tmp_path.iterdir())


def test_servers_do_not_outlive_a_demo_that_was_killed(tmp_path):
    with demo(tmp_path) as process:
        while not process.stdout.readline().startswith(Exclusive.title):
            pass
        process.kill()
        process.communicate(timeout=PATIENCE)  # returns once the servers have closed standard error


@pytest.mark.parametrize("name", ["aiohttp", "rich"])
def test_the_demo_says_what_to_install_if_an_extra_is_missing(name):
    program = f"import runpy, sys; sys.argv[1:] = []; sys.modules[{name!r}] = None; runpy.run_module('asyncsess.demo')"
    program = program.replace("demo')", "demo', run_name='__main__')")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"The demo needs {name}. Run: pip install 'asyncsess[demo]'\n"


@pytest.mark.parametrize("number", ["0", "-1", "many"])
def test_a_number_of_requests_that_is_none_is_refused(tmp_path, number):
    with demo(tmp_path, f"--requests={number}") as process:
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert "is not a number of requests; give 1 or more" in errors


# What it shows.


def row_of(kind, *, answered=60, found=60) -> Row:
    longest_read = 1.0056 if kind.has_slow_writer else None
    return Row(kind, sent=60, answered=answered, expected=60, found=found, seconds=0.5, longest_read=longest_read)


def test_the_verdict_is_good_if_only_the_unsafe_way_lost_something():
    rows = [row_of(way, found=60 if way.is_safe else 3) for way in WAYS]
    assert verdict(rows) == f"asyncsess lost none of {60 * len(SAFE)} updates, and answered every request."


@pytest.mark.parametrize("bad", [{"found": 59}, {"found": 61}, {"answered": 59}])
async def test_the_demo_fails_if_a_safe_way_broke_its_promise(monkeypatch, capsys, bad):
    async def measure(requests: int, screen: Screen) -> list[Row]:
        return [row_of(NoLocking), row_of(Exclusive, **bad)]

    monkeypatch.setattr("asyncsess.demo.run.measure", measure)
    assert await run(60) == 1
    assert "asyncsess did NOT keep its promise with open(id)." in capsys.readouterr().out


async def test_the_demo_fails_with_the_reason_if_its_servers_do_not_start(monkeypatch, capsys):
    async def measure(requests: int, screen: Screen) -> list[Row]:
        raise ServerError("No server.")

    monkeypatch.setattr("asyncsess.demo.run.measure", measure)
    assert await run(60) == 2
    assert capsys.readouterr().err == "No server.\n"


def test_a_terminal_of_80_columns_shows_bars_and_the_whole_table():
    output = io.StringIO()
    screen = Screen(Console(file=output, force_terminal=True, width=80, color_system=None))
    with screen.progress() as bars:
        for way in WAYS:
            with bars.bar(way, None) as advance:
                advance()
                advance()
    screen.show([row_of(way, found=60 if way.is_safe else 3) for way in WAYS])
    assert "open(id, readonly=True)" in output.getvalue()
    assert "2 requests" in output.getvalue()
    assert "1,006" in output.getvalue()
    assert "…" not in output.getvalue()  # which is how rich cuts what does not fit
