from __future__ import annotations

import asyncio
import gc
import weakref
from contextvars import Context, copy_context

import pytest

from asyncsess.adapters import loads
from asyncsess.adapters.entries import Entry
from asyncsess.adapters.loads import Loaded, Loads

ENTRY = Entry(b'{"name":"Ada"}', None)


@pytest.fixture
def requests() -> Loads:
    return Loads()


def found(requests: Loads, session_id: str = "id") -> Entry | None:
    loaded = requests.recall(session_id)
    return loaded.entry if loaded else None


async def test_a_task_sees_what_it_loaded_and_so_do_those_that_it_started_afterwards(requests: Loads) -> None:
    async def child() -> Entry | None:
        return found(requests)

    assert requests.recall("id") is None
    requests.remember("id", ENTRY)
    assert found(requests) is ENTRY
    assert await asyncio.create_task(child()) is ENTRY


async def test_a_task_does_not_see_what_another_loaded(requests: Loads) -> None:
    is_loaded, is_seen = asyncio.Event(), asyncio.Event()

    async def load() -> None:
        requests.remember("id", ENTRY)
        is_loaded.set()
        await is_seen.wait()

    task = asyncio.create_task(load())
    await is_loaded.wait()
    assert requests.recall("id") is None
    is_seen.set()
    await task


async def test_nothing_looked_for_is_another_thing_than_nothing_found(requests: Loads) -> None:
    requests.remember("id", None)
    assert requests.recall("id") is not None
    assert found(requests) is None
    requests.forget("id")
    assert requests.recall("id") is None


async def test_the_stores_of_a_process_do_not_see_what_each_other_loaded(requests: Loads) -> None:
    requests.remember("id", ENTRY)
    assert Loads().recall("id") is None


async def test_what_a_request_loaded_goes_with_it_even_if_its_task_and_context_are_kept(requests: Loads) -> None:
    kept: list[weakref.ref[Loaded]] = []

    async def request() -> Context:
        requests.remember("id", ENTRY)
        loaded = requests.recall("id")
        assert loaded is not None
        kept.append(weakref.ref(loaded))
        del loaded
        return copy_context()  # as timers do, and what comes next on a connection

    async def next_of_the_connection() -> Loaded | None:
        return requests.recall("id")

    task = asyncio.create_task(request())
    context = await task
    await asyncio.sleep(0)  # in which turn the loop tells others of the end too
    gc.collect()
    assert kept[0]() is None
    assert await asyncio.create_task(next_of_the_connection(), context=context) is None
    del task


async def test_a_task_that_never_ends_keeps_what_it_loaded_last(requests: Loads) -> None:
    for number in range(1000):
        requests.remember(str(number), ENTRY)
    assert [number for number in range(1000) if requests.recall(str(number))] == [*range(1000 - loads._MOST, 1000)]
    assert len(loads._seen.get() or {}) <= loads._MOST + 1
