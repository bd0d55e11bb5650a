"""Anything that can be written is read back; anything at all is either read or refused."""

import io
import string
import tarfile

from hypothesis import given, settings
from hypothesis import strategies as st

from boxwright.errors import BoxwrightError
from boxwright.fsutil.compress import Compression, open_compressor, open_decompressor
from boxwright.fsutil.tar import Entry, EntryType, TarReader, TarWriter

segments = st.binary(min_size=1, max_size=120).map(
    lambda raw: raw.replace(b"\0", b"x").replace(b"/", b"y")
)
paths = st.lists(segments, min_size=1, max_size=4).map(b"/".join)
xattrs = st.dictionaries(
    st.text(string.ascii_lowercase + ".", min_size=1, max_size=10),
    st.binary(min_size=1, max_size=50),
    max_size=2,
)


@st.composite
def entries(draw):
    kind = draw(st.sampled_from([EntryType.FILE, EntryType.SYMLINK, EntryType.HARD_LINK]))
    entry = Entry(
        draw(paths),
        kind,
        draw(st.integers(0, 0o7777)),
        draw(st.integers(0, (1 << 32) - 2)),
        draw(st.integers(0, (1 << 32) - 2)),
        0,
        draw(st.integers(-(1 << 40), 1 << 40)),
        draw(st.sampled_from([0, 0, 1, 999_999_999, 250_000_000])),
        xattrs=draw(xattrs),
    )
    if kind != EntryType.FILE:
        entry.linkname = draw(paths)
    content = draw(st.binary(max_size=1500)) if kind == EntryType.FILE else b""
    return entry, content


def write(members):
    pieces = []
    tar = TarWriter(pieces.append)
    for entry, content in members:
        tar.add(entry, content)
    tar.close()
    return b"".join(pieces)


@settings(deadline=None)
@given(st.lists(entries(), max_size=5))
def test_what_is_written_is_read_back(members):
    reader = TarReader(io.BytesIO(write(members)))
    found = [(entry, reader.read()) for entry in reader]
    assert len(found) == len(members)
    for (got, got_content), (entry, content) in zip(found, members, strict=True):
        assert got_content == content
        for field in ("name", "type", "mode", "uid", "gid", "size", "mtime", "mtime_nsec"):
            assert getattr(got, field) == getattr(entry, field), field
        assert got.linkname == entry.linkname
        assert got.xattrs == entry.xattrs


@settings(deadline=None)
@given(st.lists(entries(), min_size=1, max_size=3))
def test_the_standard_library_reads_the_same(members):
    data = write(members)
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as tar:
        names = [info.name.encode("utf-8", "surrogateescape") for info in tar]
    assert len(names) == len(members)
    for name, (entry, _) in zip(names, members, strict=True):
        assert name.rstrip(b"/") == entry.name.rstrip(b"/")


@settings(deadline=None)
@given(st.lists(entries(), min_size=1, max_size=3), st.data())
def test_a_damaged_archive_is_read_or_refused(members, data):
    archive = bytearray(write(members))
    for _ in range(data.draw(st.integers(1, 6))):
        position = data.draw(st.integers(0, len(archive) - 1))
        archive[position] = data.draw(st.integers(0, 255))
    del archive[data.draw(st.integers(0, len(archive))) :]
    reader = TarReader(io.BytesIO(bytes(archive)), max_bytes=1 << 20)
    try:
        for _ in reader:
            for _piece in reader.chunks():
                pass
    except BoxwrightError:
        pass


@settings(deadline=None)
@given(
    st.binary(max_size=3000),
    st.integers(1, 1200),
    st.lists(st.integers(1, 1 << 21), min_size=1, max_size=12),
    st.sampled_from(
        [Compression("gzip"), Compression("gzip", 6), Compression("zstd"), Compression("zstd", 1)]
    ),
)
def test_compressed_bytes_depend_on_the_input_only(seed, repeat, cuts, compression):
    data = seed * repeat

    def compress(threads, sizes):
        out = []
        compressor = open_compressor(compression, out.append, threads=threads)
        at = 0
        while at < len(data):
            size = sizes[at % len(sizes)]
            compressor.write(data[at : at + size])
            at += size
        compressor.close()
        return b"".join(out)

    whole = compress(1, [len(data) or 1])
    assert compress(2, cuts) == whole
    assert compress(4, cuts[::-1]) == whole
    kind, plain = open_decompressor(io.BytesIO(whole))
    assert kind == compression.algorithm
    back = []
    while piece := plain.read(1000):
        back.append(piece)
    assert b"".join(back) == data
