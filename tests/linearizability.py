"""Whether what clients saw of a register could have happened one operation after the other.

A register counts the writes that it took, its *version*, and keeps the name of the last one. So the versions tell the
order, and none has to be searched for: a history is linearizable if no operation began after one had ended that comes
behind it in that order, and if each version is of one write, which did not fail.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple


class Operation(NamedTuple):
    """What one client did, as it saw it.

    Attributes:
        name: Tells it from all others.
        is_write: Whether it was to change the register.
        began: When, on a clock that all clients share.
        ended: When it was answered; infinite if it never was, or if the answer was that nobody knows.
        version: The one that it read or made; None if it failed, or if nobody knows.
        writer: Whose version that is, by name; of a write, its own.
    """

    name: str
    is_write: bool
    began: float
    ended: float = math.inf
    version: int | None = None
    writer: str = ""


def complaints(history: Sequence[Operation], first: int = 1) -> Iterator[str]:
    """Yield what is wrong with a history; nothing if it is linearizable.

    Args:
        history: The operations on one register, in any order.
        first: The version that was there before them, whose writer has no name.
    """
    writers = {first: ""}
    for each in history:
        if each.version is not None and writers.setdefault(each.version, each.writer) != each.writer:
            yield f"version {each.version} is of {writers[each.version]!r}, and of {each.writer!r} for {each.name!r}"
    made: dict[str, int] = {}
    for version, writer in writers.items():
        if made.setdefault(writer, version) != version:
            yield f"{writer!r} made version {made[writer]}, and again version {version}"

    writes = {each.name: each for each in history if each.is_write}
    possible = {name for name, each in writes.items() if each.version is not None or math.isinf(each.ended)}
    for writer in made.keys() - possible - {""}:
        yield f"{writer!r} made version {made[writer]}, but has failed" if writer in writes else f"who is {writer!r}?"

    # An unknown write that others have read is known after all, save for its end.
    known = [each._replace(version=made.get(each.name)) if each.is_write else each for each in history]
    ended = sorted((each.ended, each.version) for each in known if each.version is not None)
    highest = [first, *accumulate((version for _, version in ended), max)]

    def seen_before(each: Operation) -> int:
        """Return the highest version of all that had ended when an operation began."""
        return highest[bisect_left(ended, (each.began,))]

    for each in known:
        if each.version is not None and seen_before(each) > each.version - each.is_write:
            yield f"{each.name!r} has version {each.version}, and began when {seen_before(each)} had been seen"

    # Versions that nobody saw are of unknown writes that nobody saw; which comes first does not matter.
    unseen = sorted(seen_before(writes[name]) for name in possible - made.keys())
    for version in sorted(set(range(first, max(writers))) - writers.keys()):
        if not unseen or unseen.pop(0) >= version:
            yield f"nobody can have made version {version}"
