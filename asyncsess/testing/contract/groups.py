"""`GroupContract`: what the contract promises of groups of keys."""
# ruff: noqa: D102 - the names of the tests are the sentences

from __future__ import annotations

import asyncio
from typing import Final

from asyncsess.backends.base import Backend, Tombstone
from asyncsess.expiry import Expiry
from asyncsess.testing.contract.helpers import KEY, NOW, OTHER_KEY, hold, put

GROUP: Final = "d3" * 32
OTHER_GROUP: Final = GROUP[:-1] + "4"


class GroupContract:
    """What the contract promises of groups of keys."""

    async def test_members_are_those_that_were_added_and_not_removed(self, backend: Backend, other: Backend) -> None:
        assert await backend.members(GROUP) == {}
        await backend.add_member(GROUP, KEY, now=NOW)
        await other.add_member(GROUP, OTHER_KEY, now=NOW + 1)
        await backend.add_member(OTHER_GROUP, OTHER_KEY, now=NOW + 2)
        for handle in (backend, other):
            assert await handle.members(GROUP) == {KEY: NOW, OTHER_KEY: NOW + 1}
            assert await handle.members(OTHER_GROUP) == {OTHER_KEY: NOW + 2}
        for _ in range(2):
            await other.remove_member(GROUP, KEY)
        assert await backend.members(GROUP) == {OTHER_KEY: NOW + 1}
        await backend.add_member(GROUP, OTHER_KEY, now=NOW + 9)
        assert await other.members(GROUP) == {OTHER_KEY: NOW + 9}

    async def test_a_group_is_no_record(self, backend: Backend) -> None:
        await backend.add_member(GROUP, KEY, now=NOW)
        assert [await backend.read(key) for key in (GROUP, KEY)] == [None, None]
        assert [key async for key in backend.keys()] == []  # noqa: SIM118 - no mapping

    async def test_members_added_at_the_same_time_are_all_there(self, backend: Backend, other: Backend) -> None:
        keys = [f"{number:064x}" for number in range(100)]
        await asyncio.gather(*(each.add_member(GROUP, key, now=NOW) for each in (backend, other) for key in keys))
        assert await backend.members(GROUP) == dict.fromkeys(keys, NOW)
        await asyncio.gather(*(other.remove_member(GROUP, key) for key in keys[1:]))
        assert await other.members(GROUP) == {keys[0]: NOW}

    async def test_a_sweep_removes_members_that_have_neither_record_nor_tombstone_once_they_are_old(
        self, backend: Backend
    ) -> None:
        buried, absent = "e4" * 32, "f5" * 32
        for key in (KEY, buried):
            await put(backend, key=key)
        async with hold(backend, buried) as held:
            await held.delete(Tombstone(b"", NOW + 1000), now=NOW)
        for key in (KEY, buried, absent):
            await backend.add_member(GROUP, key, now=NOW)
        assert await backend.delete_expired(Expiry(), now=NOW + 60) == 0
        assert (await backend.members(GROUP)).keys() == {KEY, buried, absent}
        await backend.delete_expired(Expiry(), now=NOW + 61)
        assert (await backend.members(GROUP)).keys() == {KEY, buried}
        await backend.delete_expired(Expiry(), now=NOW + 1000)
        await backend.delete_expired(Expiry(), now=NOW + 1000)
        assert (await backend.members(GROUP)).keys() == {KEY}
