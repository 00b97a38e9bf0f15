"""What the demo shows: its progress, the table, and what the table says."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Final

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from asyncsess.demo.clients import Row
from asyncsess.demo.ways import Way

_PLAIN_WIDTH: Final = 200
_ROOMY: Final = 110
_TITLE: Final = "the handler opens the session with"
_COLUMNS: Final = (
    "requests\nsent", "answered\nOK", "updates\nexpected", "updates\nfound", "updates\nlost", "requests\nper s",
    "longest\nwait of\na reader,\nms",
)  # fmt: skip


def console() -> Console:
    """Return standard output; where that is no terminal, wide enough for the table."""
    output = Console(highlight=False)
    return output if output.is_terminal else Console(highlight=False, width=_PLAIN_WIDTH)


class Screen:
    """Standard output: with bars that move where it is a terminal, with lines and a Markdown table where it is not."""

    def __init__(self, output: Console) -> None:
        self._output = output

    def say(self, text: str) -> None:
        """Print a line."""
        self._output.print(escape(text))
        self._output.file.flush()

    @contextmanager
    def progress(self) -> Generator[Bars, None, None]:
        """Yield bars that are shown for the block of a ``with``."""
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed} requests"))
        with Progress(*columns, console=self._output, disable=not self._output.is_terminal) as progress:
            yield Bars(self, progress)

    def show(self, rows: Sequence[Row]) -> None:
        """Print the table, and what its rows mean."""
        is_plain = not self._output.is_terminal
        padding = (0, 1) if self._output.width >= _ROOMY else 0  # without, it fits into 80 columns
        table = Table(_TITLE, box=box.MARKDOWN if is_plain else box.SIMPLE_HEAD, show_edge=is_plain, padding=padding)
        for column in _COLUMNS:
            table.add_column(column.replace("\n", " ") if is_plain else column, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(
                escape(row.way.title), f"{row.sent:,}", f"{row.answered:,}", f"{row.expected:,}", f"{row.found:,}",
                f"[{'red' if row.lost else 'green'}]{row.lost:,}", f"{row.sent / row.seconds:,.0f}",
                "-" if row.longest_read is None else f"{row.longest_read * 1000:,.0f}",
            )  # fmt: skip
        self._output.print(table, "")
        for row in rows:
            self.say(f"{row.way.title}: {row.way.story}")
        self.say(verdict(rows))


class Bars:
    """One bar for each way, below each other."""

    def __init__(self, screen: Screen, progress: Progress) -> None:
        self._screen = screen
        self._progress = progress

    @contextmanager
    def bar(self, way: type[Way], total: int | None) -> Generator[Callable[[], None], None, None]:
        """Show a bar for a way; yield what moves it by one request.

        Args:
            way: Which.
            total: Requests to come; None if that is not known.
        """
        if self._progress.disable:
            self._screen.say(f"{way.title} ...")
        bar: TaskID = self._progress.add_task(escape(way.title), total=total)
        sent = 0

        def advance() -> None:
            nonlocal sent
            sent += 1
            self._progress.update(bar, completed=sent)

        yield advance
        self._progress.update(bar, total=sent)


def verdict(rows: Sequence[Row]) -> str:
    """Return in a sentence whether asyncsess kept its promise."""
    safe = [row for row in rows if row.way.is_safe]
    bad = [row for row in safe if not row.is_good]
    if bad:
        return f"asyncsess did NOT keep its promise with {', '.join(row.way.title for row in bad)}. Please report this."
    return f"asyncsess lost none of {sum(row.expected for row in safe):,} updates, and answered every request."
