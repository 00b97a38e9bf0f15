"""`RecordContract`: what the contract promises of records and tombstones."""
# ruff: noqa: D102 - the names of the tests are the sentences

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from asyncsess.backends.base import Backend, Found, Record, Tombstone
from asyncsess.errors import DeadlockError, StoreError
from asyncsess.expiry import Expiry
from asyncsess.testing.clock import until
from asyncsess.testing.contract.helpers import (
    KEY,
    NOW,
    OTHER_KEY,
    create,
    hold,
    keys_of,
    look,
    put,
    waiting,
)


class RecordContract:
    """What the contract promises of records and tombstones."""

    async def test_each_commit_is_at_once_the_next_version_for_all(self, backend: Backend, other: Backend) -> None:
        payloads = (b"one", b"", b"\0\xff", b"4" * 300, b"5" * 100_000, b"six", b"7" * 20_000, b"8" * 20_001)
        snapshots = []
        async with create(backend, payloads[0]) as held:
            for version, payload in enumerate(payloads, 1):
                committed = held.record if version == 1 else await held.commit(payload, now=NOW + version - 1)
                snapshots += [await backend.read(KEY), await other.read(KEY)]  # a reader does not wait for the holder
                assert [held.record, *snapshots[-2:]] == [committed] * 3
        expected = [Record(payload, version + 1, NOW, NOW + version) for version, payload in enumerate(payloads)]
        assert snapshots[::2] == expected

    async def test_create_never_overwrites(self, backend: Backend, other: Backend) -> None:
        await put(backend, b"theirs")
        for handle in (backend, other):
            with pytest.raises(StoreError):
                await put(handle, b"mine", now=NOW + 9)
            assert await backend.read(KEY) == Record(b"theirs", 1, NOW, NOW)
        await look(other, [], timeout=1.0)  # the lock is free

    async def test_a_session_that_comes_from_elsewhere_goes_on_from_its_version(
        self, backend: Backend, other: Backend
    ) -> None:
        async with create(backend, b"seventh", now=NOW + 9, created_at=NOW, version=7) as held:
            seventh = Record(b"seventh", 7, NOW, NOW + 9)
            assert [held.record, await backend.read(KEY), await other.read(KEY)] == [seventh] * 3
            assert await held.commit(b"eighth", now=NOW + 10) == Record(b"eighth", 8, NOW, NOW + 10)
        async with hold(other) as held:
            await held.commit(b"ninth" * 1000, now=NOW + 11)
        assert await backend.read(KEY) == Record(b"ninth" * 1000, 9, NOW, NOW + 11)

    async def test_keys_are_those_that_have_a_record(self, backend: Backend, other: Backend) -> None:
        await put(backend)
        await put(backend, key=OTHER_KEY, now=1.0)
        async with hold(backend, "c2" * 32, create=True):
            assert sorted(await keys_of(backend)) == sorted(await keys_of(other)) == [KEY, OTHER_KEY]

    async def test_touch_moves_the_last_use_only_forward_and_revives_nothing(self, backend: Backend) -> None:
        await backend.touch(KEY, now=NOW)
        await put(backend)
        for now, expected in ((NOW + 7, NOW + 7), (NOW + 3, NOW + 7), (NOW + 8, NOW + 8)):
            await backend.touch(KEY, now=now)
            assert await backend.read(KEY) == Record(b"payload", 1, NOW, expected)
        async with hold(backend) as held:
            await backend.touch(KEY, now=NOW + 9)  # does not wait for the holder, who notes the use itself
            await held.delete(now=NOW)
        assert (await backend.read(KEY), await keys_of(backend)) == (None, [])

    async def test_only_a_commit_leaves_something_under_a_new_key(self, backend: Backend, other: Backend) -> None:
        seen: list[Found] = []
        async with asyncio.TaskGroup() as tasks, hold(backend, create=True) as held:
            tasks.create_task(look(other, seen, create=True))
            await until(lambda: waiting(backend, other) == 1)
            assert (held.record, await other.read(KEY), seen) == (None, None, [])
        async with hold(backend) as held:
            assert (held.record, seen, await other.read(KEY), await keys_of(backend)) == (None, [None], None, [])
        async with hold(backend, create=True) as held:
            assert await held.commit(b"first", now=NOW) == await other.read(KEY) == Record(b"first", 1, NOW, NOW)
            await held.commit(b"second", now=NOW + 1)
        assert await other.read(KEY) == Record(b"second", 2, NOW, NOW + 1)

    async def test_a_cancelled_commit_has_not_begun_or_is_complete(self, backend: Backend) -> None:
        old, new, steps, was_in_time = Record(b"old", 1, NOW, NOW), Record(b"new" * 999, 2, NOW, NOW + 1), 0, False
        while not was_in_time:
            async with create(backend, b"old") as held:
                commit = asyncio.create_task(held.commit(new.payload, now=NOW + 1))
                for _ in range(steps):
                    await asyncio.sleep(0)
                was_in_time = not commit.cancel()
                with suppress(asyncio.CancelledError):
                    await commit
                found = await backend.read(KEY)
                assert isinstance(found, Record)
                assert found in ([new] if was_in_time else [old, new])
                last = await held.commit(b"last" * 99, now=NOW + 2)
                assert last == await backend.read(KEY) == Record(b"last" * 99, found.version + 1, NOW, NOW + 2)
                await held.delete(now=NOW)
            steps += 1 + steps // 8

    @pytest.mark.parametrize("expiry", [Expiry(idle_timeout=60.0), Expiry(lifetime=60.0), Expiry(60.0, 90.0)])
    async def test_what_has_expired_goes_unless_held(self, backend: Backend, other: Backend, expiry: Expiry) -> None:
        old = [f"{number:064x}" for number in range(9)]
        for key in old:
            await put(backend, key=key)
        await put(backend, now=NOW + 1)
        async with hold(backend, old[0]) as first, hold(other, old[1]) as second:
            assert await backend.delete_expired(expiry, now=NOW + 60) == 7
            assert sorted(await keys_of(other)) == [*old[:2], KEY]
            for held in (first, second):
                await held.release(now=NOW)
        at_once = await asyncio.gather(*(handle.delete_expired(expiry, now=NOW + 60) for handle in (backend, other)))
        assert (sum(at_once), await keys_of(backend)) == (2, [KEY])

    async def test_the_lifetime_ends_also_what_is_in_use(self, backend: Backend) -> None:
        await put(backend)
        await backend.touch(KEY, now=NOW + 59)
        assert await backend.delete_expired(Expiry(), now=1e12) == 0
        assert await backend.delete_expired(Expiry(60.0, 90.0), now=NOW + 89) == 0
        assert await backend.delete_expired(Expiry(60.0, 90.0), now=NOW + 90) == 1

    async def test_a_closed_backend_can_not_be_used_until_it_is_opened(self, backend: Backend) -> None:
        await put(backend)
        await backend.aclose()
        for use in (
            lambda: backend.read(KEY),
            lambda: put(backend, key=OTHER_KEY),
            lambda: look(backend, []),
            lambda: backend.touch(KEY, now=NOW),
            lambda: backend.delete_expired(Expiry(1.0), now=NOW + 9),
            lambda: keys_of(backend),
        ):
            with pytest.raises(StoreError):
                await use()
        await backend.open()
        assert await backend.read(KEY) == Record(b"payload", 1, NOW, NOW)

    async def test_a_tombstone_takes_the_place_of_a_record(self, backend: Backend, other: Backend) -> None:
        for payload in (b"small", b"large" * 1000):
            tombstone = Tombstone(b"n" * 400, NOW + 60)
            await put(backend, payload)
            async with hold(backend) as held:
                await held.commit(payload.upper(), now=NOW)
                await held.delete(tombstone, now=NOW)
            for handle in (backend, other):
                assert (await handle.read(KEY), await keys_of(handle)) == (tombstone, [])
                for is_new in (False, True):
                    async with hold(handle, create=is_new) as held:
                        assert held.record == tombstone
                        for change in (held.commit(b"revived", now=NOW), hold(handle, timeout=0).__aenter__()):
                            with pytest.raises((StoreError, DeadlockError)):
                                await change
                with pytest.raises(StoreError):
                    await put(handle)
                await handle.touch(KEY, now=NOW + 99)
                assert await handle.read(KEY) == tombstone
            assert await backend.delete_expired(Expiry(1.0, 1.0), now=NOW + 59.9) == 0
            assert await other.read(KEY) == tombstone
            assert await backend.delete_expired(Expiry(), now=NOW + 60) == 0
            assert await other.read(KEY) is None

    async def test_a_tombstone_can_be_deleted_and_only_a_record_leaves_one(self, backend: Backend) -> None:
        tombstone = Tombstone(b"", NOW + 60)
        async with hold(backend, create=True) as held:
            await held.delete(tombstone, now=NOW)
        assert await backend.read(KEY) is None
        for left in (tombstone, None):
            await put(backend)
            async with hold(backend) as held:
                await held.delete(tombstone, now=NOW)
            async with hold(backend) as held:
                await held.delete(left, now=NOW)
            assert await backend.read(KEY) is None
        async with create(backend, b"new") as held:
            assert held.record == Record(b"new", 1, NOW, NOW)

    async def test_waiters_find_the_tombstone(self, backend: Backend, other: Backend) -> None:
        await put(backend)
        seen: list[Found] = []
        async with asyncio.TaskGroup() as tasks, hold(backend) as held:
            for handle in (backend, other, backend):
                tasks.create_task(look(handle, seen, create=True))
            await until(lambda: waiting(backend, other) == 3)
            await held.delete(Tombstone(b"here", NOW), now=NOW)
        assert seen == [Tombstone(b"here", NOW)] * 3
