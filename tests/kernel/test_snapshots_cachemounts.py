"""Cache mounts: who shares, who waits, what is kept."""

from __future__ import annotations

import asyncio
import errno
from contextlib import AsyncExitStack

import pytest

from boxwright.linux import mount
from boxwright.snapshots import SnapshotInUseError, SnapshotManager, SnapshotNotFoundError
from boxwright.snapshots.cachemounts import CacheMounts
from boxwright.store import Store

pytestmark = pytest.mark.root


@pytest.fixture
def store(tmp_path):
    opened = Store.open(tmp_path / "root")
    yield opened
    assert mount.list_mounts(opened.root) == []
    opened.close()


def open_mounts(store: Store) -> CacheMounts:
    return CacheMounts(SnapshotManager.open(store))


def test_shared_users_have_one_folder_that_is_kept(store):
    async def scenario():
        caches = open_mounts(store)
        async with caches.acquired("k", "shared") as one, caches.acquired("k", "shared") as two:
            assert one == two
            (one / "f").write_text("1")
        async with caches.acquired("other", "shared") as root:
            assert not (root / "f").exists()
        async with caches.acquired("k", "locked") as root:
            assert (root / "f").read_text() == "1"

    asyncio.run(scenario())


def test_private_users_never_wait_and_never_meet(store):
    async def scenario():
        caches = open_mounts(store)
        async with caches.acquired("k", "private") as one:
            (one / "f").write_text("1")
            async with caches.acquired("k", "private") as two:
                assert one != two
                assert not (two / "f").exists()
        async with AsyncExitStack() as stack:
            roots = {
                await stack.enter_async_context(caches.acquired("k", "private")) for _ in range(2)
            }
        assert roots == {one, two}

    asyncio.run(scenario())


def test_locked_users_come_one_after_the_other(store):
    async def scenario():
        caches = open_mounts(store)
        order = []

        async def use(name: str, hold: asyncio.Event) -> None:
            async with caches.acquired("k", "locked") as root:
                assert list(root.glob("in-use")) == []
                (root / "in-use").write_text("")
                order.append(name)
                await hold.wait()
                (root / "in-use").unlink()

        first = asyncio.Event()
        passing = asyncio.Event()
        passing.set()
        tasks = [asyncio.ensure_future(use("a", first))]
        while not order:  # noqa: ASYNC110 - that it is inside is what it notes
            await asyncio.sleep(0.01)
        tasks += [asyncio.ensure_future(use(name, passing)) for name in "bc"]
        while len(caches._waiters) < 2:  # noqa: ASYNC110 - nobody is told of those who wait
            await asyncio.sleep(0)
        tasks[1].cancel()  # a waiter that gives up keeps nobody from entering
        await asyncio.sleep(0)
        first.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == ["a", "c"]

    asyncio.run(scenario())


def test_a_folder_over_a_parent_starts_from_it_and_keeps_its_own(store):
    async def scenario():
        caches = open_mounts(store)
        manager = caches._snapshots
        tree = manager.new(None, description="base")
        async with tree.mounted() as root:
            (root / "from-parent").write_text("1")
        parent = await tree.commit()
        async with caches.acquired("k", "shared", parent=parent) as root:
            assert (root / "from-parent").exists()
            (root / "own").write_text("1")
        async with (
            caches.acquired("k", "shared", parent=parent) as root,
            caches.acquired("k", "shared", parent=parent) as same,
        ):
            assert root == same
            assert (root / "own").exists()
        await parent.release()
        with pytest.raises(SnapshotInUseError):
            await manager.delete(parent.id)
        cache = next(r for r in manager.records() if r.record_type == "exec.cachemount")
        assert cache.parents == (parent.id,)
        await manager.delete(cache.id)
        await manager.delete(parent.id)

    asyncio.run(scenario())


def test_listing_and_deleting(store):
    async def scenario():
        caches = open_mounts(store)
        manager = caches._snapshots
        async with caches.acquired("k", "shared", description="apt") as root:
            (root / "f").write_bytes(bytes(8000))
            record = manager.records()[0]
            assert (record.description, record.in_use) == ("apt", True)
            with pytest.raises(SnapshotInUseError):
                await manager.delete(record.id)
        record = (await manager.usage())[0]
        assert record.size_bytes is not None
        assert record.size_bytes >= 8000
        assert (record.in_use, record.usage_count) == (False, 1)
        assert await manager.delete(record.id) >= 8000
        with pytest.raises(SnapshotNotFoundError):
            await caches.delete(record.id)
        assert manager.records() == []

    asyncio.run(scenario())


def test_only_synced_folders_survive_a_power_cut(tmp_path):
    async def first(store: Store) -> None:
        caches = open_mounts(store)
        for name in ("synced", "torn"):
            async with caches.acquired(name, "shared") as root:
                (root / name).write_text("1")
            if name == "synced":
                assert await caches._snapshots.sync() == 1

    async def second(store: Store) -> None:
        caches = open_mounts(store)
        assert len(caches.records()) == 1
        async with caches.acquired("synced", "shared") as root:
            assert (root / "synced").exists()
        async with caches.acquired("torn", "shared") as root:
            assert not (root / "torn").exists()

    store = Store.open(tmp_path)
    asyncio.run(first(store))
    store.db.execute("UPDATE cache_mounts SET boot = 'before' WHERE boot IS NOT NULL")
    store.close()
    store = Store.open(tmp_path)
    asyncio.run(second(store))
    store.close()


def test_what_is_forgotten_is_empty_for_the_next_and_kept_for_who_has_it(store):
    async def scenario():
        snapshots = SnapshotManager.open(store)
        base = snapshots.new(None, description="base")
        async with base.mounted() as root:
            (root / "given").write_text("1")
        parent = await base.commit()
        caches = CacheMounts(snapshots)

        async def names(key, parent=None):
            async with caches.acquired(key, "shared", parent=parent) as root:
                found = sorted(each.name for each in root.iterdir())
                (root / "f").write_text(key)
                return found

        for key in ("k", "kk"):
            await names(key)
            await names(key, parent)
        async with caches.acquired("k", "shared") as old:
            await caches.forget({"k": False})
            assert (old / "f").read_text() == "k"
            async with caches.acquired("k", "shared") as new:
                assert new != old
                assert list(new.iterdir()) == []
        assert not old.exists()
        assert await names("k", parent) == ["f", "given"]
        await caches.forget({"k": True})
        assert await names("k", parent) == ["given"]
        assert await names("kk") == ["f"]
        assert await names("kk", parent) == ["f", "given"]
        await parent.release()

    asyncio.run(scenario())


def test_who_waits_is_woken_even_if_what_was_forgotten_can_not_be_removed(store, monkeypatch):
    async def fail(mount_id: str) -> int:
        raise OSError(errno.EIO, f"{mount_id} can't be removed")

    async def use(caches: CacheMounts, let_go: asyncio.Event) -> None:
        async with caches.acquired("k", "locked"):
            await let_go.wait()

    async def scenario():
        caches, let_go = open_mounts(store), asyncio.Event()
        monkeypatch.setattr(caches, "delete", fail)
        users = [asyncio.create_task(use(caches, let_go)) for _ in range(2)]
        await asyncio.sleep(0)
        # As forget() does, but it wakes who waits at once.
        store.db.execute("UPDATE cache_mounts SET key = char(0) || id")
        let_go.set()
        with pytest.raises(OSError, match="can't be removed"):
            await users[0]
        await asyncio.wait_for(users[1], 120)

    asyncio.run(scenario())
