"""Crashes at every step of a commit, and a full disk, with real processes and file systems."""

from __future__ import annotations

import asyncio
import errno
import gzip
import io
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.errors import Code
from boxwright.snapshots import LayerBlob, SnapshotManager
from boxwright.store import DiskFullError, Store

COMMIT = """
import sys
from pathlib import Path
from boxwright.store import Store
store = Store.open(Path(sys.argv[1]))
store.blobs.put(b"kept")
print("kept", flush=True)
store.blobs.put(b"second")
"""
COLLECT = """
import sys
from pathlib import Path
from boxwright.store import Store
store = Store.open(Path(sys.argv[1]))
store.blobs.put(b"one")
store.blobs.put(b"two")
print("stored", flush=True)
store.gc(grace_ns=0)
"""


def crash(program: str, root: Path, point: str) -> None:
    environment = {
        **os.environ,
        "BOXWRIGHT_TEST_CRASH": "1",
        "BOXWRIGHT_CRASH_POINT": point,
    }
    done = subprocess.run(
        [sys.executable, "-c", program, str(root)], env=environment, check=False, timeout=120
    )
    assert done.returncode == -signal.SIGKILL


def files_of(store: Store) -> tuple[set[str], set[str]]:
    rows = {str(info.digest) for info in store.blobs.walk()}
    return rows, set(store.blobs.files())


@pytest.mark.parametrize(
    ("point", "published"),
    [
        ("blob-staged:2", False),
        ("blob-synced:2", False),
        ("blob-linked:2", False),
        ("blob-recorded:2", True),
    ],
)
def test_a_commit_is_either_whole_or_not_there(tmp_path, point, published):
    crash(COMMIT, tmp_path, point)
    store = Store.open(tmp_path)
    assert not store.was_clean
    rows, names = files_of(store)
    assert rows == names
    assert (Digest.of(b"second") in rows) is published
    assert store.blobs.read(Digest.of(b"kept")) == b"kept"
    assert os.listdir(store.blobs.ingest) == []
    assert store.verify().is_sound
    assert store.blobs.put(b"second") == Digest.of(b"second")
    store.close()


@pytest.mark.parametrize("point", ["gc-marked", "gc-row-deleted", "gc-unlinked"])
def test_a_collection_leaves_whole_blobs_only(tmp_path, point):
    crash(COLLECT, tmp_path, point)
    store = Store.open(tmp_path)
    rows, names = files_of(store)
    assert rows == names
    assert store.verify().is_sound
    store.gc(grace_ns=0)
    assert files_of(store) == (set(), set())
    store.close()


def test_the_crash_switch_does_nothing_without_the_test_switch(tmp_path):
    environment = {**os.environ, "BOXWRIGHT_CRASH_POINT": "blob-staged"}
    environment.pop("BOXWRIGHT_TEST_CRASH", None)
    done = subprocess.run(
        [sys.executable, "-c", COMMIT, str(tmp_path)], env=environment, check=False, timeout=120
    )
    assert done.returncode == 0


def test_a_killed_owner_gives_the_lock_back(tmp_path):
    program = COMMIT + "\nimport signal, os\nos.kill(os.getpid(), signal.SIGKILL)\n"
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    Store.open(tmp_path).close()


@pytest.fixture
def small_disk(tmp_path):
    """A tmpfs of 4 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(path)], check=True)
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.mark.root
def test_a_full_disk_is_one_clear_error_and_leaves_nothing_half_written(small_disk):
    store = Store.open(small_disk)
    kept = store.blobs.put(b"kept")
    with pytest.raises(DiskFullError) as caught, store.blobs.writer() as writer:  # noqa: PT012
        while True:
            writer.write(bytes(100_000))
    assert caught.value.code is Code.DISK_FULL
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert os.listdir(store.blobs.ingest) == []
    assert store.blobs.read(kept) == b"kept"
    assert store.blobs.put(b"fits again")
    store.close()


@pytest.mark.root
def test_an_announced_size_that_can_not_fit_is_refused_before_writing(small_disk):
    store = Store.open(small_disk)
    with pytest.raises(DiskFullError) as caught:
        store.blobs.writer(expected_size=100 << 20)
    assert caught.value.needed == 100 << 20
    assert 0 < caught.value.available < 5 << 20
    assert os.listdir(store.blobs.ingest) == []
    store.close()


@pytest.mark.root
def test_a_layer_that_does_not_fit_is_one_clear_error_and_can_be_tried_again(small_disk):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("large")
        info.size = 8 << 20
        archive.addfile(info, io.BytesIO(b"x" * info.size))
    raw = buffer.getvalue()
    blob = gzip.compress(raw)

    async def scenario(store: Store) -> None:
        manager = SnapshotManager.open(store)
        digest = store.blobs.put(blob)
        descriptor = Descriptor("application/vnd.oci.image.layer.v1.tar+gzip", digest, len(blob))
        ref = manager.from_blobs([LayerBlob(descriptor, Digest.of(raw))])
        with pytest.raises(DiskFullError):
            await ref.extract()
        assert list(manager.folder(ref.id).iterdir()) == []
        subprocess.run(["mount", "-o", "remount,size=40m", str(small_disk)], check=True)  # noqa: ASYNC221
        async with ref.mounted() as root:
            assert (root / "large").stat().st_size == 8 << 20

    store = Store.open(small_disk)
    asyncio.run(scenario(store))
    store.close()


@pytest.mark.root
def test_a_store_on_a_full_disk_can_still_be_pruned(small_disk):
    store = Store.open(small_disk)
    digests = [store.blobs.put(os.urandom(50_000)) for _ in range(5)]
    with pytest.raises(OSError, match="No space"), open(small_disk / "foreign", "wb") as file:
        file.write(bytes(8 << 20))
    with pytest.raises(DiskFullError):  # noqa: PT012
        while True:
            store.leases.create("x" * 2000).add_blobs(digests)
            store.leases.release("x" * 2000)
    assert store.db.integrity_errors() == []
    store.db.execute("DELETE FROM leases")
    assert store.gc(grace_ns=0).blobs == 5
    assert store.blobs.put(b"fits again")
    store.close()
    again = Store.open(small_disk)
    assert again.was_clean
    again.close()
