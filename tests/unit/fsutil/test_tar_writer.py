"""The writer's bytes are those of Go's archive/tar, of which the golden file is a dump."""

import hashlib
import io
import json
import os
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boxwright.fsutil.tar import (
    Entry,
    EntryType,
    FileChangedError,
    TarFormatError,
    TarWriter,
    pack_entry,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "tar" / "headers.json"
CASES = json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_headers_equal_go(case):
    entry = Entry(
        bytes.fromhex(case["name"]),
        case["type"].encode(),
        case["mode"],
        case["uid"],
        case["gid"],
        case["size"],
        case["mtime"],
        linkname=bytes.fromhex(case["link"]),
        dev_major=case["major"],
        dev_minor=case["minor"],
        xattrs={key: bytes.fromhex(value) for key, value in case["xattrs"].items()},
    )
    packed = pack_entry(entry)
    assert len(packed) == case["bytes"]
    assert hashlib.sha256(packed).hexdigest() == case["sha256"]


def write(*members):
    pieces = []
    tar = TarWriter(pieces.append)
    for entry, content in members:
        tar.add(entry, content)
    tar.close()
    return b"".join(pieces)


def test_archive_is_read_by_the_standard_library():
    data = write(
        (Entry(b"d/", EntryType.DIRECTORY, 0o755), b""),
        (Entry(b"d/f", mtime=1_700_000_000, uid=3_000_000), b"hello"),
        (Entry(b"d/" + b"n" * 200, xattrs={"user.a": b"1"}), b"x" * 513),
        (Entry(b"l", EntryType.SYMLINK, 0o777, linkname=b"t" * 150), b""),
    )
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        first, second, third, link = tar.getmembers()
        assert first.isdir()
        assert tar.extractfile(second).read() == b"hello"
        assert second.uid == 3_000_000
        assert third.name == "d/" + "n" * 200
        assert third.pax_headers["SCHILY.xattr.user.a"] == "1"
        assert tar.extractfile(third).read() == b"x" * 513
        assert link.linkname == "t" * 150


@settings(deadline=None)
@given(
    name=st.binary(min_size=1, max_size=110).filter(lambda name: b"\0" not in name),
    mode=st.integers(0, 0o7777),
    owner=st.tuples(st.integers(0, 0o10000000), st.integers(0, 0o10000000)),
    size=st.sampled_from((0, 1, 511, 512, 4000, (1 << 20) - 1, (1 << 20) + 1)),
    mtime=st.integers(-2, 1 << 34),
)
def test_plain_files_are_written_as_any_other(name, mode, owner, size, mtime):
    entry = Entry(name, EntryType.FILE, mode, *owner, size=size, mtime=mtime)
    expected, got = [], []
    with tempfile.TemporaryFile() as file:
        file.write(b"x" * size)
        for pieces, plain in ((expected, False), (got, True)):
            file.seek(0)
            tar = TarWriter(pieces.append)
            for _ in range(2):
                file.seek(0)
                if plain:
                    tar.add_plain_file(name, mode, owner, size, mtime, file.fileno())
                else:
                    tar.add_file(entry, file.fileno())
            tar.close()
    assert b"".join(got) == b"".join(expected)


def test_a_plain_file_that_got_shorter_is_an_error():
    with tempfile.TemporaryFile() as file, pytest.raises(FileChangedError):
        TarWriter([].append).add_plain_file(b"f", 0o644, (0, 0), 5, 0, file.fileno())


def test_checksums_of_headers_with_high_bytes_are_sums():
    packed = pack_entry(Entry(b"x" * 155 + b"/" + b"\xff" * 100, linkname=b"~" * 100))[-512:]
    assert int(packed[148:154], 8) == sum(packed[:148]) + 8 * 32 + sum(packed[156:])


def test_empty_archive_is_two_zero_blocks():
    assert write() == bytes(1024)


def test_nanoseconds_go_into_a_pax_record():
    packed = pack_entry(Entry(b"f", mtime=5, mtime_nsec=120_000_000))
    assert b"mtime=5.12\n" in packed
    assert b"mtime=-4.75\n" in pack_entry(Entry(b"f", mtime=-5, mtime_nsec=250_000_000))


def test_bad_attribute_name_is_refused():
    with pytest.raises(TarFormatError):
        pack_entry(Entry(b"f", xattrs={"user.a=b": b"1"}))


def test_file_that_shrinks_is_an_error(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"12345")
    fd = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(FileChangedError) as caught:
            TarWriter(lambda _: None).add_file(Entry(b"f", size=9), fd)
    finally:
        os.close(fd)
    assert "9 bytes expected, 5 found" in str(caught.value)


def test_file_that_grows_is_cut_at_its_announced_size(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"12345")
    pieces = []
    tar = TarWriter(pieces.append)
    with path.open("rb") as file:
        tar.add_file(Entry(b"f", size=3), file.fileno())
    tar.close()
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as archive:
        assert archive.extractfile("f").read() == b"123"
