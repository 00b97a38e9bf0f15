"""The contract on two backends at once, and what becomes of sessions on the way from one to the other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from asyncsess import (
    DeadlockError,
    LockLostError,
    LockTimeoutError,
    SessionNotFoundError,
    SessionStore,
    StoreError,
    rules,
)
from asyncsess.backends.base import Backend, Record, Tombstone
from asyncsess.backends.file import FileBackend
from asyncsess.backends.memory import MemoryBackend
from asyncsess.backends.migrating import MigratingBackend
from asyncsess.backends.migrating.held import MigratingHeld
from asyncsess.backends.redis import RedisEngine
from asyncsess.backends.remote import RemoteBackend
from asyncsess.expiry import Expiry
from asyncsess.ids import key_of
from asyncsess.testing import BackendContract, until
from asyncsess.testing.contract import KEY, NOW, OTHER_KEY, create, hold
from asyncsess.testing.contract.groups import GROUP
from asyncsess.testing.contract.helpers import hold_name, keys_of, look
from asyncsess.web import login
from tests.backends.stepping import SteppingBackend

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])  # each of the two backends is tested on both by itself


class BeginningInTheOld(MigratingBackend):
    """Every session begins in the old backend, as it does before all processes move sessions."""

    def create(self, *args: Any, **options: Any) -> MigratingHeld:
        return MigratingBackend(self.old, self.new, moves=False).create(*args, **options)


@pytest.fixture
async def opened() -> AsyncIterator[AsyncExitStack]:
    """What opens backends, and closes them in the end."""
    async with AsyncExitStack() as stack:
        yield stack


async def migrating(kind: str, old: Backend, new: Backend, opened: AsyncExitStack) -> MigratingBackend:
    make = BeginningInTheOld if kind == "moving what is old" else MigratingBackend
    backend = make(old, new, moves=kind != "not moving yet")
    await backend.open()
    opened.push_async_callback(backend.aclose)
    return backend


class MigratingContract(BackendContract):
    """What the contract promises of two backends."""

    @pytest.fixture(params=["moving", "moving what is old", "not moving yet"])
    def kind(self, request: pytest.FixtureRequest) -> str:
        return request.param

    async def test_a_sweep_removes_members_that_have_neither_record_nor_tombstone_once_they_are_old(
        self, backend: Backend, kind: str
    ) -> None:
        if kind == "moving what is old":
            pytest.skip("what is left in the old backend keeps its members there")
        await super().test_a_sweep_removes_members_that_have_neither_record_nor_tombstone_once_they_are_old(backend)


class LocalContract(MigratingContract):
    """What the contract promises of two local backends."""

    def make(self, tmp_path: Path) -> tuple[Backend, Backend]:
        raise NotImplementedError  # by each pair below; pytest does not collect this class itself

    @pytest.fixture
    async def backend(self, kind: str, tmp_path: Path, opened: AsyncExitStack) -> MigratingBackend:
        old, new = self.make(tmp_path)
        return await migrating(kind, old, new, opened)

    async def test_release_never_suspends(self, backend: Backend) -> None:
        async with create(backend) as held:
            with pytest.raises(StopIteration):
                held.release(now=NOW).send(None)  # type: ignore[attr-defined]


class TestMemoryToMemory(LocalContract):
    def make(self, tmp_path: Path) -> tuple[Backend, Backend]:
        return MemoryBackend(), MemoryBackend()


class TestFileToFile(LocalContract):
    def make(self, tmp_path: Path) -> tuple[Backend, Backend]:
        return FileBackend(tmp_path / "old"), FileBackend(tmp_path / "new")

    @pytest.fixture
    async def other(
        self, kind: str, backend: MigratingBackend, tmp_path: Path, opened: AsyncExitStack
    ) -> MigratingBackend:
        return await migrating(kind, *self.make(tmp_path), opened)


class TestFileToRedis(MigratingContract):
    @pytest.fixture
    async def backend(self, kind: str, redis_url: str, tmp_path: Path, opened: AsyncExitStack) -> MigratingBackend:
        return await migrating(kind, *self.make(redis_url, tmp_path), opened)

    @pytest.fixture
    async def other(
        self, kind: str, backend: MigratingBackend, redis_url: str, tmp_path: Path, opened: AsyncExitStack
    ) -> MigratingBackend:
        return await migrating(kind, *self.make(redis_url, tmp_path), opened)

    def make(self, redis_url: str, tmp_path: Path) -> tuple[Backend, Backend]:
        engine = RedisEngine(redis_url, prefix=f"{tmp_path.parent.name}:{tmp_path.name}:")
        return FileBackend(tmp_path / "old"), RemoteBackend(engine)


# What is particular to a migration.

OLD = Record(b"old", 3, NOW, NOW + 5)
Pair = tuple[SteppingBackend, SteppingBackend]


@pytest.fixture
def pair() -> Pair:
    return SteppingBackend(), SteppingBackend()


async def put_record(backend: Backend, record: Record = OLD, key: str = KEY) -> None:
    payload, version, created_at, accessed_at = record
    async with create(backend, payload, key, accessed_at, created_at=created_at, version=version):
        pass


async def bury(backend: Backend, tombstone: Tombstone) -> None:
    async with hold(backend) as held:
        await held.delete(tombstone, now=NOW)


def nothing_is_held(*backends: Backend) -> bool:
    return [(each.statistics().holding, each.statistics().waiting) for each in backends] == [(0, 0)] * len(backends)


async def test_a_session_moves_as_it_is_when_it_is_opened_for_writing(pair: Pair) -> None:
    old, new = pair
    backend = MigratingBackend(old, new)
    await put_record(old)
    assert [await each.read(KEY) for each in (backend, old, new)] == [OLD, OLD, None]  # reading moves nothing
    async with hold(backend) as held:
        assert held.record == OLD
        assert [await each.read(KEY) for each in (backend, new)] == [OLD, OLD]
        assert isinstance(await old.read(KEY), Tombstone)
        assert await held.commit(b"new", now=NOW + 9) == await backend.read(KEY) == Record(b"new", 4, NOW, NOW + 9)
    assert [await keys_of(each) for each in (backend, old, new)] == [[KEY], [], [KEY]]
    assert nothing_is_held(old, new)


async def test_a_session_that_was_destroyed_does_not_come_back_from_the_old_backend(pair: Pair) -> None:
    backend, tombstone = MigratingBackend(*pair), Tombstone(b"", NOW + 60)
    await put_record(pair[0])
    await bury(backend, tombstone)
    assert await backend.read(KEY) == tombstone
    for each in pair:
        async with hold(each, create=True) as held:
            with pytest.raises(StoreError):
                await held.commit(b"again", now=NOW)
    await backend.delete_expired(Expiry(), now=NOW + 60)
    assert await backend.read(KEY) is None


@pytest.mark.parametrize("moves", [True, False])
@pytest.mark.parametrize("since", [0, 1], ids=["unchanged since", "changed since"])
async def test_a_move_that_was_interrupted_is_finished(pair: Pair, moves: bool, since: int) -> None:
    old, new = pair
    backend = MigratingBackend(old, new, moves=moves)
    newest = Record(b"newest", OLD.version + since, NOW, NOW + 6)
    for each, record in ((old, newest), (new, OLD if since else newest)):
        await put_record(each, record)
    assert await backend.read(KEY) == newest
    async with hold(backend) as held:
        assert held.record == newest
        last = await held.commit(b"last", now=NOW + 9)
    assert await backend.read(KEY) == last == Record(b"last", newest.version + 1, NOW, NOW + 9)
    assert await (new if moves else old).read(KEY) == last
    assert not isinstance(await (old if moves else new).read(KEY), Record)


@pytest.mark.parametrize("moves", [True, False])
async def test_a_session_that_was_destroyed_during_an_interrupted_move_stays_dead(pair: Pair, moves: bool) -> None:
    old, new = pair
    backend, tombstone = MigratingBackend(old, new, moves=moves), Tombstone(b"", NOW + 60)
    for each in pair:
        await put_record(each)
    await bury(old, tombstone)  # by a process that knows no other
    assert await backend.read(KEY) == tombstone
    async with hold(backend) as held:
        assert held.record == tombstone
    await old.delete_expired(Expiry(), now=NOW + 60)
    assert not isinstance(await backend.read(KEY), Record)


async def test_what_the_old_backend_lost_its_tombstone_of_does_not_go_back(pair: Pair) -> None:
    old, new = pair
    backend, later = MigratingBackend(old, new), OLD._replace(version=7)
    await put_record(old)
    await put_record(new, later)
    assert await backend.read(KEY) == later
    async with hold(backend) as held:
        assert held.record == later
    assert [await backend.read(KEY), await keys_of(old)] == [later, []]


@pytest.mark.parametrize("pace", [1, 4])
async def test_readers_never_go_back_and_never_miss_a_session_that_moves(pace: int) -> None:
    async def step() -> None:
        for _ in range(pace if asyncio.current_task() is reader else 1):
            await asyncio.sleep(0)

    async def read(times: int) -> list[int]:
        found = [await backend.read(KEY) for _ in range(times)]
        return [record.version if isinstance(record, Record) else 0 for record in found]

    async def change() -> None:
        async with hold(backend) as held:
            for number in range(2):
                await held.commit(b"new", now=NOW + number)

    for delay in range(40):
        reader: asyncio.Task[list[int]] | None = None
        backend = MigratingBackend(SteppingBackend(step), SteppingBackend(step))
        await put_record(backend.old)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(change())
            for _ in range(delay):
                await asyncio.sleep(0)
            reader = tasks.create_task(read(8))
        versions = reader.result()
        assert versions == sorted(versions)
        assert versions[0] >= OLD.version


async def cancel_at(step: int, work: Coroutine[Any, Any, Any]) -> bool:
    """Cancel work after so many steps of the loop; tell whether it was complete before."""
    task = asyncio.create_task(work)
    for _ in range(step):
        await asyncio.sleep(0)
    was_complete = not task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    return was_complete


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize("moves", [True, False])
async def test_a_move_that_is_cancelled_at_any_step_leaves_no_lock_and_the_session_whole(
    pair: Pair, moves: bool, create: bool
) -> None:
    backend, step, is_complete = MigratingBackend(*pair, moves=moves), 0, False
    while not is_complete:
        await put_record(pair[0])
        is_complete = await cancel_at(step, look(backend, [], create=create))
        assert nothing_is_held(*pair)
        assert await backend.read(KEY) == OLD
        async with hold(backend, timeout=0) as held:
            assert held.record == OLD
            await held.commit(b"next", now=NOW)
            await held.delete(now=NOW)
        for each in pair:
            async with hold(each) as held:
                await held.delete(now=NOW)
        step += 1
    assert step > 4


async def test_a_move_between_files_that_is_cancelled_anywhere_leaves_the_session_whole(
    tmp_path: Path, opened: AsyncExitStack
) -> None:
    old, new = (FileBackend(tmp_path / name, io="thread") for name in ("old", "new"))
    backend, step, is_complete = await migrating("moving", old, new, opened), 0, False
    while not is_complete:
        key = f"{step:064x}"
        await put_record(old, key=key)
        is_complete = await cancel_at(step, hold(backend, key).__aenter__())
        if not is_complete:
            assert await backend.read(key) == OLD
            async with hold(backend, key, timeout=1.0) as held:
                assert held.record == OLD
                assert await held.commit(b"next", now=NOW + 9) == await backend.read(key)
            assert nothing_is_held(backend)
        step += 1 + step // 8


@pytest.mark.parametrize("stop", range(1, 13))
@pytest.mark.parametrize("follower", ["looks", "changes", "deletes"])
async def test_who_is_stopped_in_the_middle_of_a_move_for_too_long_takes_nothing_from_who_follows(
    stop: int, follower: str
) -> None:
    """Whoever follows may have moved the session, changed it and let it go, when the late one goes on."""
    steps, may_go = 0, asyncio.Event()
    slow: asyncio.Task[None] | None = None

    async def step() -> None:
        nonlocal steps
        if asyncio.current_task() is slow:
            steps += 1
            if steps == stop:
                await may_go.wait()

    old, new = SteppingBackend(step), SteppingBackend(step)
    backend, expected = MigratingBackend(old, new), ["old"]

    async def append(text: str) -> None:
        async with hold(backend, lease=0.01) as held:
            if isinstance(held.record, Record):
                with suppress(LockLostError):
                    await held.commit(held.record.payload + b" " + text.encode(), now=NOW)
                    expected.append(text)

    await put_record(old)
    slow = asyncio.create_task(append("slow"))
    await until(lambda: steps == stop or slow.done())
    if follower == "changes":
        await append("follower")
    else:
        async with hold(backend) as held:
            if follower == "deletes":
                await held.delete(now=NOW)
    may_go.set()
    await slow
    found = await backend.read(KEY)
    if follower == "deletes":
        assert found is None
    else:
        assert isinstance(found, Record)
        assert sorted(found.payload.decode().split()) == sorted(expected)
        assert found.version == OLD.version + len(expected) - 1
    assert nothing_is_held(old, new)


async def test_who_loses_the_one_lock_while_it_waits_for_the_other_begins_again(pair: Pair) -> None:
    old, new = pair
    backend = MigratingBackend(old, new, moves=False)

    async def append() -> None:
        async with hold(backend, create=True, lease=0.01) as held:
            assert isinstance(held.record, Record)
            await held.commit(held.record.payload + b" and mine", now=NOW)
            assert held.waited > 0

    async with asyncio.TaskGroup() as tasks, hold(new, create=True):
        tasks.create_task(append())
        await until(lambda: new.statistics().waiting == 1)
        async with hold(old, create=True) as held:  # by a process that knows no other, once the lease is over
            await held.commit(b"theirs", now=NOW)
    found = await backend.read(KEY)
    assert found == Record(b"theirs and mine", 2, NOW, NOW)
    assert nothing_is_held(old, new)


async def test_who_loses_the_one_lock_of_a_name_while_it_waits_for_the_other_begins_again(pair: Pair) -> None:
    old, new = pair
    backend, inside = MigratingBackend(old, new), 0

    async def enter() -> None:
        nonlocal inside
        async with hold_name(backend, "a", lease=0.01) as held:
            inside += 1
            assert held.waited > 0
            await held.check()

    async with asyncio.TaskGroup() as tasks, AsyncExitStack() as of_new:
        await of_new.enter_async_context(hold_name(new, "a"))
        tasks.create_task(enter())
        await until(lambda: new.statistics().waiting == 1)
        async with hold_name(old, "a"):
            await of_new.aclose()
            await until(lambda: old.statistics().waiting == 1)
            assert inside == 0
    assert inside == 1
    assert nothing_is_held(old, new)


class Stores(NamedTuple):
    """What processes of each round of a migration use, over the same files."""

    before: SessionStore
    ready: SessionStore
    moving: SessionStore
    after: SessionStore


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[Stores]:
    def old() -> FileBackend:
        return FileBackend(tmp_path / "old")

    def new() -> FileBackend:
        return FileBackend(tmp_path / "new")

    backends = (old(), MigratingBackend(old(), new(), moves=False), MigratingBackend(old(), new()), new())
    async with AsyncExitStack() as stack:
        yield Stores(*[await stack.enter_async_context(SessionStore(each, sweep_interval=None)) for each in backends])


async def increment(store: SessionStore, session_id: str, times: int) -> int:
    """Add to a number so often, or until there is no such session; return how often that was acknowledged."""
    for number in range(times):
        try:
            async with store.open(session_id) as session:
                session["n"] += 1
        except SessionNotFoundError:
            return number
        await asyncio.sleep(0)
    return times


async def test_processes_of_two_rounds_lose_no_update(stores: Stores) -> None:
    for first, second in (stores[:2], stores[1:3], stores[2:]):
        session_ids = [await first.create({"n": 0}) for _ in range(10)]
        counts = [increment(each, session_id, 10) for session_id in session_ids for each in (first, second) * 2]
        assert await asyncio.gather(*counts) == [10] * 40
        for session_id in session_ids:
            async with first.open(session_id, readonly=True) as session:
                assert session["n"] == 40


async def test_processes_of_two_rounds_begin_a_session_of_one_name_once(stores: Stores) -> None:
    async def begin(store: SessionStore, name: str) -> None:
        async with store.open(name, create=True) as session:
            await asyncio.sleep(0)
            session["n"] = session.get("n", 0) + 1

    for number in range(20):
        name = f"job-{number}"
        await asyncio.gather(*(begin(store, name) for store in (stores.ready, stores.moving) * 2))
        for store in (stores.ready, stores.moving):
            async with store.open(name, readonly=True) as session:
                assert session["n"] == 4


async def test_no_login_ends_when_processes_are_replaced_round_by_round(stores: Stores) -> None:
    before, ready, moving, after = stores
    session_ids = [await before.create({"by": "before"}), await ready.create({"by": "ready"})]
    for session_id in session_ids:
        async with moving.open(session_id) as session:
            session["seen"] = True
        for store in (ready, moving, after):
            async with store.open(session_id) as session:
                assert session["seen"] is True
    session_ids.append(await moving.create({"by": "moving"}))
    async with ready.open(session_ids[-1]) as session:
        assert session["by"] == "moving"
    assert await ready.destroy(session_ids[0])
    for store in (before, ready, moving, after):
        with pytest.raises(SessionNotFoundError):
            async with store.open(session_ids[0], create=True):
                pass


async def test_what_a_process_of_the_old_kind_commits_is_carried_over_or_refused(stores: Stores) -> None:
    session_ids = [await stores.before.create({"n": 0}) for _ in range(20)]

    async def edit(session_id: str) -> int:
        try:
            async with stores.before.edit(session_id, resolve=rules.add) as session:
                session["n"] += 1
                await asyncio.sleep(0)
        except SessionNotFoundError:
            return 0
        return 1

    for number, session_id in enumerate(session_ids):
        works = [increment(stores.before, session_id, 99), edit(session_id), edit(session_id)]
        tasks = [asyncio.create_task(work) for work in works]
        for _ in range(3 * number):
            await asyncio.sleep(0)
        assert await increment(stores.moving, session_id, 5) == 5
        acknowledged = 5 + sum(await asyncio.gather(*tasks))
        async with stores.moving.open(session_id, readonly=True) as session:
            assert session["n"] == acknowledged


async def test_a_variable_has_one_holder_in_both_backends(stores: Stores) -> None:
    session_id = await stores.before.create({"a": 0})
    for first, second in (
        (stores.before, stores.moving),
        (stores.moving, stores.before),
        (stores.ready, stores.moving),
    ):
        async with first.synchronize(session_id, "a"):
            with pytest.raises(LockTimeoutError):
                await asyncio.create_task(lock_the_variable(second, session_id))
        await lock_the_variable(second, session_id)
    async with stores.moving.open(session_id):
        pass
    for first, second in ((stores.after, stores.moving), (stores.moving, stores.after)):
        async with first.synchronize(session_id, "a"):
            with pytest.raises(LockTimeoutError):
                await asyncio.create_task(lock_the_variable(second, session_id))


async def lock_the_variable(store: SessionStore, session_id: str) -> None:
    async with store.synchronize(session_id, "a", timeout=0.01):
        pass


async def test_an_owner_has_the_sessions_of_both_backends(stores: Stores) -> None:
    async def log_in(store: SessionStore) -> str:
        async with store.open() as session:
            await login(session, "ada")
        return session.id

    session_ids = [await log_in(store) for store in (stores.before, stores.before, stores.moving)]
    async with stores.moving.open(session_ids[0]) as session:
        session["moved"] = True
    for store in stores[:3]:  # whose sweeps find nothing in the old one any more but what is left of it
        await store.backend.delete_expired(Expiry(), now=time.time() + 90)
    assert len(await stores.moving.sessions_of("ada")) == 3
    assert await stores.moving.destroy_all("ada", keep=session_ids[2]) == 2
    assert len(await stores.ready.sessions_of("ada")) == 1


async def test_what_nobody_opens_is_moved_in_the_end_without_a_use(stores: Stores) -> None:
    moving, now = stores.moving, time.time()
    session_ids = [await stores.before.create({"number": number}) for number in range(5)]
    found = [await moving.backend.read(key_of(session_id)) for session_id in session_ids]
    assert isinstance(moving.backend, MigratingBackend)
    assert [await moving.backend.move_all(), await moving.backend.move_all()] == [5, 0]
    assert [await stores.after.backend.read(key_of(session_id)) for session_id in session_ids] == found
    assert await stores.before.backend.delete_expired(Expiry(), now=now) == 0
    assert await keys_of(stores.before.backend) == []


async def test_what_was_moved_can_be_moved_back(pair: Pair) -> None:
    there, back = MigratingBackend(*pair), MigratingBackend(*reversed(pair))
    await put_record(pair[0])
    for version, backend in enumerate((there, back, there), OLD.version + 1):
        async with hold(backend, create=True) as held:
            await held.commit(b"changed", now=NOW + 9)
        assert await backend.read(KEY) == Record(b"changed", version, NOW, NOW + 9)
    await bury(there, Tombstone(b"", NOW))
    await there.delete_expired(Expiry(), now=NOW)
    assert await back.read(KEY) is None
    async with hold(back, create=True) as held:
        assert held.record is None
        await held.commit(b"begun anew", now=NOW)
    assert await pair[0].read(KEY) == Record(b"begun anew", 1, NOW, NOW)


@pytest.mark.parametrize("which", [0, 1])
async def test_no_id_is_handed_out_that_either_backend_knows(pair: Pair, which: int) -> None:
    await put_record(pair[which])
    for moves in (True, False):
        with pytest.raises(StoreError):
            await put_record(MigratingBackend(*pair, moves=moves))
    await bury(pair[which], Tombstone(b"", NOW))
    for moves in (True, False):
        with pytest.raises(StoreError):
            await put_record(MigratingBackend(*pair, moves=moves))


async def test_a_key_is_listed_once_also_while_it_is_moved(pair: Pair) -> None:
    backend = MigratingBackend(*pair)
    await put_record(pair[0])
    async with create(pair[1], key=OTHER_KEY):
        pass
    found = []
    async for key in backend.keys():
        found.append(key)
        await look(backend, [])
    assert sorted(found) == [KEY, OTHER_KEY]


async def test_a_ring_is_told_that_is_made_of_locks_in_both_backends(pair: Pair) -> None:
    backend, told = MigratingBackend(*pair), list[str]()
    await put_record(backend)
    has_the_name, has_the_key = asyncio.Event(), asyncio.Event()

    async def first() -> None:
        async with hold_name(backend, "a"):
            has_the_name.set()
            await has_the_key.wait()
            await look(backend, [])

    async def second() -> None:
        await has_the_name.wait()
        async with hold(backend):
            has_the_key.set()
            await until(lambda: backend.statistics().waiting == 1)
            try:
                await hold_name(backend, "a").__aenter__()
            except DeadlockError:
                told.append("second")

    await asyncio.gather(first(), second())
    assert told == ["second"]
    assert nothing_is_held(backend, *pair)


async def test_an_access_is_noted_wherever_the_session_is(pair: Pair) -> None:
    backend = MigratingBackend(*pair)
    await put_record(pair[0])
    for later in (6, 7):
        await backend.touch(KEY, now=NOW + later)
        assert await backend.read(KEY) == OLD._replace(accessed_at=NOW + later)
        await look(backend, [])


async def test_both_are_asked_for_members_and_statistics_and_swept(pair: Pair) -> None:
    backend, keys = MigratingBackend(*pair), [f"{number:064x}" for number in range(3)]
    for each, key, added_at in ((pair[0], keys[0], 1.0), (pair[0], keys[1], 2.0), (pair[1], keys[1], 3.0)):
        await each.add_member(GROUP, key, now=added_at)
    assert await backend.members(GROUP) == {keys[0]: 1.0, keys[1]: 3.0}
    await backend.remove_member(GROUP, keys[1])
    assert await backend.members(GROUP) == {keys[0]: 1.0}
    for each, key in zip(pair, keys, strict=False):
        async with create(each, key=key):
            pass
    async with hold_name(backend, "a"):  # in both, but it is one
        assert backend.statistics().holding == 1
    assert await backend.delete_expired(Expiry(1.0), now=NOW + 1) == 2


class Failing(MemoryBackend):
    """A backend that can be neither opened nor closed without an error."""

    async def open(self) -> None:
        raise StoreError("no server")

    async def aclose(self) -> None:
        await super().aclose()
        raise StoreError("no server")


async def test_an_error_of_the_one_does_not_leave_the_other_open() -> None:
    for failing_is_old in (True, False):
        fine, failing = MemoryBackend(), Failing()
        backend = MigratingBackend(failing, fine) if failing_is_old else MigratingBackend(fine, failing)
        with pytest.raises(StoreError, match="no server"):
            await backend.aclose()
        for each in (fine, failing):
            with pytest.raises(StoreError, match="was closed"):
                await each.read(KEY)
    await fine.open()
    with pytest.raises(StoreError, match="no server"):
        await backend.open()
    with pytest.raises(StoreError, match="was closed"):
        await fine.read(KEY)
