"""Figures: what was measured, beside what is to be reached."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table.

    Attributes:
        what: What was measured.
        value: The result; None if it could not be measured.
        unit: Its unit.
        at_least: What it must reach, or None.
        at_most: What it must not exceed, or None.
        detail: The absolute figures behind it, or why there are none.
    """

    what: str
    value: float | None
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    detail: str = ""

    @property
    def is_reached(self) -> bool | None:
        if self.value is None:
            return None
        is_enough = self.at_least is None or self.value >= self.at_least
        return is_enough and (self.at_most is None or self.value <= self.at_most)

    @property
    def measured(self) -> str:
        return "-" if self.value is None else with_unit(self.value, self.unit)

    @property
    def goal(self) -> str:
        if self.at_least is not None:
            return f"≥ {with_unit(self.at_least, self.unit)}"
        return f"≤ {with_unit(self.at_most, self.unit)}" if self.at_most else "none"


def with_unit(value: float, unit: str) -> str:
    return f"{number(value)} {unit}".rstrip()


def number(value: float) -> str:
    """Return a number with three digits that count."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def micro(seconds: float) -> str:
    return f"{number(seconds * 1e6)} µs"


def milli(seconds: float) -> str:
    return f"{number(seconds * 1e3)} ms"
