"""A connection that breaks anywhere in any operation: old or new, once, nothing locked, nothing left."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import Final

import pytest

from asyncsess import CommitUnknownError, SessionStore
from asyncsess.ids import key_of
from asyncsess.testing import until
from asyncsess.testing.contract import hold
from tests.conftest import stored
from tests.network.operations import OPERATIONS
from tests.network.servers import Server, store_at
from tests.network.trials import ALL, Trial, disturbed
from tests.proxy import Cut, Proxy

CUTS: Final = [where for where in Cut if where is not Cut.LATE]


@pytest.mark.parametrize("name", OPERATIONS)
async def test_one_cut_anywhere_leaves_old_or_new(server: Server, name: str) -> None:
    found = await disturbed(server, OPERATIONS[name], CUTS, most=10)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", OPERATIONS)
async def test_an_outage_that_begins_anywhere_leaves_old_or_new(server: Server, name: str) -> None:
    found = await disturbed(server, OPERATIONS[name], CUTS, for_good=True, most=5)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("where", CUTS, ids=lambda where: where.value)
@pytest.mark.parametrize("name", ["change", "synchronize"])
async def test_a_cut_while_another_is_waited_for_leaves_old_or_new(server: Server, name: str, where: Cut) -> None:
    for number in (1, 2):
        async with Trial(server, OPERATIONS[name]) as trial, store_at(server.url_at(server.port), trial.space) as other:

            async def behind_another(
                work: Awaitable[object], trial: Trial = trial, other: SessionStore = other
            ) -> None:
                """Begin while another holds the session, and its variable."""
                async with other.synchronize(trial.session_id, "n"), other.open(trial.session_id):
                    task = asyncio.ensure_future(work)
                    await until(lambda: task.done() or (trial.store.statistics().waiting and trial.proxy.cuts))
                await task

            trial.proxy.cut(where, number)
            assert [each async for each in trial.run(behind_another)] == []


async def test_a_commit_whose_answer_was_lost_is_not_taken_for_lost_when_others_have_committed_since(
    server: Server, shared: SessionStore, space: str
) -> None:
    session_id = await shared.create({"n": 0})

    async def add() -> None:
        async with shared.open(session_id) as session:
            session["n"] += 1

    await add()  # the server may have to learn the command, by one more exchange

    async def keep_away_until(done: Awaitable[object]) -> None:
        await until(lambda: proxy.cuts)
        proxy.stall()
        await done
        proxy.heal()

    async with Proxy("127.0.0.1", server.port) as proxy, store_at(server.url_at(proxy.port), space) as unlucky:
        with suppress(CommitUnknownError):  # but never LockLostError: nothing would have been stored
            async with unlucky.open(session_id) as session:
                session["n"] += 1
                waiter = asyncio.create_task(add())
                await until(lambda: shared.statistics().waiting == 1)
                proxy.cut(Cut.BEFORE_ANSWER)
                other = asyncio.create_task(keep_away_until(waiter))
        await other
        assert await stored(unlucky, session_id) == {"n": 3}


async def test_a_deletion_that_leaves_nothing_is_done_also_if_its_answer_was_lost(server: Server, space: str) -> None:
    async with Proxy("127.0.0.1", server.port) as proxy, store_at(server.url_at(proxy.port), space) as store:
        for _ in range(2):  # the first time, the server may have to learn the command
            key = key_of(await store.create({"n": 0}))
            async with hold(store.backend, key) as held:
                proxy.cut(Cut.BEFORE_ANSWER)
                await held.delete(now=store.clock())
            assert await store.backend.read(key) is None
        assert proxy.cuts == 2


async def test_after_a_commit_of_which_nothing_is_known_its_holder_stores_nothing_more(
    server: Server, space: str
) -> None:
    async with Proxy("127.0.0.1", server.port) as proxy, store_at(server.url_at(proxy.port), space) as store:
        session_id = await store.create({"n": 0})
        with pytest.raises(CommitUnknownError):
            async with store.open(session_id) as session:
                session["n"] = 1
                proxy.cut(Cut.BEFORE_ANSWER, for_good=True)
                with pytest.raises(CommitUnknownError):
                    await session.save()
                proxy.heal()
                session["n"] = 2
        assert await stored(store, session_id) in ({"n": 0}, {"n": 1})


LATE: Final = OPERATIONS if ALL else ("create", "change", "synchronize", "keys")


@pytest.mark.parametrize("name", LATE)
async def test_a_command_that_arrives_when_nobody_waits_for_it_any_more_leaves_old_or_new(
    server: Server, name: str
) -> None:
    found = await disturbed(server, OPERATIONS[name], [Cut.LATE])
    assert not found, "\n".join(found)
