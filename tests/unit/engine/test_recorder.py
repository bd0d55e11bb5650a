"""The complete record of a build: everything is there; over the quota head and tail are."""

from __future__ import annotations

from pathlib import Path

from boxwright.core.digest import Digest
from boxwright.engine.recorder import StatusRecorder, read_record
from boxwright.progress.events import LogEvent, VertexEvent
from boxwright.store.store import Store

A = Digest.of(b"a")


def logs_of(store: Store, digest: Digest) -> bytes:
    messages = list(read_record(store.blobs.path(digest)))
    return b"".join(log.msg for message in messages for log in message.logs)


def test_everything_is_recorded(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "s")
    recorder = StatusRecorder(tmp_path, 1 << 30)
    lines = [b"line %d\n" % n for n in range(5000)]
    recorder.write([VertexEvent(A, "a", started_ns=1)])
    for line in lines:
        recorder.write([LogEvent(A, 1, line, 2)])
    digest, size = recorder.publish(store.blobs)
    assert size == store.blobs.stat(digest)
    assert logs_of(store, digest) == b"".join(lines)
    store.close()


def test_over_the_quota_head_and_tail_are_kept(tmp_path: Path) -> None:
    import random

    store = Store.open(tmp_path / "s")
    source = random.Random(3)
    recorder = StatusRecorder(tmp_path, 64 << 10)
    chunks = [source.randbytes(64 << 10) for _ in range(40)]
    for chunk in chunks:
        recorder.write([LogEvent(A, 1, chunk, 2)])
    digest, _ = recorder.publish(store.blobs)
    text = logs_of(store, digest)
    assert text.startswith(chunks[0])
    assert text.endswith(chunks[-1])
    assert b"bytes of log dropped: over the quota" in text
    assert len(text) < sum(map(len, chunks))
    store.close()


def test_a_damaged_record_ends_early(tmp_path: Path) -> None:
    path = tmp_path / "bad"
    path.write_bytes(b"\x28\xb5\x2f\xfd\x00")
    assert list(read_record(path)) == []
