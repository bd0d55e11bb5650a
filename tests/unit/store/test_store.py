"""The state folder: ownership, versions, blobs, leases, names, collection, verification."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading

import pytest

from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import ALGORITHMS, Digest
from boxwright.errors import Code, LimitExceededError
from boxwright.store import (
    BlobNotFoundError,
    DigestMismatchError,
    Store,
    StoreAccessError,
    StoreCorruptError,
    StoreLockedError,
    StoreVersionError,
    schema,
    trace,
)


class StandingClock:
    """A clock that moves when told to."""

    def __init__(self) -> None:
        self.now = 1_000_000_000_000

    def now_ns(self) -> int:
        return self.now


@pytest.fixture
def clock():
    return StandingClock()


@pytest.fixture
def store(tmp_path, clock):
    opened = Store.open(tmp_path / "root", clock=clock)
    yield opened
    opened.close()


def manifest(digest: Digest, size: int = 1) -> Descriptor:
    return Descriptor("application/vnd.oci.image.manifest.v1+json", digest, size)


def sha512(data: bytes) -> Digest:
    return Digest(f"sha512:{hashlib.sha512(data).hexdigest()}")


# -- opening ---------------------------------------------------------------------------


def test_a_second_owner_is_refused_and_told_who_has_it(store):
    with pytest.raises(StoreLockedError) as caught:
        Store.open(store.root)
    assert caught.value.pid == os.getpid()
    assert caught.value.code is Code.STORE_LOCKED


def test_the_lock_goes_with_close(tmp_path):
    Store.open(tmp_path / "root").close()
    second = Store.open(tmp_path / "root")
    assert second.was_clean
    second.close()
    second.close()


def test_a_newer_schema_is_refused_with_both_versions(tmp_path):
    Store.open(tmp_path).close()
    with sqlite3.connect(tmp_path / "state.db") as db:
        db.execute("PRAGMA user_version = 9999")
    db.close()
    with pytest.raises(StoreVersionError) as caught:
        Store.open(tmp_path)
    assert (caught.value.found, caught.value.known) == (9999, schema.latest_version())
    with pytest.raises(StoreVersionError):
        Store.open(tmp_path)  # and the lock was given back


def test_an_older_schema_is_migrated_with_its_rows(tmp_path):
    db = sqlite3.connect(tmp_path / "state.db")
    for statement in schema.MIGRATIONS[0].statements:
        db.execute(statement)
    db.execute("INSERT INTO meta VALUES ('kept', 'yes')")
    db.execute("PRAGMA user_version = 1")
    db.commit()
    db.close()
    store = Store.open(tmp_path)
    assert store.db.execute("SELECT value FROM meta WHERE key = 'kept'") == [("yes",)]
    assert store.db.execute("PRAGMA user_version") == [(schema.latest_version(),)]
    store.close()


def test_a_damaged_database_is_named(tmp_path):
    (tmp_path / "state.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(StoreCorruptError):
        Store.open(tmp_path)


def test_a_file_in_the_way_is_an_access_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreAccessError):
        Store.open(tmp_path / "file" / "root")


def test_schema_extensions_must_be_repeatable():
    with pytest.raises(ValueError, match="IF NOT EXISTS"):
        schema.register("broken", ["CREATE TABLE broken (a)"])


# -- blobs -----------------------------------------------------------------------------


def test_put_and_read(store):
    digest = store.blobs.put(b"hello", {"a": "1"})
    assert digest == Digest.of(b"hello")
    assert store.blobs.stat(digest) == 5
    assert store.blobs.read(digest) == b"hello"
    assert store.blobs.labels(digest) == {"a": "1"}
    assert store.blobs.path(digest).stat().st_mode & 0o777 == 0o444
    assert os.listdir(store.blobs.ingest) == []


def test_the_same_content_is_one_blob(store):
    first = store.blobs.put(b"x", {"a": "1"})
    inode = store.blobs.path(first).stat().st_ino
    assert store.blobs.put(b"x", {"b": "2"}) == first
    assert store.blobs.path(first).stat().st_ino == inode
    assert store.blobs.labels(first) == {"a": "1", "b": "2"}
    store.blobs.set_labels(first, {"a": ""})
    assert store.blobs.labels(first) == {"b": "2"}


@pytest.mark.parametrize(
    ("expected", "size"),
    [(Digest.of(b"other"), None), (None, 3), (None, 5), (Digest.of(b"other"), 4)],
)
def test_a_wrong_digest_or_size_publishes_nothing(store, expected, size):
    with (  # noqa: PT012
        pytest.raises(DigestMismatchError) as caught,
        store.blobs.writer(expected=expected, expected_size=size) as writer,
    ):
        writer.write(b"data")
        writer.commit()
    assert caught.value.code is Code.DIGEST_MISMATCH
    assert list(store.blobs.walk()) == []
    assert os.listdir(store.blobs.ingest) == []
    assert list(store.blobs.files()) == []


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("announced", ["before", "as a hint", "after"])
def test_a_blob_lies_under_the_algorithm_that_it_is_asked_for_by(store, algorithm, announced):
    data = os.urandom(100_000)
    digest = Digest(f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}")
    if announced == "before":
        writer = store.blobs.writer(expected=digest)
    else:
        writer = store.blobs.writer(algorithm=algorithm if announced == "as a hint" else "sha256")
    with writer:
        writer.write(data)
        writer.expect(digest)
        assert writer.commit() == (digest, len(data))
    assert store.blobs.path(digest).parent.name == algorithm
    assert store.blobs.read(digest) == data
    assert store.blobs.is_sound(digest)
    assert list(store.blobs.files()) == [digest]
    with store.blobs.writer() as writer, pytest.raises(DigestMismatchError):  # noqa: PT012
        writer.write(b"other")
        writer.expect(digest)
        writer.commit()


def test_blobs_of_other_algorithms_are_collected_recovered_and_verified(tmp_path):
    store = Store.open(tmp_path)
    data, twin = b"the same bytes", Digest.of(b"the same bytes")
    kept, loose, gone, bad = (
        store.blobs.put(each, expected=sha512(each)) for each in (data, b"loose", b"gone", b"bad")
    )
    store.blobs.put(data)
    root = store.blobs.put(b"manifest", expected=sha512(b"manifest"))
    store.blobs.add_refs(root, [kept])
    store.images.set("app", manifest(root))
    for digest in (gone, bad):
        store.images.set(digest, manifest(digest))
    assert store.gc(grace_ns=0).blobs == 2
    assert store.blobs.stat(loose) is None
    assert store.blobs.stat(twin) is None
    assert store.blobs.read(kept) == data

    stray = sha512(b"stray")
    store.blobs.path(gone).unlink()
    store.blobs.path(bad).chmod(0o644)
    store.blobs.path(bad).write_bytes(b"BAD")
    store.blobs.path(stray).write_bytes(b"")
    report = store.verify(repair=False)
    assert (report.corrupt, report.missing, report.stray) == ([bad], [gone], [stray])
    store.db.execute("DELETE FROM meta WHERE key = 'clean'")
    assert store.blobs.recover() == 2  # the stray file, and the row without one
    assert set(store.blobs.files()) == {root, kept, bad}
    store.close()


def test_an_abandoned_write_leaves_nothing(store):
    with store.blobs.writer() as writer:
        writer.write(b"data")
    with pytest.raises(RuntimeError), store.blobs.writer() as writer:  # noqa: PT012
        writer.write(b"data")
        raise RuntimeError
    assert os.listdir(store.blobs.ingest) == []


def test_a_large_announced_blob_keeps_its_exact_size(store):
    data = os.urandom(3 << 20)
    with store.blobs.writer(expected=Digest.of(data), expected_size=len(data)) as writer:
        for start in range(0, len(data), 100_000):
            writer.write(memoryview(data)[start : start + 100_000])
        digest, size = writer.commit()
    assert (size, store.blobs.read(digest)) == (len(data), data)


def test_reading_whole_has_a_limit(store):
    digest = store.blobs.put(b"12345")
    with pytest.raises(LimitExceededError):
        store.blobs.read(digest, limit=4)


def test_a_missing_or_cut_blob_does_not_exist(store):
    digest = store.blobs.put(b"12345")
    store.blobs.path(digest).unlink()
    assert store.blobs.stat(digest) is None
    with pytest.raises(BlobNotFoundError):
        store.blobs.open(digest)
    store.blobs.path(digest).write_bytes(b"123")
    assert store.blobs.stat(digest) is None
    assert store.blobs.put(b"12345") == digest
    assert store.blobs.read(digest) == b"12345"


def test_a_damaged_blob_is_forgotten_when_read_whole(store):
    digest = store.blobs.put(b"12345")
    path = store.blobs.path(digest)
    path.chmod(0o644)
    path.write_bytes(b"54321")
    with pytest.raises(BlobNotFoundError):
        store.blobs.read(digest)
    assert store.blobs.stat(digest) is None


def test_many_threads_may_write_the_same_and_different_blobs(store):
    def write(number: int) -> None:
        for _ in range(5):
            store.blobs.put(b"%d" % (number % 3))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {info.digest for info in store.blobs.walk()} == {Digest.of(b"%d" % n) for n in range(3)}


def test_walk_goes_on_while_blobs_come_and_go(store):
    for number in range(1100):
        text = "sha256:" + hashlib.sha256(b"%d" % number).hexdigest()
        store.db.execute(
            "INSERT INTO blobs (digest, size, created_ns, used_ns) VALUES (?, 1, 0, 0)", (text,)
        )
    seen = []
    for info in store.blobs.walk():
        if not seen:
            store.db.execute("DELETE FROM blobs WHERE digest = ?", (info.digest,))
        seen.append(info.digest)
    assert len(seen) == 1100
    assert seen == sorted(seen)


# -- leases, names, collection ---------------------------------------------------------


def test_collection_keeps_what_tags_leases_and_snapshots_lead_to(store):
    config, layer, leased, snapshot, loose = (
        store.blobs.put(name) for name in (b"config", b"layer", b"lease", b"snap", b"loose")
    )
    top = store.blobs.put(b"manifest")
    store.blobs.add_refs(top, [config, layer])
    store.images.set("docker.io/library/app:latest", manifest(top))
    lease = store.leases.create()
    lease.add_blob(leased)
    store.db.execute(
        "INSERT INTO snapshots (id, kind, created_ns, used_ns, present, blob)"
        " VALUES ('s', 'layer', 0, 0, 0, ?)",
        (snapshot,),
    )
    assert store.gc().blobs == 0  # too young
    gone = store.gc(grace_ns=0)
    assert (gone.blobs, gone.size_bytes) == (1, len(b"loose"))
    assert store.blobs.stat(loose) is None
    lease.release()
    store.images.delete("docker.io/library/app:latest")
    store.db.execute("DELETE FROM snapshots")
    assert store.gc(grace_ns=0).blobs == 5
    assert list(store.blobs.files()) == []


def test_collection_spares_young_and_recently_used_blobs(store, clock):
    digest = store.blobs.put(b"x")
    clock.now += 100
    assert store.gc(grace_ns=101).blobs == 0
    store.blobs.touch(digest)
    assert store.gc(grace_ns=50).blobs == 0
    clock.now += 50
    assert store.gc(grace_ns=50).blobs == 1


def test_a_lease_taken_between_mark_and_sweep_saves_the_blob(store, monkeypatch):
    digest = store.blobs.put(b"x")
    lease = store.leases.create()
    monkeypatch.setitem(trace.callbacks, "gc-marked", lambda: lease.add_blob(digest))
    assert store.gc(grace_ns=0).blobs == 0
    assert store.blobs.stat(digest) == 1


def test_leases_expire_and_end_with_their_process(store, clock):
    store.leases.create("upload", expires_ns=clock.now + 10, persistent=True)
    store.leases.create("pin", persistent=True)
    store.leases.create("build")
    clock.now += 10
    assert store.leases.expire() == 1
    store.close()
    again = Store.open(store.root, clock=clock)
    assert [(info.id, info.persistent) for info in again.leases.list()] == [("pin", True)]
    again.close()


def test_a_renewed_lease_lives_longer(store, clock):
    store.leases.create("upload", expires_ns=clock.now + 10)
    store.leases.create("upload", expires_ns=clock.now + 20)
    clock.now += 15
    assert store.leases.expire() == 0


def test_names_are_kept_over_restarts(store, clock):
    digest = store.blobs.put(b"m")
    store.images.set("a", manifest(digest))
    created = store.images.list()[0].created_ns
    clock.now += 5
    store.images.set("a", manifest(digest, 7))
    store.close()
    again = Store.open(store.root, clock=clock)
    record = again.images.list()[0]
    assert (record.created_ns, record.updated_ns) == (created, created + 5)
    assert again.images.get("a") == manifest(digest, 7)
    assert again.images.get("b") is None
    assert again.images.delete("a")
    assert not again.images.delete("a")
    again.close()


# -- database --------------------------------------------------------------------------


def test_a_failed_block_stores_nothing_of_it(store):
    with pytest.raises(RuntimeError), store.db.transaction() as cursor:  # noqa: PT012
        cursor.execute("INSERT INTO meta VALUES ('a', 'b')")
        with store.db.transaction(durable=True) as inner:
            inner.execute("INSERT INTO meta VALUES ('c', 'd')")
        raise RuntimeError
    assert store.db.execute("SELECT key FROM meta WHERE key IN ('a', 'c')") == []


def test_durable_blocks_commit_with_full_sync_and_others_do_not(store):
    def level() -> int:
        return int(store.db.execute("PRAGMA synchronous")[0][0])

    with store.db.transaction(durable=True):
        assert level() == 2
    with store.db.transaction():
        assert level() == 1
    assert level() == 1


# -- verification ----------------------------------------------------------------------


def test_verify_finds_and_repairs(store):
    good, bad, gone = (store.blobs.put(name) for name in (b"good", b"bad", b"gone"))
    store.images.set("sound", manifest(good))
    store.images.set("broken", manifest(gone))
    store.blobs.path(bad).chmod(0o644)
    store.blobs.path(bad).write_bytes(b"BAD")
    store.blobs.path(gone).unlink()
    stray = Digest("sha256:" + "0" * 64)
    store.blobs.path(stray).write_bytes(b"")
    report = store.verify()
    assert (report.corrupt, report.missing, report.stray) == ([bad], [gone], [stray])
    assert report.broken_images == ["broken"]
    assert report.checked == 3
    assert not report.is_sound
    store.images.delete("broken")
    assert store.verify().is_sound
    assert store.blobs.read(good) == b"good"


def test_usage_counts_what_lies_there(store):
    store.blobs.put(b"12345")
    with store.blobs.writer() as writer:
        writer.write(b"123")
        usage = store.usage()
    assert (usage.blobs, usage.staged) == (5, 3)
    assert usage.database > 0


def test_usage_is_counted_while_others_write(store, monkeypatch):
    writers = [store.blobs.writer(), store.blobs.writer()]
    for writer in writers:
        writer.write(b"abc")
    scan = os.scandir

    def scan_and_finish(folder):
        if folder != store.blobs.ingest:
            return scan(folder)
        found = list(scan(folder))
        writers[0].commit()  # between the look into the folder and that at the file
        return found

    with writers[0], writers[1], monkeypatch.context() as patch:
        patch.setattr(os, "scandir", scan_and_finish)
        assert store.usage().staged == 3


def test_discarded_trees_are_removed_whatever_their_depth_and_modes(store):
    folder = store.root / "snapshots" / "x"
    folder.mkdir(parents=True)
    fd = os.open(folder, os.O_RDONLY)
    for _ in range(1500):  # deeper than PATH_MAX and than the stack
        os.mkdir("deep", dir_fd=fd)
        inner = os.open("deep", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    (folder / "closed").mkdir()
    (folder / "closed" / "file").write_text("")
    (folder / "closed").chmod(0)
    os.symlink(store.root / "state.db", folder / "link")
    store.discard(folder)
    assert not folder.exists()
    store.close(drain_trash=True)
    assert os.listdir(store.root / "trash") == []
    assert (store.root / "state.db").exists()
