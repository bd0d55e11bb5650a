"""Content digests of real files: golden ones, and kept with the snapshot."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from boxwright.linux import mount
from boxwright.snapshots import SnapshotManager
from boxwright.snapshots.content_tree import FILE, ContentTree
from boxwright.snapshots.contenthash import ChecksumError, checksum, content_hashes
from boxwright.snapshots.hasher import Hasher
from boxwright.snapshots.selection import Selection, selection_digest
from boxwright.store import Store

pytestmark = pytest.mark.root
GOLDEN = json.loads(
    (Path(__file__).parents[1] / "golden" / "contenthash" / "trees.json").read_text()
)
DEVICES = {"char": 0o020000, "block": 0o060000}


def make_golden(root: Path) -> None:
    root.chmod(0o755)
    for entry in GOLDEN["tree"]:
        path, kind = os.path.join(root, entry["path"]), entry["type"]
        if kind == "file":
            Path(path).write_bytes(entry["content"].encode() * entry.get("repeat", 1))
        elif kind == "dir":
            os.mkdir(path)
        elif kind == "symlink":
            os.symlink(entry["link"], path)
        elif kind == "hardlink":
            os.link(os.path.join(root, entry["link"]), path)
            continue
        elif kind == "fifo":
            os.mkfifo(path)
        else:
            os.mknod(path, 0o600 | DEVICES[kind], os.makedev(*entry["device"]))
        os.chown(path, entry["uid"], entry["gid"], follow_symlinks=False)
        if kind != "symlink":
            os.chmod(path, entry["mode"])
        for name, value in entry.get("xattrs", {}).items():
            os.setxattr(path, name, bytes.fromhex(value))


def test_every_golden_digest_from_files(tmp_path):
    make_golden(tmp_path)
    shared = ContentTree()
    wrong = []
    for case in GOLDEN["cases"]:
        selection = Selection(
            case.get("follow", False),
            case.get("wildcard", False),
            *(tuple(case.get(name, ())) for name in ("include", "exclude", "required")),
        )
        for tree in (ContentTree(), shared):
            try:
                hasher = Hasher("ref", tree, tmp_path)
                got = selection_digest(hasher, os.fsencode(case["path"]), selection).hex()
            except Exception:
                got = None
            if got != case["digest"]:
                wrong.append(case)
    assert wrong == []


def test_digests_survive_a_restart_and_need_no_mount(tmp_path):
    async def first(store: Store) -> tuple[str, str]:
        manager = SnapshotManager.open(store)
        tree = manager.new(None, description="base")
        async with tree.mounted() as root:
            (root / "dir").mkdir()
            (root / "dir" / "a").write_text("a")
        base = await tree.commit()
        tree = manager.new(base, description="top")
        async with tree.mounted() as root:
            (root / "dir" / "b").write_text("b")
        top = await tree.commit()
        return top.id, await checksum(top, "/dir")

    async def second(store: Store, ref_id: str) -> str:
        manager = SnapshotManager.open(store)
        ref = manager.get(ref_id)
        assert ref is not None
        mounts = len(mount.list_mounts(store.root))
        digest = await checksum(ref, "dir")
        assert len(mount.list_mounts(store.root)) == mounts
        with pytest.raises(ChecksumError):
            await checksum(ref, "/none")
        return digest

    store = Store.open(tmp_path / "root")
    ref_id, wanted = asyncio.run(first(store))
    store.close()
    store = Store.open(tmp_path / "root")
    assert asyncio.run(second(store, ref_id)) == wanted
    store.close()


def test_a_seeded_tree_is_believed_and_forgotten_with_its_snapshot(tmp_path):
    async def scenario(store: Store) -> None:
        manager = SnapshotManager.open(store)
        tree = manager.new(None, description="context")
        ref = await tree.commit()
        seeded = ContentTree.of_synced()
        seeded.set(b"/only/told", FILE, b"\7" * 32)
        content_hashes(manager).seed(ref.id, seeded)
        assert (await checksum(ref, "only/told")).hex == (b"\7" * 32).hex()
        await ref.release()
        await manager.delete(ref.id)
        assert store.db.execute("SELECT count(*) FROM content_hashes") == [(0,)]
        await manager.close()

    store = Store.open(tmp_path / "root")
    asyncio.run(scenario(store))
    store.close()


def test_scratch_has_only_a_root(tmp_path):
    assert asyncio.run(checksum(None, "/")).hex.startswith("e3b0c442")
    with pytest.raises(ChecksumError):
        asyncio.run(checksum(None, "/a"))
