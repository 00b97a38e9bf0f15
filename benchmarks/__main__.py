"""Run all benchmarks: ``python -m benchmarks [--quick | --full] [--stores] [--sessions N]``."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

try:
    from benchmarks import chart, contest, masses, population, processes, report, scale, stores, ways, web
except ModuleNotFoundError as error:
    sys.exit(f"{error.name} is missing; install what the benchmarks need: pip install -e . --group bench")
from benchmarks.figures import Figure
from benchmarks.scale import Scale

_HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure asyncsess beside others.")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a smoke test in seconds; keeps no results")
    size.add_argument("--full", action="store_true", help="a million sessions; needs 4 GB of disk and some minutes")
    parser.add_argument(
        "--stores", action="store_true", help="only compare the stores with each other; keeps the other results"
    )
    parser.add_argument("--sessions", type=int, help="sessions on disk, and opened one after another")
    arguments = parser.parse_args()
    chosen = scale.QUICK if arguments.quick else scale.FULL if arguments.full else scale.DEFAULT
    chosen = replace(chosen, sessions=arguments.sessions or chosen.sessions)
    try:
        asyncio.run(_run(chosen, keep=not arguments.quick, only_stores=arguments.stores))
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(130)


async def _run(chosen: Scale, *, keep: bool, only_stores: bool) -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with tempfile.TemporaryDirectory(prefix="asyncsess-benchmarks-") as name:
        root = Path(name)
        kind = await report.machine(root)
        results = _HERE if keep else root
        if not only_stores:
            standings, figures = await _measure(chosen, root)
            report.show(kind, chosen, standings, figures)
            report.write(results / "results.json", kind, chosen, standings, figures)
            try:
                chart.draw(results / "results.svg", standings)
            except ImportError:
                print("no chart: matplotlib is not installed: pip install matplotlib")
        measured = await stores.measure(chosen, _made(root / "stores"), _say)
        report.show_stores(measured)
        report.write_stores(results / "results.json", kind, chosen, measured)
        if keep:
            print("written: benchmarks/results.json" + ("" if only_stores else ", benchmarks/results.svg"))
        _say("removing the sessions")


async def _measure(chosen: Scale, root: Path) -> tuple[contest.Contest, list[Figure]]:
    """Run one benchmark after another, each in a directory of its own."""
    _say("asyncsess and others in turns")
    standings = await contest.hold_contest(chosen, _made(root / "contest"))
    figures = standings.figures()
    _say("changing a session in other ways")
    figures += await ways.costs(chosen, _made(root / "ways"))
    figures += await ways.at_once(_made(root / "at-once"))
    _say("web servers, each by one worker")
    figures += await web.rates(chosen, _made(root / "web"))
    _say("handing a session over between processes")
    figures.append(await processes.hand_over(chosen, _made(root / "hand-over")))
    _say("killing holders")
    figures.append(await processes.killed_holders(chosen, _made(root / "killed")))
    _say("many processes and tasks, one session")
    figures += await processes.crowd(chosen, _made(root / "crowd"))
    _say("readers beside a writer")
    figures.append(await processes.readers(chosen, _made(root / "readers")))
    _say(f"sweeping {chosen.swept:,} sessions")
    figures += await masses.sweep(chosen, _made(root / "swept"))
    _say(f"putting {chosen.sessions:,} sessions on disk")
    await population.populate(root / "many", chosen.sessions)
    _say("opening sessions among them")
    figures += await masses.opening(chosen, root / "few", root / "many")
    _say("opening each of them")
    figures += await masses.growth(chosen, root / "many")
    return standings, figures


def _made(directory: Path) -> Path:
    directory.mkdir(mode=0o700)
    return directory


def _say(what: str) -> None:
    print(f"… {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
