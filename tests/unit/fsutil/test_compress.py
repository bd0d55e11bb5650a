"""Compressed streams are readable by others, and corrupt ones are typed errors."""

import bz2
import gzip
import io
import lzma
import random
import zlib
from pathlib import Path

import pytest
import zstandard

from boxwright.errors import InvalidInputError
from boxwright.fsutil.compress import (
    GZIP_BLOCK,
    CompressedDataError,
    Compression,
    compressor_version,
    detect,
    open_compressor,
    open_decompressor,
)

TEXT = b"".join(b"line %d of a text that repeats itself\n" % number for number in range(60_000))


def compress(compression, data=TEXT, **options):
    out = []
    compressor = open_compressor(compression, out.append, **options)
    compressor.write(data)
    compressor.close()
    return b"".join(out)


def decompress(data):
    kind, stream = open_decompressor(io.BytesIO(data))
    pieces = []
    while piece := stream.read(4096):
        pieces.append(piece)
    return kind, b"".join(pieces)


@pytest.mark.parametrize("level", [None, 0, 1, 2, 3, 4, 6, 9])
@pytest.mark.parametrize("size", [0, 1, GZIP_BLOCK - 1, GZIP_BLOCK, GZIP_BLOCK + 1, len(TEXT)])
def test_gzip_is_read_by_zlib(level, size):
    packed = compress(Compression("gzip", level), TEXT[:size])
    assert gzip.decompress(packed) == TEXT[:size]
    assert packed[3:10] == b"\0\0\0\0\0\0\xff"


NOISE = random.Random(1).randbytes(3 * GZIP_BLOCK)
MIXES = {
    "noise": NOISE,
    "noise-then-text": NOISE[:1_500_000] + TEXT,
    "text-then-noise": TEXT[:1_500_000] + NOISE,
    "in-turns": b"".join(
        NOISE[at : at + 100_000] + TEXT[at : at + 150_000] for at in range(0, 2_000_000, 100_000)
    ),
}


@pytest.mark.parametrize("name", list(MIXES))
def test_what_cannot_be_compressed_costs_nothing_but_the_rest_is(name):
    data = MIXES[name]
    packed = compress(Compression("gzip"), data)
    assert gzip.decompress(packed) == data
    assert packed == compress(Compression("gzip"), data, threads=1)
    assert len(packed) <= len(compress(Compression("gzip", 2), data)) * 1.001
    assert len(packed) < len(data) * 1.001


def test_more_effort_makes_less_of_it():
    """On programs, as layers have them."""
    sources = sorted(Path(random.__file__).parent.glob("*.py"))
    data = b"".join(path.read_bytes() for path in sources)
    assert len(data) > 2 * GZIP_BLOCK
    sizes = [len(compress(Compression("gzip", level), data)) for level in range(4, 10)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0] < len(compress(Compression("gzip"), data))
    # zlib's output is a little smaller than that of Go's gzip
    assert sizes[2] < len(zlib.compress(data, 6)) * 1.03


@pytest.mark.parametrize("level", [None, 1, 19, 22])
def test_zstd_is_read_by_libzstd(level):
    packed = compress(Compression("zstd", level), TEXT[:300_000])
    with zstandard.ZstdDecompressor().stream_reader(packed) as reader:
        assert reader.read() == TEXT[:300_000]


def test_uncompressed_is_passed_on():
    assert compress(Compression("uncompressed")) == TEXT


def test_unknown_algorithm():
    with pytest.raises(InvalidInputError):
        Compression("lzma")


def test_version_names_library_and_level():
    assert compressor_version(Compression("gzip")).startswith("gzip/isal-")
    assert compressor_version(Compression("gzip", 6)).startswith("gzip/libdeflate-")
    assert compressor_version(Compression("zstd", 7)).endswith("/7")
    assert compressor_version(Compression("uncompressed")) == "uncompressed"


@pytest.mark.parametrize(
    ("kind", "packed"),
    [
        ("gzip", gzip.compress(TEXT)),
        ("gzip", gzip.compress(TEXT[:1000]) + gzip.compress(TEXT[1000:]) + bytes(600)),
        ("zstd", zstandard.compress(TEXT)),
        ("zstd", zstandard.compress(TEXT[:1000]) + zstandard.compress(TEXT[1000:])),
        ("bzip2", bz2.compress(TEXT)),
        ("xz", lzma.compress(TEXT)),
        ("uncompressed", TEXT),
        ("uncompressed", b""),
        ("gzip", gzip.compress(b"")),
    ],
    # said by hand: a packed text would carry the time of its making into the test's name
    ids=[
        "gzip",
        "gzip-members-and-padding",
        "zstd",
        "zstd-frames",
        "bzip2",
        "xz",
        "uncompressed",
        "empty",
        "gzip-of-nothing",
    ],
)
def test_everything_is_detected_and_read(kind, packed):
    expected = b"" if len(packed) < 100 and kind != "bzip2" else TEXT
    assert decompress(packed) == (kind, expected)


def test_skippable_zstd_frame_is_zstd():
    assert detect(b"\x50\x2a\x4d\x18\x00\x00") == "zstd"


@pytest.mark.parametrize(
    "packed",
    [gzip.compress(TEXT), compress(Compression("zstd")), bz2.compress(TEXT), lzma.compress(TEXT)],
    ids=["gzip", "zstd", "bzip2", "xz"],
)
@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_damaged_data_is_a_typed_error(packed, damage):
    if damage == "cut":
        broken = packed[: len(packed) // 2]
    else:
        middle = len(packed) // 2
        broken = packed[:middle] + bytes(40) + packed[middle + 40 :]
    with pytest.raises(CompressedDataError):
        decompress(broken)


def test_a_bomb_is_read_in_bounded_pieces():
    packed = gzip.compress(bytes(50 << 20))
    _, stream = open_decompressor(io.BytesIO(packed))
    largest = 0
    while piece := stream.read(1 << 20):
        largest = max(largest, len(piece))
    assert largest <= 4 << 20
