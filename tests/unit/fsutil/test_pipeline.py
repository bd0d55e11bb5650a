"""Threads beside a stream: same digests, and they always end."""

import hashlib
import io
import threading

import pytest

from boxwright.fsutil.pipeline import HashThread, ReadAhead

DATA = bytes(range(256)) * 20_000


def threads():
    names = ("boxwright-hash", "boxwright-read")
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


def test_read_ahead_gives_the_stream():
    with ReadAhead(io.BytesIO(DATA), size=70_001) as ahead:
        pieces = []
        while piece := ahead.read(1):
            pieces.append(piece)
        assert b"".join(pieces) == DATA
        assert ahead.read(1) == b""
        assert ahead.digest() == f"sha256:{hashlib.sha256(DATA).hexdigest()}"
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
