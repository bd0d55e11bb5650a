"""Snapshots over real overlay mounts."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from snapshot_trees import GZIP, commit, contents, image_layer, layer_archive, layer_changes, put

from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.linux import mount
from boxwright.session.base import SessionLostError
from boxwright.snapshots import (
    LayerBlob,
    LayerMismatchError,
    LayerMissingError,
    SnapshotInUseError,
    SnapshotManager,
    SnapshotNotFoundError,
)
from boxwright.store import Store

pytestmark = pytest.mark.root


@pytest.fixture
def store(tmp_path):
    opened = Store.open(tmp_path / "root")
    yield opened
    assert mount.list_mounts(opened.root) == [], "mounts were left"
    opened.close(drain_trash=True)


# -- steps -----------------------------------------------------------------------------


def test_a_chain_of_steps(store):
    async def scenario():
        manager = SnapshotManager.open(store)
        base = await commit(manager, None, put(a="1", b="1", dir__x="1"))
        middle = await commit(manager, base, put(a="2", b=None))
        top = await commit(manager, middle, put(dir__y="3"))
        assert await contents(base) == {"a": "1", "b": "1", "dir/x": "1"}
        assert await contents(middle) == {"a": "2", "dir/x": "1"}
        assert await contents(top) == {"a": "2", "dir/x": "1", "dir/y": "3"}
        assert await layer_changes(top) == [
            [("a", "add"), ("b", "add"), ("dir", "add"), ("dir/x", "add")],
            [("a", "modify"), ("b", "delete")],
            [("dir/y", "add")],
        ]
        assert top.parent is not None
        assert top.parent.id == middle.id

    asyncio.run(scenario())


def test_a_released_tree_leaves_nothing(store):
    async def scenario():
        manager = SnapshotManager.open(store)
        async with manager.new(None, description="x") as tree:
            async with tree.mounted() as root:
                (root / "f").write_text("")
            await tree.release()
            with pytest.raises(RuntimeError, match="released"):
                await tree.mounted().__aenter__()
        assert manager.records() == []
        assert list((store.root / "snapshots").iterdir()) == []

    asyncio.run(scenario())


def test_a_mounted_tree_can_not_be_sealed(store):
    async def scenario():
        manager = SnapshotManager.open(store)
        base = await commit(manager, None, put(a="1"))
        tree = manager.new(base, description="x")
        async with tree.mounted(), tree.mounted():
            with pytest.raises(RuntimeError, match="still mounted"):
                await tree.commit()
        sealed = await tree.commit()
        with pytest.raises(RuntimeError):
            await tree.commit()
        assert await contents(sealed) == {"a": "1"}

    asyncio.run(scenario())


def test_a_view_is_shared_read_only_and_gone_afterwards(store):
    async def scenario():
        manager = SnapshotManager.open(store)
        base = await commit(manager, None, put(a="1"))
        top = await commit(manager, base, put(b="2"))
        async with top.mounted() as first, top.mounted() as second:
            assert first == second
            with pytest.raises(OSError, match="Read-only"):
                (first / "c").write_text("")
            assert len(mount.list_mounts(store.root)) == 1
        assert mount.list_mounts(store.root) == []
        with pytest.raises(ValueError, match="never mounted"):
            top.mounted(read_only=False)

    asyncio.run(scenario())


def test_a_step_may_be_mounted_again_and_again(store):
    async def scenario():
        manager = SnapshotManager.open(store)
        base = await commit(manager, None, put(a="1"))
        tree = manager.new(base, description="x")
        for number in range(3):
            async with tree.mounted() as root:
                (root / f"n{number}").write_text("")
        sealed = await tree.commit()
        assert sorted(await contents(sealed)) == ["a", "n0", "n1", "n2"]

    asyncio.run(scenario())


def test_a_root_keeps_its_owner_and_mode_through_layers(store):
    async def scenario():
        manager = SnapshotManager.open(store)

        def own(root: Path) -> None:
            os.chown(root, 12, 34)
            root.chmod(0o1750)

        base = await commit(manager, None, own)
        top = await commit(manager, base, put(a="1"))
        async with top.mounted() as root:
            info = root.stat()
        assert (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)) == (12, 34, 0o1750)

    asyncio.run(scenario())


def test_127_layers(store):
    async def scenario():
        manager = SnapshotManager.open(store)
        ref = await commit(manager, None, put(f0=""))
        for number in range(1, 127):
            following = await commit(manager, ref, put(**{f"f{number}": ""}))
            await ref.release()
            ref = following
        assert len(await contents(ref)) == 127
        assert len(await ref.layers()) == 127

    asyncio.run(scenario())


def test_cancelling_at_any_point_leaves_no_mount(store):
    async def scenario():
        manager = SnapshotManager.open(store)
        base = await commit(manager, None, put(a="1"))
        top = await commit(manager, base, put(b="2"))

        async def use():
            tree = manager.new(top, description="x")
            try:
                async with tree.mounted(), top.mounted():
                    await asyncio.sleep(0)
                await (await tree.commit()).release()
            finally:
                await tree.release()

        for steps in range(40):
            task = asyncio.ensure_future(use())
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert mount.list_mounts(store.root) == []

    asyncio.run(scenario())


# -- images ----------------------------------------------------------------------------


def test_image_layers_are_fetched_and_unpacked_at_first_use_once(store):
    async def scenario():
        manager = SnapshotManager.open(store)
        fetched: list[str] = []
        layers = [
            image_layer(store, {"a": b"1", "dir/x": b"1", "dir/y": b"1"}, fetched),
            image_layer(store, {"dir/.wh.x": b"", "b": b"2"}, fetched),
        ]
        image = manager.from_blobs(layers, description="pulled from x")
        again = manager.from_blobs(layers)
        assert image.id == again.id
        assert fetched == []
        assert (
            await asyncio.gather(*(contents(ref) for ref in (image, again, image)))
            == [{"a": "1", "b": "2", "dir/y": "1"}] * 3
        )
        assert sorted(fetched) == sorted(str(layer.descriptor.digest) for layer in layers)
        assert [layer.blob for layer in await image.layers()] == [
            layer.descriptor for layer in layers
        ]
        shorter = manager.from_blobs(layers[:1])
        assert image.parent is not None
        assert shorter.id == image.parent.id
        assert shorter.chain_id == layers[0].diff_id

    asyncio.run(scenario())


def test_a_layer_that_can_not_be_had_is_missing(store):
    async def scenario():
        manager = SnapshotManager.open(store)
        layer = image_layer(store, {"a": b"1"}, [])
        orphan = LayerBlob(layer.descriptor, layer.diff_id)
        ref = manager.from_blobs([orphan])
        with pytest.raises(LayerMissingError) as caught:
            await contents(ref)
        assert caught.value.digest == layer.descriptor.digest
        manager.from_blobs([layer])
        assert await contents(ref) == {"a": "1"}

    asyncio.run(scenario())


def test_an_image_that_can_not_be_fetched_any_more_is_gone_until_it_is_resolved_again(tmp_path):
    async def first(store: Store) -> tuple[str, str]:
        manager = SnapshotManager.open(store)
        image = manager.from_blobs([image_layer(store, {"a": b"1"}, [])])
        merged = manager.merge([image, image])
        assert manager.exists(image.id)
        assert manager.exists(merged.id)
        return image.id, merged.id

    async def second(store: Store, image_id: str, merged_id: str) -> None:
        manager = SnapshotManager.open(store)
        assert manager.get(image_id) is None
        assert not manager.exists(merged_id)
        assert not manager.exists("never")
        assert manager.from_blobs([image_layer(store, {"a": b"1"}, [])]).id == image_id
        assert manager.exists(merged_id)

    store = Store.open(tmp_path)
    ids = asyncio.run(first(store))
    store.close()
    store = Store.open(tmp_path)
    asyncio.run(second(store, *ids))
    store.close()


def test_a_layer_that_is_not_what_the_image_says_is_refused(store):
    async def scenario():
        manager = SnapshotManager.open(store)
        layer = image_layer(store, {"a": b"1"}, [])
        wrong = LayerBlob(layer.descriptor, Digest.of(b"else"), layer.fetch)
        ref = manager.from_blobs([wrong])
        with pytest.raises(LayerMismatchError) as caught:
            await contents(ref)
        assert caught.value.got == layer.diff_id
        assert not (store.root / "snapshots" / ref.id / "fs").exists()

    asyncio.run(scenario())


def test_the_same_layer_in_another_compression_is_the_same_snapshot(store):
    async def scenario():
        manager = SnapshotManager.open(store)
        raw = layer_archive({"a": b"1"})
        plain = Descriptor(GZIP.removesuffix("+gzip"), Digest.of(raw), len(raw))
        first = image_layer(store, {"a": b"1"}, [])
        ref = manager.from_blobs([LayerBlob(first.descriptor, first.diff_id)])
        store.blobs.put(raw)
        assert manager.from_blobs([LayerBlob(plain, Digest.of(raw))]).id == ref.id
        assert await contents(ref) == {"a": "1"}

    asyncio.run(scenario())


def test_when_he_who_unpacks_is_cancelled_the_next_one_goes_on(store):
    async def scenario():
        manager = SnapshotManager.open(store)
        entered, proceed = asyncio.Event(), asyncio.Event()
        layer = image_layer(store, {"a": b"1"}, [])

        async def fetch():
            entered.set()
            await proceed.wait()
            await layer.fetch()

        ref = manager.from_blobs([LayerBlob(layer.descriptor, layer.diff_id, fetch)])
        first = asyncio.ensure_future(contents(ref))
        await entered.wait()
        second = asyncio.ensure_future(contents(ref))
        await asyncio.sleep(0)
        first.cancel()
        proceed.set()
        assert await second == {"a": "1"}
        assert (await asyncio.gather(first, return_exceptions=True))[0].__class__ is (
            asyncio.CancelledError
        )

    asyncio.run(scenario())


# -- life cycle ------------------------------------------------------------------------


def test_only_what_nothing_needs_is_deleted(store):
    async def scenario():
        manager = SnapshotManager.open(store)
        base = await commit(manager, None, put(a="1" * 10000))
        top = await commit(manager, base, put(b="1"))
        held = manager.get(top.id)
        assert held is not None
        for ref in (base, top):
            await ref.release()
        with pytest.raises(SnapshotInUseError):
            await manager.delete(base.id)
        with pytest.raises(SnapshotInUseError):
            await manager.delete(top.id)
        await held.release()
        await held.release()
        with store.leases.create() as lease:
            lease.add_snapshot(top.id)
            assert [record.leased for record in manager.records()] == [False, True]
            with pytest.raises(SnapshotInUseError):
                await manager.delete(top.id)
        assert await manager.delete(top.id) > 0
        assert await manager.delete(base.id) >= 10000
        assert manager.get(base.id) is None
        with pytest.raises(SnapshotNotFoundError):
            await manager.delete(base.id)

    asyncio.run(scenario())
    assert list((store.root / "snapshots").iterdir()) == []


def test_records_say_what_there_is(store):
    async def scenario():
        manager = SnapshotManager.open(store)
        base = await commit(manager, None, put(a="1" * 5000))
        tree = manager.new(base, description="running", record_type="internal")
        await base.release()
        records = await manager.usage()
        assert [(r.description, r.mutable, r.in_use) for r in records] == [
            ("step", False, True),
            ("running", True, True),
        ]
        assert records[0].size_bytes is not None
        assert records[0].size_bytes >= 5000
        assert records[1].parents == (base.id,)
        await tree.release()
        assert [r.in_use for r in manager.records()] == [False]

    asyncio.run(scenario())


def test_a_tree_that_is_finished_while_records_are_listed_is_there_once(store):
    async def scenario():
        manager = SnapshotManager.open(store)
        tree = manager.new(None, description="step")
        read, go_on = manager.table.listed, threading.Event()

        def late(**known):
            assert go_on.wait(60)
            return read(**known)

        manager.table.listed = late
        listing = asyncio.ensure_future(manager.list_records())
        await asyncio.sleep(0)  # what belongs to the event loop has been looked at
        done = await tree.commit()
        go_on.set()
        assert [record.id for record in await listing] == [done.id]

    asyncio.run(scenario())


def test_blobs_of_layers_are_kept_and_missing_ones_not_believed(store):
    async def scenario():
        manager = SnapshotManager.open(store)
        ref = await commit(manager, None, put(a="1"))
        digest = store.blobs.put(b"blob")
        await ref.set_blob(Descriptor(GZIP, digest, 4), Digest.of(b"diff"), variant="gzip")
        assert store.gc(grace_ns=0).blobs == 0
        assert (await ref.get_blob("gzip")) == Descriptor(GZIP, digest, 4)
        layer = (await ref.layers())[0]
        assert (layer.diff_id, layer.blob) == (Digest.of(b"diff"), Descriptor(GZIP, digest, 4))
        store.blobs.delete(digest)
        assert await ref.get_blob("gzip") is None
        assert (await ref.layers())[0].blob is None

    asyncio.run(scenario())


CRASH = """
import asyncio, sys
from pathlib import Path
from boxwright.snapshots import SnapshotManager
from boxwright.store import Store

async def main():
    store = Store.open(Path(sys.argv[1]))
    manager = SnapshotManager.open(store)
    base = manager.new(None, description="base")
    async with base.mounted() as root:
        (root / "a").write_text("1")
    base = await base.commit()
    top = manager.new(base, description="top")
    async with top.mounted() as root:
        (root / "b").write_text("1")
        if sys.argv[2] == "mounted":
            import os, signal
            os.kill(os.getpid(), signal.SIGKILL)
    top = await top.commit()
    await top.release()
    await manager.delete(top.id)

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("point", "left"),
    [
        ("mounted", ["base"]),
        ("snapshot-unmounted:1", []),
        ("snapshot-recorded:1", ["base"]),
        ("snapshot-unmounted:2", ["base"]),
        ("snapshot-recorded:2", ["base", "top"]),
        ("snapshot-row-deleted", ["base"]),
        ("snapshot-trashed", ["base"]),
    ],
)
def test_a_crash_leaves_whole_snapshots_and_no_mounts(tmp_path, point, left):
    environment = {**os.environ, "BOXWRIGHT_TEST_CRASH": "1", "BOXWRIGHT_CRASH_POINT": point}
    argv = [sys.executable, "-c", CRASH, str(tmp_path), point]
    done = subprocess.run(argv, env=environment, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    store = Store.open(tmp_path)
    manager = SnapshotManager.open(store)
    assert mount.list_mounts(tmp_path) == []
    records = manager.records()
    assert [record.description for record in records] == left
    assert {path.name for path in (tmp_path / "snapshots").iterdir()} == {r.id for r in records}
    for record in records:
        ref = manager.get(record.id)
        assert ref is not None
        assert (asyncio.run(contents(ref)))["a"] == "1"
    store.close(drain_trash=True)
    assert list((tmp_path / "trash").iterdir()) == []


def test_after_a_power_cut_unsynced_steps_are_gone_and_image_layers_unpacked_again(tmp_path):
    async def first(store: Store) -> None:
        manager = SnapshotManager.open(store)
        image = manager.from_blobs([image_layer(store, {"a": b"1"}, [])], description="image")
        synced = await commit(manager, image, put(b="1"))
        assert await manager.sync() == 2
        lost = await commit(manager, synced, put(c="1"))
        await commit(manager, lost, put(d="1"))
        other = manager.from_blobs([image_layer(store, {"x": b"1"}, [])], description="other")
        assert await contents(other) == {"x": "1"}
        assert manager.store.root == store.root

    async def second(store: Store) -> None:
        manager = SnapshotManager.open(store)
        assert [record.description for record in manager.records()] == ["image", "step", "other"]
        other = manager.get(manager.records()[2].id)
        assert other is not None
        assert not (store.root / "snapshots" / other.id / "fs").exists()
        assert await contents(other) == {"x": "1"}
        kept = manager.get(manager.records()[1].id)
        assert kept is not None
        assert await contents(kept) == {"a": "1", "b": "1"}

    store = Store.open(tmp_path)
    asyncio.run(first(store))
    store.db.execute("UPDATE snapshots SET boot = 'before' WHERE boot IS NOT NULL")
    store.close()
    store = Store.open(tmp_path)
    asyncio.run(second(store))
    store.close()


def test_a_snapshot_whose_folder_was_removed_by_hand_is_forgotten(tmp_path):
    async def first(store: Store) -> list[str]:
        manager = SnapshotManager.open(store)
        image = manager.from_blobs([image_layer(store, {"a": b"1"}, [])])
        lost = await commit(manager, image, put(b="1"))
        above = await commit(manager, lost, put(c="1"))
        beside = await commit(manager, image, put(d="1"))
        return [ref.id for ref in (image, lost, above, beside)]

    async def second(store: Store, ids: list[str]) -> None:
        manager = SnapshotManager.open(store)
        image, lost, above, beside = (manager.get(ref_id) for ref_id in ids)
        assert (lost, above) == (None, None)
        assert image is not None
        assert beside is not None
        assert await contents(beside) == {"a": "1", "d": "1"}

    store = Store.open(tmp_path)
    ids = asyncio.run(first(store))
    store.close()
    for snapshot_id in ids[:2]:
        subprocess.run(["rm", "-r", str(tmp_path / "snapshots" / snapshot_id)], check=True)
    store = Store.open(tmp_path)
    asyncio.run(second(store, ids))
    store.close()


def test_a_layer_is_fetched_from_whoever_offers_it_last_and_can(store):
    async def scenario():
        manager = SnapshotManager.open(store)
        fetched: list[str] = []
        layer = image_layer(store, {"a": b"1"}, fetched)

        async def gone() -> None:
            fetched.append("gone")
            raise SessionLostError("no active session")

        lost = LayerBlob(layer.descriptor, layer.diff_id, gone)
        manager.offer([lost])  # of an image that nobody has made: nothing to offer it for
        ref = manager.from_blobs([lost])
        with pytest.raises(SessionLostError):
            await contents(ref)
        assert not manager.exists(ref.id)
        manager.offer([layer])
        manager.offer([lost])
        assert manager.exists(ref.id)
        assert await contents(ref) == {"a": "1"}
        assert fetched == ["gone", "gone", str(layer.descriptor.digest)]

    asyncio.run(scenario())
