"""Archives of other programs are understood; malformed ones are typed errors."""

import io
import shutil
import subprocess
import tarfile

import pytest

from boxwright.fsutil.tar import (
    Entry,
    EntryType,
    TarFormatError,
    TarLimitError,
    TarReader,
    TarWriter,
    pack_entry,
)
from boxwright.fsutil.tar.header import pack_pax


def members(data, **limits):
    reader = TarReader(io.BytesIO(data), **limits)
    return [(entry, reader.read()) for entry in reader]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_reads_what_the_standard_library_writes(form):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for name, content in (("a", b"1"), ("d" * 60 + "/" + "n" * 60, b"22"), ("e", b"")):
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.uname = len(content), 77, "root"
            tar.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("l")
        link.type, link.linkname = tarfile.SYMTYPE, "t" * 90
        tar.addfile(link)
    found = members(out.getvalue())
    assert [entry.name for entry, _ in found] == [b"a", b"d" * 60 + b"/" + b"n" * 60, b"e", b"l"]
    assert [content for _, content in found] == [b"1", b"22", b"", b""]
    assert found[0][0].mtime == 77
    assert found[0][0].uname == b"root"
    assert found[3][0].linkname == b"t" * 90


def test_gnu_long_names_and_large_numbers():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        info = tarfile.TarInfo("n" * 300)
        info.uid, info.mtime = 1 << 40, -5
        tar.addfile(info)
        link = tarfile.TarInfo("l")
        link.type, link.linkname = tarfile.LNKTYPE, "t" * 300
        tar.addfile(link)
    (first, _), (second, _) = members(out.getvalue())
    assert (first.name, first.uid, first.mtime) == (b"n" * 300, 1 << 40, -5)
    assert second.linkname == b"t" * 300


def test_pax_global_header_applies_to_all_that_follow():
    out = io.BytesIO()
    with tarfile.open(
        fileobj=out, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"uname": "glob"}
    ) as tar:
        tar.addfile(tarfile.TarInfo("a"))
        tar.addfile(tarfile.TarInfo("b"))
    assert [entry.uname for entry, _ in members(out.getvalue())] == [b"glob", b"glob"]


def test_pax_times_have_nanoseconds():
    data = pack_pax(b"f", {b"mtime": b"-1.25"}) + pack_entry(Entry(b"f")) + bytes(1024)
    ((entry, _),) = members(data)
    assert (entry.mtime, entry.mtime_nsec) == (-2, 750_000_000)


def test_v7_folder_is_known_by_its_slash():
    block = bytearray(pack_entry(Entry(b"d/", b"0")))
    block[156] = 0
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    ((entry, _),) = members(bytes(block) + bytes(1024))
    assert entry.type == EntryType.DIRECTORY


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs GNU tar")
@pytest.mark.parametrize(
    "options",
    [
        ["--format=gnu"],
        ["--format=pax", "--sparse-version=0.0"],
        ["--format=pax", "--sparse-version=0.1"],
        ["--format=pax", "--sparse-version=1.0"],
    ],
)
def test_sparse_files_of_gnu_tar(tmp_path, options):
    path = tmp_path / "holes"
    with path.open("wb") as file:
        for at in range(60):
            file.seek(at * 300_000)
            file.write(b"%03d" % at * 50)
        file.truncate(20_000_000)
    (tmp_path / "next").write_bytes(b"next")
    archive = subprocess.run(
        ["tar", "-C", tmp_path, "--sparse", *options, "-cf", "-", "holes", "next"],
        check=True,
        capture_output=True,
    ).stdout
    assert len(archive) < 2_000_000
    reader = TarReader(io.BytesIO(archive))
    entry = reader.next()
    assert (entry.name, entry.size) == (b"holes", 20_000_000)
    assert entry.pax.keys() <= {b"ctime"}
    target = tmp_path / "out"
    with target.open("wb") as out:
        reader.extract_to(out.fileno())
    assert target.read_bytes() == path.read_bytes()
    assert target.stat().st_blocks * 512 < 2_000_000
    assert (reader.next().name, reader.read()) == (b"next", b"next")
    assert reader.next() is None


def archive(*entries):
    pieces = []
    tar = TarWriter(pieces.append)
    for entry, content in entries:
        tar.add(entry, content)
    tar.close()
    return b"".join(pieces)


def test_content_not_taken_is_skipped():
    data = archive((Entry(b"a"), b"x" * 3_000_000), (Entry(b"b"), b"y"))
    reader = TarReader(io.BytesIO(data))
    assert reader.next().name == b"a"
    assert next(reader.chunks())[:1] == b"x"
    assert reader.next().name == b"b"
    assert reader.read() == b"y"


class Dribble(io.BytesIO):
    def read(self, size=-1, /):
        return super().read(min(size, 7))


def test_short_reads_are_no_problem():
    data = archive((Entry(b"a"), b"x" * 2000), (Entry(b"n" * 150), b"y"))
    reader = TarReader(Dribble(data))
    assert [(entry.name, reader.read()) for entry in reader] == [
        (b"a", b"x" * 2000),
        (b"n" * 150, b"y"),
    ]


def broken(**changes):
    block = bytearray(pack_entry(Entry(b"f", size=4)))
    for start, value in changes.values():
        block[start : start + len(value)] = value
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + b"data" + bytes(508 + 1024)


@pytest.mark.parametrize("padding", [0, 1, 507, 508])
def test_the_last_file_may_lack_its_padding_and_the_end_marks(padding):
    data = pack_entry(Entry(b"f", size=4)) + b"data" + bytes(padding)
    reader = TarReader(io.BytesIO(data))
    assert reader.next().name == b"f"
    assert reader.read() == b"data"
    assert reader.next() is None


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"\1" * 512, "checksum"),
        (pack_entry(Entry(b"f", size=4)), "cut off"),
        (pack_entry(Entry(b"f", size=4)) + b"dat", "cut off"),
        (pack_entry(Entry(b"f"))[:300], "cut off"),
        (broken(size=(124, b"-0000000004\0")), "octal"),
        (broken(size=(124, b"0x12\0")), "octal"),
        (broken(size=(124, b"\xff" * 12)), "negative"),
        (broken(kind=(156, b"Z")), "unsupported entry type"),
        (pack_pax(b"f", {b"path": b"g"}) + bytes(1024), "no entry after it"),
        (pack_pax(b"f", {b"path": b"a\0b"}) + pack_entry(Entry(b"f")), "NUL"),
        (pack_pax(b"f", {b"size": b"99999999999999999999"}) + pack_entry(Entry(b"f")), "number"),
        (pack_pax(b"f", {b"mtime": b"yesterday"}) + pack_entry(Entry(b"f")), "time"),
        (pack_pax(b"f", {b"GNU.sparse.map": b"0,5,3,9"}) + pack_entry(Entry(b"f")), "sparse"),
        (bytes(512) + pack_entry(Entry(b"f")), "zero block"),
    ],
)
def test_malformed_archives_are_typed_errors(data, problem):
    with pytest.raises(TarFormatError) as caught:
        members(data)
    assert problem in caught.value.detail


def test_malformed_pax_records():
    good = pack_pax(b"f", {b"path": b"goodname"})
    for bad in (b"x", b"99 path=goodname\n", b"5 path=goodname\n"):
        body = bad.ljust(len(b"17 path=goodname\n"), b"\n")
        data = good[:512] + body + good[512 + len(body) :] + pack_entry(Entry(b"f"))
        with pytest.raises(TarFormatError):
            members(data)


def test_limits():
    data = archive(*((Entry(b"%d" % number), b"12345") for number in range(20)))
    with pytest.raises(TarLimitError):
        members(data, max_entries=10)
    with pytest.raises(TarLimitError):
        members(data, max_bytes=80)
    huge = broken(kind=(156, b"x"), size=(124, b"77777777777\0"))
    with pytest.raises(TarLimitError):
        members(huge)
