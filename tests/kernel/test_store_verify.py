"""``store verify``, through the program: what it finds, what it repairs, and its statuses."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.errors import EXIT_CODES, Code
from boxwright.snapshots import SnapshotManager
from boxwright.snapshots.cachemounts import CacheMounts
from boxwright.store import Store
from boxwright.store.cachekeys import CacheKeyStore

pytestmark = pytest.mark.root
PROGRAM = str(Path(sys.executable).with_name("boxwright"))


@contextlib.contextmanager
def opened(root: Path) -> Iterator[Store]:
    store = Store.open(root)
    try:
        yield store
    finally:
        store.close()


def verify(root: Path, *flags: str) -> tuple[int, dict[str, object]]:
    done = subprocess.run(
        [PROGRAM, "--root", str(root), "store", "verify", "--json", *flags],
        capture_output=True,
        check=False,
        timeout=120,
    )
    return done.returncode, json.loads(done.stdout or b"{}")


def kinds(answer: dict[str, object]) -> list[str]:
    problems = answer["problems"]
    assert isinstance(problems, list)
    return sorted({problem["kind"] for problem in problems})


async def _fill(store: Store) -> dict[str, str]:
    manager = SnapshotManager.open(store)
    mounts = CacheMounts(manager)
    async with mounts.acquired("key", "shared") as root:
        (root / "cached").write_bytes(b"c" * 5000)
    base = manager.new(None, description="base")
    async with base.mounted() as root:
        (root / "file").write_bytes(b"f" * 9000)
    below = await base.commit()
    top = manager.new(below, description="top")
    async with top.mounted() as root:
        (root / "more").write_bytes(b"m")
    above = await top.commit()
    await manager.usage()
    found = {"below": below.id, "above": above.id, "mount": mounts.records()[0].id}
    await above.release()
    await below.release()
    await manager.close(sync=True)
    return found


@pytest.fixture
def filled(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A sound state folder with trees, an image and a pushed repository."""
    root = tmp_path / "state"
    with opened(root) as store:
        made = asyncio.run(_fill(store))
        config, layer = store.blobs.put(b"config"), store.blobs.put(b"layer")
        manifest = store.blobs.put(b"manifest")
        store.blobs.add_refs(manifest, [config, layer])
        store.images.set("app:1", Descriptor("application/json", manifest, 8))
        store.db.execute(
            "INSERT INTO registry_manifests (repository, digest, media_type)"
            " VALUES ('app', ?, 'application/json')",
            (manifest,),
        )
        store.db.execute(
            "INSERT INTO registry_tags (repository, tag, digest, updated_ns)"
            " VALUES ('app', 'latest', ?, 1)",
            (manifest,),
        )
        cache = CacheKeyStore(store.db)
        cache.add_result("sha256:" + "0" * 64, _result(made["above"]))
    return root, made


def _result(result_id: str):
    from boxwright.core.cacheinfo import CacheResult

    return CacheResult(result_id, 1)


def test_a_sound_folder(filled):
    root, _ = filled
    status, answer = verify(root)
    assert (status, answer["problems"], answer["sound"]) == (0, [], True)
    assert (answer["blobs"], answer["trees"]) == (3, 3)


def test_a_damaged_layer_of_an_image_is_named_and_stays_damage(filled):
    root, _ = filled
    path = root / "blobs/sha256" / Digest.of(b"layer").hex
    path.chmod(0o644)
    path.write_bytes(b"LAYER")
    wanted = ["corrupt-blob", "damaged-image", "damaged-repository"]
    status, answer = verify(root)
    assert (status, kinds(answer)) == (EXIT_CODES[Code.STORE_CORRUPT], wanted)
    status, answer = verify(root, "--repair")
    assert (status, kinds(answer)) == (EXIT_CODES[Code.STORE_CORRUPT], wanted)
    with opened(root) as store:
        store.blobs.put(b"layer")  # pulled again
    assert verify(root)[0] == 0


def test_lost_trees_are_forgotten_with_what_is_built_on_them(filled):
    root, made = filled
    shutil.rmtree(root / "snapshots" / made["below"] / "fs")
    shutil.rmtree(root / "cachemounts" / made["mount"])
    status, answer = verify(root)
    assert status == EXIT_CODES[Code.STORE_CORRUPT]
    assert kinds(answer) == ["missing-cache-mount", "missing-snapshot"]
    status, answer = verify(root, "--repair")
    assert (status, answer["repaired"]) == (0, True)
    status, answer = verify(root)
    assert (status, answer["problems"], answer["trees"]) == (0, [], 0)
    with opened(root) as store:
        assert store.db.execute("SELECT * FROM cache_results") == []
        assert store.db.execute("SELECT * FROM cache_keys") == []


def test_leftovers_do_no_harm_and_are_removed(filled):
    root, made = filled
    (root / "snapshots/unknown/fs").mkdir(parents=True)
    (root / "snapshots" / made["below"] / "work").mkdir()
    (root / "cachemounts/unknown").mkdir()
    (root / "ingest/half").write_bytes(b"half")
    (root / "blobs/sha256" / ("0" * 64)).write_bytes(b"")
    with opened(root) as store:
        store.db.execute("UPDATE snapshots SET size = 1 WHERE id = ?", (made["above"],))
    status, answer = verify(root)
    assert status == 0
    assert kinds(answer) == [
        "stray-blob",
        "stray-cache-mount",
        "stray-file",
        "stray-ingest",
        "stray-snapshot",
        "wrong-size",
    ]
    assert verify(root, "--repair")[0] == 0
    status, answer = verify(root)
    assert (status, answer["problems"], answer["trees"]) == (0, [], 3)


def test_dangling_rows(filled):
    root, _ = filled
    with opened(root) as store:
        store.db.execute("DELETE FROM registry_manifests")
        store.db.execute(
            "INSERT INTO build_history (ref, created_ns, completed_ns, pinned, log_digest, record)"
            " VALUES ('ref', 1, 2, 0, ?, x'')",
            (Digest.of(b"log"),),
        )
    status, answer = verify(root)
    assert (status, kinds(answer)) == (20, ["dangling-tag", "lost-log"])
    assert verify(root, "--repair")[0] == 0
    assert verify(root)[1]["problems"] == []


def test_a_folder_in_use_is_left_alone(filled):
    root, _ = filled
    with opened(root):
        done = subprocess.run(
            [PROGRAM, "--root", str(root), "store", "verify"],
            capture_output=True,
            check=False,
            timeout=120,
        )
    assert done.returncode == EXIT_CODES[Code.STORE_LOCKED]
    assert f"process {os.getpid()}".encode() in done.stderr


def test_no_state_folder(tmp_path):
    status, _ = verify(tmp_path)
    assert status == EXIT_CODES[Code.INVALID]
    assert list(tmp_path.iterdir()) == []
