"""Threads beside a stream: same digests, and they always end."""

import errno
import hashlib
import io
import threading

import pytest

from boxwright.fsutil.pipeline import HashThread, ReadAhead, SinkThread

DATA = bytes(range(256)) * 20_000


def threads():
    names = ("boxwright-hash", "boxwright-read", "boxwright-write")
    return [thread for thread in threading.enumerate() if thread.name in names]


def test_hash_is_that_of_all_pieces():
    with HashThread() as hashing:
        for at in range(0, len(DATA), 70_001):
            hashing.write(DATA[at : at + 70_001])
        assert hashing.digest() == f"sha256:{hashlib.sha256(DATA).hexdigest()}"
    assert threads() == []


def test_hash_thread_ends_with_its_block():
    with HashThread() as hashing:
        hashing.write(DATA)
        assert len(threads()) == 1
    assert threads() == []


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_read_ahead_gives_the_stream(algorithm):
    with ReadAhead(io.BytesIO(DATA), size=70_001, algorithm=algorithm) as ahead:
        pieces = []
        while piece := ahead.read(1):
            pieces.append(piece)
        assert b"".join(pieces) == DATA
        assert ahead.read(1) == b""
        assert ahead.digest() == f"{algorithm}:{hashlib.new(algorithm, DATA).hexdigest()}"
    assert threads() == []


def test_a_stream_that_is_left_early_ends_its_thread():
    with ReadAhead(io.BytesIO(DATA), size=1000) as ahead:
        assert ahead.read(1) == DATA[:1000]
    assert threads() == []


class Broken:
    def __init__(self):
        self.calls = 0

    def read(self, size, /):
        self.calls += 1
        if self.calls > 2:
            raise OSError(5, "Input/output error")
        return b"x" * size


def test_errors_of_the_stream_reach_the_reader_in_their_place():
    with ReadAhead(Broken(), size=10) as ahead:
        assert [ahead.read(1), ahead.read(1)] == [b"x" * 10] * 2
        with pytest.raises(OSError, match="Input/output"):
            ahead.read(1)
        assert ahead.read(1) == b""
    assert threads() == []


def test_a_sink_gets_everything_in_order():
    got = bytearray()
    pieces = [
        bytes([number % 251]) * size for number, size in enumerate((1, 300_000, 5, 0, 7) * 9)
    ]
    with SinkThread(got.extend) as sink:
        for piece in pieces:
            sink.write(piece)
        sink.finish()
    assert bytes(got) == b"".join(pieces)


@pytest.mark.parametrize("count", [1, 50])
def test_a_failing_sink_is_told_to_the_writer(count):
    def fail(data):
        raise OSError(errno.ENOSPC, "full")

    def work(sink):
        for _ in range(count):
            sink.write(bytes(1 << 20))
        sink.finish()

    with SinkThread(fail) as sink, pytest.raises(OSError, match="full"):
        work(sink)


def test_a_sink_that_is_left_early_ends():
    with SinkThread(lambda data: None) as sink:
        sink.write(b"x")
        assert len(threads()) == 1
    assert threads() == []
