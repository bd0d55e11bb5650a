"""Snapshots deleted in batches: what somebody needs stays, what goes is gone everywhere."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from boxwright.engine.usage import PrunePolicy, Usage
from boxwright.snapshots import ImmutableRef, SnapshotManager
from boxwright.snapshots.cachemounts import CacheMounts
from boxwright.snapshots.deletion import delete_many
from boxwright.snapshots.usage import SnapshotRecord
from boxwright.store import Store, trace
from boxwright.store.database import Database


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(tmp_path / "root")
    yield opened
    trace.callbacks.clear()
    opened.close(drain_trash=True)


@pytest.fixture
def manager(store: Store) -> SnapshotManager:
    """Without mounts: these run as any user."""
    return SnapshotManager.open(store, backend="native")


async def commit(
    manager: SnapshotManager, parent: ImmutableRef | None = None, *, name: str = "file"
) -> ImmutableRef:
    tree = manager.new(parent, description=name)
    async with tree.mounted() as root:
        (root / name).write_bytes(b"x" * 4096)
    return await tree.commit()


async def free(manager: SnapshotManager, parent: ImmutableRef | None = None) -> str:
    """Commit a tree that nobody holds."""
    ref = await commit(manager, parent)
    await ref.release()
    return ref.id


def left(manager: SnapshotManager) -> set[str]:
    """Return the ids that are still known, and make sure that the folders agree."""
    ids = {record.id for record in manager.records()}
    folders = {path.name for path in (manager.store.root / "snapshots").iterdir()}
    assert folders == ids
    return ids


async def prune(
    manager: SnapshotManager,
    policy: PrunePolicy,
    on_removed: Callable[[object], None] = lambda _: None,
) -> list[SnapshotRecord]:
    usage = Usage(
        manager.store,
        manager,
        manager.clock,
        is_idle=lambda: True,
        on_removed=on_removed,
    )
    return [record async for record in usage.prune(policy)]


ALL = PrunePolicy(all=True)


def test_what_nobody_needs_goes_with_its_size(manager: SnapshotManager) -> None:
    async def scenario() -> None:
        ids = [await free(manager) for _ in range(3)]
        counted = {record.id: record.size_bytes for record in await manager.usage()}
        assert await delete_many(manager, [*ids, "unknown"]) == counted
        assert min(counted.values()) >= 4096
        assert left(manager) == set()
        assert [manager.get(each) for each in ids] == [None] * 3

    asyncio.run(scenario())


def test_sizes_are_counted_where_nobody_asked_before(manager: SnapshotManager) -> None:
    async def scenario() -> None:
        one = await free(manager)
        assert [record.size_bytes for record in manager.records()] == [None]
        assert (await delete_many(manager, [one]))[one] >= 4096

    asyncio.run(scenario())


def test_what_a_build_holds_stays(manager: SnapshotManager) -> None:
    async def scenario() -> None:
        held, other = await commit(manager), await free(manager)
        assert set(await delete_many(manager, [held.id, other])) == {other}
        assert left(manager) == {held.id}
        await held.release()
        assert set(await delete_many(manager, [held.id])) == {held.id}

    asyncio.run(scenario())


def test_what_a_build_takes_while_sizes_are_counted_stays(
    manager: SnapshotManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        taken, other = await free(manager), await free(manager)
        refs = []
        counting = asyncio.ensure_future(delete_many(manager, [taken, other]))
        await asyncio.sleep(0)  # it is in the worker now
        refs.append(manager.get(taken))
        assert set(await counting) == {other}
        assert left(manager) == {taken}

    asyncio.run(scenario())


def test_what_a_lease_holds_stays(manager: SnapshotManager) -> None:
    async def scenario() -> None:
        leased, other = await free(manager), await free(manager)
        with manager.store.leases.create() as lease:
            lease.add_snapshot(leased)
            assert set(await delete_many(manager, [leased, other])) == {other}
        assert set(await delete_many(manager, [leased])) == {leased}

    asyncio.run(scenario())


def test_what_others_are_built_on_stays(manager: SnapshotManager) -> None:
    async def scenario() -> None:
        base = await commit(manager)
        top = await free(manager, base)
        await base.release()
        assert await delete_many(manager, [base.id]) == {}
        assert left(manager) == {base.id, top}

    asyncio.run(scenario())


def test_what_a_cache_mount_is_built_on_stays(manager: SnapshotManager) -> None:
    async def scenario() -> None:
        caches = CacheMounts(manager)
        base = await commit(manager)
        async with caches.acquired("k", "shared", parent=base):
            pass
        await base.release()
        assert await delete_many(manager, [base.id]) == {}
        (mount,) = [r.id for r in manager.records() if r.record_type == "exec.cachemount"]
        await manager.delete(mount)
        assert set(await delete_many(manager, [base.id])) == {base.id}

    asyncio.run(scenario())


@pytest.mark.parametrize("point", ["snapshot-row-deleted", "snapshot-trashed"])
def test_ended_in_the_middle(store: Store, tmp_path: Path, point: str) -> None:
    """All rows of a batch go together; what is left of the folders goes at the next open."""

    class EndedError(Exception):
        pass

    def end() -> None:
        raise EndedError

    async def scenario() -> None:
        manager = SnapshotManager.open(store, backend="native")
        base = await commit(manager)
        gone = [await free(manager, base) for _ in range(3)]
        trace.callbacks[point] = end
        with pytest.raises(EndedError):
            await delete_many(manager, gone)
        trace.callbacks.clear()
        again = SnapshotManager.open(store, backend="native")
        assert left(again) == {base.id}
        assert await again.size_bytes(base.id) >= 4096

    asyncio.run(scenario())


def test_prune_takes_whole_chains_and_tells_the_cache(manager: SnapshotManager) -> None:
    async def scenario() -> None:
        chain: list[str] = []
        parent: ImmutableRef | None = None
        for _ in range(5):
            ref = await commit(manager, parent)
            if parent is not None:
                await parent.release()
            chain.append(ref.id)
            parent = ref
        assert parent is not None
        held_chain = [await free(manager), *[(await commit(manager)).id]]
        told: list[str] = []
        assert {r.id for r in await prune(manager, ALL, told.extend)} == {held_chain[0]}
        await parent.release()
        removed = await prune(manager, ALL, told.extend)
        # from the top down: at no time is something left without what it is built on
        assert [record.id for record in removed] == chain[::-1]
        assert set(told) == {held_chain[0], *chain}
        assert left(manager) == {held_chain[1]}

    asyncio.run(scenario())


def test_prune_takes_cache_mounts_and_what_they_are_built_on(manager: SnapshotManager) -> None:
    async def scenario() -> None:
        caches = CacheMounts(manager)
        base = await commit(manager)
        for key in ("free", "used"):
            async with caches.acquired(key, "shared", parent=base) as root:
                (root / "f").write_bytes(b"1" * 5000)
        await base.release()
        async with caches.acquired("used", "shared"):
            removed = await prune(manager, ALL)
            assert [r.record_type for r in removed] == ["exec.cachemount"] * 2 + ["regular"]
            assert {r.record_type for r in manager.records()} == {"exec.cachemount"}
        assert len(await prune(manager, ALL)) == 1
        assert manager.records() == []

    asyncio.run(scenario())


def test_more_records_than_one_batch(
    manager: SnapshotManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("boxwright.engine.usage._BATCH", 4)

    async def scenario() -> None:
        base = await commit(manager)
        ids = {await free(manager, base) for _ in range(11)}
        await base.release()
        told: list[int] = []
        removed = await prune(manager, ALL, lambda each: told.append(len(list(each))))
        assert {r.id for r in removed} == {*ids, base.id}
        assert removed[-1].id == base.id
        assert told == [4, 4, 3, 1]

    asyncio.run(scenario())


def test_what_is_asked_for_each_is_found_by_index(
    manager: SnapshotManager,
    looking_at_all: Callable[[Database], AbstractContextManager[list[str]]],
) -> None:
    CacheMounts(manager)

    async def main() -> None:
        ids = [await free(manager) for _ in range(3)]
        await manager.count_sizes()
        with looking_at_all(manager.store.db) as whole:
            assert list(await delete_many(manager, ids[:2])) == ids[:2]
            await manager.delete(ids[2])
            manager.table.unsynced()
            manager.table.uncounted()
        assert whole == []
        assert left(manager) == set()

    asyncio.run(main())


def test_sizes_of_many_are_noted_little_by_little(
    manager: SnapshotManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("boxwright.snapshots.manager._NOTED_AT_ONCE", 1)
    seen: list[int] = []

    async def main() -> None:
        ids = [await free(manager) for _ in range(4)]
        counting = asyncio.ensure_future(manager.count_sizes())
        while (uncounted := len(manager.table.uncounted())) > 2:
            seen.append(uncounted)
            await asyncio.sleep(0)
        manager.table.delete(ids[3])  # counted, not noted yet
        manager.forget(ids[3])
        await counting
        assert seen[0] == 4
        assert seen[-1] == 3  # others had their turn between two notes
        assert {record.id: record.size_bytes for record in manager.records()}.keys() == {*ids[:3]}
        assert all(record.size_bytes for record in manager.records())

    asyncio.run(main())
