"""A connection that breaks anywhere in any operation: old or new, once, nothing locked, nothing left."""

from __future__ import annotations

from typing import Final

import pytest

from tests.network.operations import OPERATIONS
from tests.network.servers import Server
from tests.network.trials import ALL, disturbed
from tests.proxy import Cut

CUTS: Final = [where for where in Cut if where is not Cut.LATE]


@pytest.mark.parametrize("name", OPERATIONS)
async def test_one_cut_anywhere_leaves_old_or_new(server: Server, name: str) -> None:
    found = await disturbed(server, OPERATIONS[name], CUTS, most=20)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", OPERATIONS)
async def test_an_outage_that_begins_anywhere_leaves_old_or_new(server: Server, name: str) -> None:
    found = await disturbed(server, OPERATIONS[name], CUTS, for_good=True, most=8)
    assert not found, "\n".join(found)


ORPHANS: Final = pytest.mark.xfail(
    reason="a command that takes a lock, and arrives after its claim was given up, takes it for nobody for a lease"
)
LOCKLESS: Final = {"create", "read", "log in", "touch", "sessions of an owner", "sweep", "keys"}
LATE: Final = OPERATIONS if ALL else ("create", "change", "synchronize", "keys")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in LOCKLESS else ORPHANS) for name in LATE])
async def test_a_command_that_arrives_when_nobody_waits_for_it_any_more_leaves_old_or_new(
    server: Server, name: str
) -> None:
    found = await disturbed(server, OPERATIONS[name], [Cut.LATE])
    assert not found, "\n".join(found)
