"""One suite, every backend: the same steps give the same trees and the same layers."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
from pathlib import Path

import pytest

from boxwright.linux import mount
from boxwright.snapshots import ImmutableRef, MountError, SnapshotManager, changes
from boxwright.snapshots.cachemounts import CacheMounts
from boxwright.store import Store

pytestmark = pytest.mark.root


def has_fuse() -> bool:
    return shutil.which("fuse-overlayfs") is not None and os.access("/dev/fuse", os.R_OK)


@pytest.fixture(
    params=[
        "overlay",
        "overlay userxattr",
        "native",
        pytest.param(
            "fuse", marks=pytest.mark.skipif(not has_fuse(), reason="needs fuse-overlayfs")
        ),
    ]
)
def options(request):
    name, _, attributes = request.param.partition(" ")
    return {"backend": name, "userxattr": bool(attributes)}


@pytest.fixture
def store(tmp_path):
    opened = Store.open(tmp_path / "root")
    yield opened
    assert mount.list_mounts(opened.root) == []
    assert list(opened.mounts.iterdir()) == []
    opened.close(drain_trash=True)


def first_step(root: Path) -> None:
    (root / "keep").write_text("1")
    (root / "change").write_text("1")
    (root / "gone").write_text("1")
    (root / "dir" / "sub").mkdir(parents=True)
    (root / "dir" / "x").write_text("1")
    (root / "hidden").mkdir()
    (root / "hidden" / "old").write_text("1")
    os.link(root / "keep", root / "linked")
    os.symlink("keep", root / "link")
    (root / "dir").chmod(0o1750)
    os.chown(root / "dir", 3, 4)


def second_step(root: Path) -> None:
    (root / "change").write_text("22")
    (root / "gone").unlink()
    shutil.rmtree(root / "hidden")
    (root / "hidden").mkdir()
    (root / "hidden" / "new").write_text("2")
    (root / "dir" / "y").write_text("2")


async def step(manager: SnapshotManager, parent: ImmutableRef | None, write) -> ImmutableRef:
    tree = manager.new(parent, description="step")
    async with tree.mounted() as root:
        write(root)
    return await tree.commit()


def test_steps_layers_and_merges(store, options):
    async def scenario():
        manager = SnapshotManager.open(store, **options)
        base = await step(manager, None, first_step)
        top = await step(manager, base, second_step)
        async with top.mounted() as root:
            names = {str(path.relative_to(root)) for path in root.rglob("*")}
            assert names == {
                "change",
                "dir",
                "dir/sub",
                "dir/x",
                "dir/y",
                "hidden",
                "hidden/new",
                "keep",
                "link",
                "linked",
            }
            assert (root / "change").read_text() == "22"
            info = (root / "dir").stat()
            assert (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)) == (3, 4, 0o1750)
        async with top.layer_tree(top.id) as tree:
            assert [(change.path, change.kind) for change in changes(tree)] == [
                (b"change", "modify"),
                (b"dir/y", "add"),
                (b"gone", "delete"),
                (b"hidden/new", "add"),
                (b"hidden/old", "delete"),
            ]
        merged = manager.merge([base, await step(manager, None, second_other)])
        async with merged.mounted() as root:
            assert (root / "dir" / "other").exists()
            assert (root / "dir" / "x").exists()

    def second_other(root: Path) -> None:
        (root / "dir").mkdir()
        (root / "dir" / "other").write_text("")

    asyncio.run(scenario())


def test_a_tree_mounted_twice_keeps_both_changes(store, options):
    async def scenario():
        manager = SnapshotManager.open(store, **options)
        base = await step(manager, None, first_step)
        tree = manager.new(base, description="two")
        for name in ("one", "two"):
            async with tree.mounted() as root:
                (root / name).write_text(name)
        sealed = await tree.commit()
        async with sealed.mounted() as root:
            assert (root / "one").exists()
            assert (root / "two").exists()

    asyncio.run(scenario())


def test_cache_mounts_over_a_parent(store, options):
    async def scenario():
        manager = SnapshotManager.open(store, **options)
        caches = CacheMounts(manager)
        base = await step(manager, None, first_step)
        async with caches.acquired("k", "shared", parent=base) as root:
            (root / "gone").unlink()
        async with caches.acquired("k", "shared", parent=base) as root:
            assert not (root / "gone").exists()
            assert (root / "keep").exists()

    asyncio.run(scenario())


def test_copies_left_by_a_crash_are_removed(tmp_path):
    Store.open(tmp_path).close()
    (tmp_path / "run" / "mnt" / "7" / "left").mkdir(parents=True)
    store = Store.open(tmp_path)
    assert list(store.mounts.iterdir()) == []
    store.close(drain_trash=True)


def test_a_backend_that_does_not_work_here_says_so(store, monkeypatch):
    with pytest.raises(MountError):
        SnapshotManager.open(store, backend="btrfs")  # type: ignore[arg-type]
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(MountError) as caught:
        SnapshotManager.open(store, backend="fuse")
    assert "install" in caught.value.hint
