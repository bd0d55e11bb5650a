"""eStargz blobs, read back by the format's description, and the table that upstream writes."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import struct
import tarfile
import threading
import zlib
from pathlib import Path
from typing import Any

import pytest

from boxwright.core.digest import Digest
from boxwright.errors import InvalidInputError
from boxwright.fsutil.compress import Compression
from boxwright.fsutil.estargz import (
    CHUNK_SIZE,
    FOOTER_SIZE,
    TOC_NAME,
    EstargzCompressor,
    EstargzTarWriter,
    footer,
    is_toc,
)
from boxwright.fsutil.tar import Entry, EntryType, TarWriter

# The table that stargz-snapshotter's writer makes of FILES, every offset replaced by 0.
GOLDEN = Path(__file__).parents[2] / "golden/estargz/toc.json"
WHEN = 1_700_000_000
BIG = b"0123456789abcdef" * 593_750


def entry(name: str, kind: bytes = EntryType.FILE, mode: int = 0o644, target: str = "") -> Entry:
    made = Entry(name.encode(), kind, mode, mtime=WHEN)
    made.linkname = target.encode()
    return made


FILES = [
    (entry("data/", EntryType.DIRECTORY, 0o755), b""),
    (entry("data/a <b>&"), b"hi\n"),
    (entry("data/big"), BIG),
    (entry("data/chunk"), b"x" * CHUNK_SIZE),
    (entry("data/dir/", EntryType.DIRECTORY, 0o755), b""),
    (entry("data/dir/ü", mode=0o4755), b"x\n"),
    (entry("data/empty"), b""),
    (entry("data/hard", EntryType.HARD_LINK, 0o644, "data/big"), b""),
    (entry("data/link", EntryType.SYMLINK, 0o777, "a"), b""),
]


def write(
    compression: Compression, files: list[tuple[Entry, bytes]], piece: int = 1 << 30
) -> tuple[bytes, bytes, EstargzCompressor]:
    """Return the blob, its whole uncompressed form, and the compressor."""
    blob: list[bytes] = []
    plain: list[bytes] = []
    compressor = EstargzCompressor(compression, blob.append)

    def sink(data: bytes) -> None:
        plain.append(data)
        compressor.write(data)

    tar = EstargzTarWriter(sink, compressor)
    for item, content in files:
        item.size = len(content)
        tar.add_header(item)
        for at in range(0, len(content), piece):
            tar.write(content[at : at + piece])
        tar.end_content(len(content))
    tar.close()
    plain.append(compressor.finish())
    return b"".join(blob), b"".join(plain), compressor


def read_toc(blob: bytes) -> bytes:
    """Find the table as a reader does: by the last 51 bytes."""
    end = blob[-FOOTER_SIZE:]
    assert end[:4] == b"\x1f\x8b\x08\x04"
    assert struct.unpack("<H", end[10:12]) == (26,)
    assert end[12:14] == b"SG"
    assert struct.unpack("<H", end[14:16]) == (22,)
    assert end[32:38] == b"STARGZ"
    assert gzip.decompress(end) == b""
    at = int(end[16:32], 16)
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(blob[at:]))) as archive:
        (member,) = archive
        assert member.name == TOC_NAME
        file = archive.extractfile(member)
        assert file is not None
        return file.read()


def member_at(blob: bytes, offset: int) -> bytes:
    """Decompress the one gzip member that begins at ``offset``."""
    return zlib.decompressobj(31).decompress(blob[offset:])


def read_file(blob: bytes, entries: list[dict[str, Any]], name: str) -> bytes:
    """Read a file by its chunks, each decompressed and verified on its own."""
    parts = [e for e in entries if e["name"] == name and e["type"] in {"reg", "chunk"}]
    size = parts[0]["size"]
    content = b""
    for part in parts:
        assert part.get("chunkOffset", 0) == len(content)
        length = part.get("chunkSize") or size - len(content)
        data = member_at(blob, part["offset"])[:length]
        assert f"sha256:{hashlib.sha256(data).hexdigest()}" == part["chunkDigest"]
        content += data
    assert f"sha256:{hashlib.sha256(content).hexdigest()}" == parts[0]["digest"]
    return content


@pytest.mark.parametrize("level", [None, 1, 6])
def test_every_file_can_be_read_and_verified_by_itself(level: int | None) -> None:
    blob, plain, compressor = write(Compression("estargz", level), FILES)
    toc = read_toc(blob)
    assert Digest.of(toc) == compressor.toc_digest
    entries = json.loads(toc)["entries"]
    for item, content in FILES:
        if content:
            assert read_file(blob, entries, item.name.decode()) == content
    assert gzip.decompress(blob) == plain
    assert compressor.uncompressed_size == len(plain)


def test_the_table_is_upstreams() -> None:
    blob, _, _ = write(Compression("estargz"), FILES)
    assert re.sub(rb'"offset": \d+', b'"offset": 0', read_toc(blob)) == GOLDEN.read_bytes()


def test_to_other_readers_it_is_the_plain_archive() -> None:
    blob, plain, _ = write(Compression("estargz"), FILES)
    pieces: list[bytes] = []
    tar = TarWriter(pieces.append)
    for item, content in FILES:
        tar.add(item, content)
    tar.close()
    assert plain.startswith(b"".join(pieces))
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(blob))) as archive:
        assert [m.name for m in archive] == [i.name.decode().rstrip("/") for i, _ in FILES]


@pytest.mark.parametrize("piece", [1, 4095, 1 << 20, CHUNK_SIZE + 1])
def test_sizes_of_writes_do_not_matter(piece: int) -> None:
    files = [(item, content[: 300 if piece == 1 else None]) for item, content in FILES]
    assert (
        write(Compression("estargz"), files, piece)[0] == write(Compression("estargz"), files)[0]
    )


def test_work_in_the_background_has_the_same_bytes() -> None:
    blob: list[bytes] = []
    compressor = EstargzCompressor(Compression("estargz"), blob.append, hurry=threading.Event())
    tar = EstargzTarWriter(compressor.write, compressor)
    for item, content in FILES:
        tar.add(item, content)
    tar.close()
    compressor.finish()
    assert b"".join(blob) == write(Compression("estargz"), FILES)[0]


def test_attributes_devices_and_fractions_of_seconds() -> None:
    item = entry("f")
    item.xattrs = {"security.capability": b"\1\0", "a": b"b"}
    item.mtime_nsec = 600_000_000
    device = entry("d", EntryType.CHARACTER)
    device.dev_major, device.dev_minor, device.uid, device.gid = 5, 1, 7, 8
    old = entry("old")
    old.mtime = 0
    blob, _, _ = write(Compression("estargz"), [(item, b"1"), (device, b""), (old, b"")])
    file, char, zero = json.loads(read_toc(blob))["entries"]
    assert file["xattrs"] == {"a": "Yg==", "security.capability": "AQA="}
    assert file["modtime"] == "2023-11-14T22:13:21Z"
    assert (char["devMajor"], char["devMinor"], char["uid"], char["gid"]) == (5, 1, 7, 8)
    assert "modtime" not in zero


def test_an_empty_archive() -> None:
    blob, plain, _ = write(Compression("estargz"), [])
    assert json.loads(read_toc(blob)) == {"version": 1, "entries": None}
    assert gzip.decompress(blob) == plain


@pytest.mark.parametrize("name", [TOC_NAME, f"./{TOC_NAME}", f"a/../{TOC_NAME}", f"/{TOC_NAME}"])
def test_the_tables_name_is_refused(name: str) -> None:
    assert is_toc(name.encode())
    with pytest.raises(InvalidInputError, match="estargz"):
        write(Compression("estargz"), [(entry(name), b"x")])


def test_footer_has_its_size_at_any_offset() -> None:
    assert {len(footer(at)) for at in (0, 1, 1 << 40, (1 << 63) - 1)} == {FOOTER_SIZE}
