"""Archives on a real file system: what is legal survives, what is hostile stays inside."""

import io
import os
import stat

import pytest

from boxwright.errors import BoxwrightError
from boxwright.fsutil.compress import Compression, open_compressor
from boxwright.fsutil.tar import Entry, EntryType, TarFormatError, TarWriter
from boxwright.fsutil.unpack import ApplyError, apply_layer, clamp
from boxwright.fsutil.whiteouts import WhiteoutError

pytestmark = [
    pytest.mark.root,
]

FILE, DIR, LINK, SYMLINK = (
    EntryType.FILE,
    EntryType.DIRECTORY,
    EntryType.HARD_LINK,
    EntryType.SYMLINK,
)


def archive(*members):
    pieces = []
    tar = TarWriter(pieces.append)
    for member in members:
        entry, content = member if isinstance(member, tuple) else (member, b"")
        tar.add(entry, content)
    tar.close()
    return b"".join(pieces)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "outside").write_text("secret")
    path = tmp_path / "root"
    path.mkdir()
    return path


def apply(root, *members, **options):
    return apply_layer(io.BytesIO(archive(*members)), root, **options)


def tree(root):
    return sorted(
        os.path.relpath(os.path.join(folder, name), root)
        for folder, folders, files in os.walk(root)
        for name in folders + files
    )


def test_everything_legal_arrives_as_it_was(root):
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    result = apply(
        root,
        Entry(b"d/", DIR, 0o2750, 1, 2, mtime=1_000_000_000),
        (Entry(b"d/f", FILE, 0o4711, 3, 4, mtime=1_100_000_000, mtime_nsec=5), b"content"),
        Entry(b"d/hard", LINK, 0o4711, 3, 4, mtime=1_100_000_000, mtime_nsec=5, linkname=b"d/f"),
        Entry(b"d/sym", SYMLINK, 0o777, 5, 6, mtime=1_200_000_000, linkname=b"/absolute"),
        Entry(b"d/fifo", EntryType.FIFO, 0o600),
        Entry(b"d/null", EntryType.CHARACTER, 0o666, dev_major=1, dev_minor=3),
        Entry(b"d/disk", EntryType.BLOCK, 0o660, 0, 6, dev_major=8, dev_minor=1),
        (Entry(b"cap", FILE, 0o755, 7, 8, xattrs={"security.capability": capability}), b"x"),
        (Entry(b"n" * 255), b"long"),
        (Entry(b"bad\xff\xfeutf"), b"8"),
        Entry(b"sealed/", DIR, 0o000),
        (Entry(b"sealed/in", FILE, 0o000), b"y"),
    )
    assert result.entries == 12
    folder = (root / "d").stat()
    assert (stat.S_IMODE(folder.st_mode), folder.st_uid, folder.st_gid) == (0o2750, 1, 2)
    assert folder.st_mtime == 1_000_000_000
    file = (root / "d/f").stat()
    assert (stat.S_IMODE(file.st_mode), file.st_uid, file.st_gid) == (0o4711, 3, 4)
    assert file.st_mtime_ns == 1_100_000_000_000_000_005
    assert file.st_nlink == 2
    assert (root / "d/hard").stat().st_ino == file.st_ino
    link = (root / "d/sym").lstat()
    assert (link.st_uid, link.st_gid, link.st_mtime) == (5, 6, 1_200_000_000)
    assert os.readlink(root / "d/sym") == "/absolute"
    assert stat.S_ISFIFO((root / "d/fifo").stat().st_mode)
    assert (root / "d/null").stat().st_rdev == os.makedev(1, 3)
    assert stat.S_ISBLK((root / "d/disk").stat().st_mode)
    assert os.getxattr(root / "cap", "security.capability") == capability
    assert (root / ("n" * 255)).read_text() == "long"
    with open(os.fsencode(root) + b"/bad\xff\xfeutf", "rb") as file:
        assert file.read() == b"8"
    assert (root / "sealed/in").stat().st_mode & 0o777 == 0


def test_names_are_clamped_to_the_root(root):
    apply(
        root,
        (Entry(b"/abs"), b"1"),
        (Entry(b"../../up"), b"2"),
        (Entry(b"a/../../../b/./c"), b"3"),
        (Entry(b"./dot//double"), b"4"),
        Entry(b"/", DIR, 0o111),
        Entry(b"..", DIR),
    )
    assert tree(root) == ["abs", "b", "b/c", "dot", "dot/double", "up"]
    assert (root.parent / "outside").read_text() == "secret"
    assert sorted(os.listdir(root.parent)) == ["outside", "root"]


@pytest.mark.parametrize("target", [b"..", b"/", b"../..", b"/proc/self/root", b"x/../../.."])
def test_no_way_out_through_a_symbolic_link(root, target):
    apply(
        root,
        Entry(b"x/", DIR, 0o755),
        Entry(b"out", SYMLINK, linkname=target),
        (Entry(b"out/outside"), b"owned"),
    )
    assert (root.parent / "outside").read_text() == "secret"


def test_a_parent_that_is_a_link_inside_is_followed(root):
    apply(
        root,
        Entry(b"usr/lib/", DIR, 0o755),
        Entry(b"lib", SYMLINK, linkname=b"usr/lib"),
        (Entry(b"lib/so"), b"1"),
        Entry(b"loose", SYMLINK, linkname=b"/made/later"),
        (Entry(b"loose/file"), b"2"),
    )
    assert (root / "usr/lib/so").read_text() == "1"
    assert (root / "made/later/file").read_text() == "2"


def test_the_missing_target_of_a_link_is_made_in_a_layer_but_not_by_add(root):
    members = (
        Entry(b"link", SYMLINK, linkname=b"/there"),
        Entry(b"link/folder/", DIR, 0o755),
    )
    with pytest.raises(ApplyError, match="No such file"):
        apply(root, *members, whiteouts="keep")
    assert tree(root) == ["link"]
    apply(root, *members)
    assert tree(root) == ["link", "there", "there/folder"]


def test_a_link_is_replaced_not_written_through(root):
    apply(
        root,
        Entry(b"f", SYMLINK, linkname=b"../outside"),
        (Entry(b"f"), b"new"),
        Entry(b"d", SYMLINK, linkname=b".."),
        Entry(b"d/", DIR, 0o700),
    )
    assert (root / "f").read_text() == "new"
    assert not (root / "d").is_symlink()
    assert (root.parent / "outside").read_text() == "secret"


def test_attributes_never_reach_a_link_target(root):
    before = (root.parent / "outside").stat()
    apply(
        root,
        Entry(b"l", SYMLINK, 0o777, 9, 9, mtime=5, linkname=b"../outside"),
        Entry(b"h", LINK, 0o777, 9, 9, mtime=5, linkname=b"l"),
    )
    after = (root.parent / "outside").stat()
    assert (after.st_uid, after.st_mode, after.st_mtime_ns) == (
        before.st_uid,
        before.st_mode,
        before.st_mtime_ns,
    )
    assert (root / "h").is_symlink()


@pytest.mark.parametrize("target", [b"../outside", b"/../outside", b"..", b"", b"d"])
def test_hard_links_lead_nowhere_else(root, target):
    with pytest.raises(ApplyError):
        apply(root, Entry(b"d/", DIR, 0o755), Entry(b"h", LINK, linkname=target))
    assert (root.parent / "outside").stat().st_nlink == 1


def test_link_loops_are_an_error(root):
    with pytest.raises(ApplyError):
        apply(
            root,
            Entry(b"a", SYMLINK, linkname=b"b"),
            Entry(b"b", SYMLINK, linkname=b"a"),
            Entry(b"a/x"),
        )


def test_a_folder_that_becomes_a_loop_needs_no_times(root):
    apply(root, Entry(b"a/b/", DIR, 0o755), Entry(b"a", SYMLINK, linkname=b"a"))
    assert os.readlink(root / "a") == "a"


def test_a_file_is_no_parent(root):
    with pytest.raises(ApplyError) as caught:
        apply(root, Entry(b"f"), Entry(b"f/x"))
    assert "Not a directory" in str(caught.value)


def test_overlong_name_is_a_typed_error(root):
    with pytest.raises(ApplyError) as caught:
        apply(root, Entry(b"n" * 256))
    assert "File name too long" in str(caught.value)


def test_a_huge_sparse_file_takes_no_space(root):
    runs = b"1\n10737418239\n1\n"
    entry = Entry(
        b"s",
        size=513,
        pax={
            b"GNU.sparse.major": b"1",
            b"GNU.sparse.minor": b"0",
            b"GNU.sparse.name": b"huge",
            b"GNU.sparse.realsize": b"10737418240",
        },
    )
    data = runs.ljust(512, b"\0") + b"x"
    pieces = []
    tar = TarWriter(pieces.append)
    tar.add_header(entry)
    tar.write(data)
    tar.end_content(len(data))
    tar.close()
    apply_layer(io.BytesIO(b"".join(pieces)), root)
    info = (root / "huge").stat()
    assert info.st_size == 10 << 30
    assert info.st_blocks * 512 < 1 << 20


def test_overlay_attributes_of_an_archive_are_dropped(root):
    result = apply(
        root,
        Entry(
            b"d/",
            DIR,
            xattrs={"trusted.overlay.redirect": b"/etc", "user.overlay.opaque": b"y"},
        ),
    )
    assert os.listxattr(root / "d") == []
    assert len(result.ignored) == 2


# -- whiteouts -----------------------------------------------------------------------------


def is_mark(path):
    info = path.lstat()
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0


def test_overlay_whiteouts(root):
    apply(
        root,
        Entry(b".wh.gone"),
        Entry(b"d/", DIR, 0o755),
        Entry(b"d/.wh..wh..opq"),
        Entry(b"d/new"),
    )
    assert is_mark(root / "gone")
    assert os.getxattr(root / "d", "trusted.overlay.opaque") == b"y"
    assert tree(root) == ["d", "d/new", "gone"]


def test_rootless_opaque_mark(root):
    apply(root, Entry(b"d/.wh..wh..opq"), userxattr=True)
    assert os.getxattr(root / "d", "user.overlay.opaque") == b"y"


def test_whiteouts_never_hide_their_own_layer(root):
    apply(
        root,
        Entry(b".wh.a"),
        Entry(b"a/", DIR, 0o755),
        Entry(b"a/x"),
        Entry(b"b/", DIR, 0o755),
        Entry(b"b/x"),
        Entry(b".wh.b"),
        (Entry(b"c"), b"1"),
        Entry(b".wh.c"),
    )
    assert tree(root) == ["a", "a/x", "b", "b/x", "c"]
    for name in "ab":
        assert os.getxattr(root / name, "trusted.overlay.opaque") == b"y"
    assert (root / "c").read_text() == "1"


def test_plain_whiteouts_delete(root):
    apply(root, Entry(b"d/old"), Entry(b"d/sub/old"), Entry(b"gone/x"), Entry(b"keep"))
    apply(
        root,
        Entry(b"d/new"),
        Entry(b"d/sub/", DIR, 0o755),
        Entry(b"d/.wh..wh..opq"),
        Entry(b".wh.gone"),
        Entry(b".wh.never-there"),
        whiteouts="plain",
    )
    assert tree(root) == ["d", "d/new", "d/sub", "keep"]


def test_kept_whiteouts_are_files(root):
    apply(root, Entry(b".wh.x"), Entry(b".wh..wh..opq"), whiteouts="keep")
    assert tree(root) == [".wh..wh..opq", ".wh.x"]


@pytest.mark.parametrize("name", [b".wh.", b".wh..", b".wh...", b"d/.wh..."])
def test_whiteouts_of_dots_are_refused(root, name):
    with pytest.raises(WhiteoutError):
        apply(root, Entry(name))


def test_a_removed_folder_is_forgotten(root):
    apply(
        root,
        Entry(b"a/b/f"),
        Entry(b"a", SYMLINK, linkname=b"c"),
        Entry(b"c/b/", DIR, 0o755),
        Entry(b"a/b/g"),
    )
    assert tree(root) == ["a", "c", "c/b", "c/b/g"]


# -- options -------------------------------------------------------------------------------


def test_implied_folders_look_like_those_below(root, tmp_path):
    below = tmp_path / "below"
    (below / "etc/deep").mkdir(parents=True)
    os.chown(below / "etc", 11, 12)
    (below / "etc").chmod(0o750)
    os.setxattr(below / "etc", "user.mark", b"1")
    apply(root, Entry(b"etc/deep/f"), Entry(b"fresh/f"), parents=[below])
    info = (root / "etc").stat()
    assert (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)) == (11, 12, 0o750)
    assert os.getxattr(root / "etc", "user.mark") == b"1"
    assert stat.S_IMODE((root / "fresh").stat().st_mode) == 0o755


def test_one_owner_for_everything(root):
    apply(root, Entry(b"d/", DIR, uid=5), Entry(b"d/f", uid=6), owner=(20, 21))
    assert {(path.stat().st_uid, path.stat().st_gid) for path in (root / "d", root / "d/f")} == {
        (20, 21)
    }


def test_the_last_entry_says_who_owns_a_file(root):
    apply(
        root,
        Entry(b"d/", DIR, uid=5, gid=6),
        Entry(b"d/f", uid=7, gid=8),
        Entry(b"h", LINK, linkname=b"d/f"),
        Entry(b"d/", DIR),
    )
    for path in ("d", "d/f", "h"):
        info = (root / path).lstat()
        assert (info.st_uid, info.st_gid) == (0, 0), path


def test_no_owner_at_all(root):
    apply(root, Entry(b"f", uid=6, gid=7), same_owner=False)
    assert (root / "f").stat().st_uid == 0


def test_group_of_a_setgid_folder_is_not_inherited(root):
    apply(root, Entry(b"d/", DIR, 0o2755, 0, 50), Entry(b"d/f", FILE, 0o644))
    assert (root / "d/f").stat().st_gid == 0


def test_the_umask_changes_nothing(root):
    before = os.umask(0o077)
    try:
        apply(root, Entry(b"implied/f", FILE, 0o666), Entry(b"d/", DIR, 0o777))
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((root / name).stat().st_mode) for name in ("implied", "implied/f", "d")]
    assert modes == [0o755, 0o666, 0o777]


@pytest.mark.parametrize("algorithm", ["gzip", "zstd", "uncompressed"])
def test_diff_id_is_that_of_the_uncompressed_bytes(root, algorithm):
    data = archive((Entry(b"f"), b"x" * 5000)) + bytes(8192)
    packed = []
    compressor = open_compressor(Compression(algorithm), packed.append)
    compressor.write(data)
    compressor.close()
    result = apply_layer(io.BytesIO(b"".join(packed)), root)
    plain = apply_layer(io.BytesIO(data), root)
    assert result.diff_id == plain.diff_id
    assert (result.bytes, result.entries) == (5000, 1)


def test_a_truncated_archive_is_an_error(root):
    data = archive((Entry(b"f"), b"x" * 5000))
    with pytest.raises(TarFormatError):
        apply_layer(io.BytesIO(data[:3000]), root)


def test_errors_are_typed_for_many_broken_archives(root):
    data = archive(
        Entry(b"d/", DIR, 0o755),
        (Entry(b"d/f"), b"x" * 700),
        Entry(b"d/l", LINK, linkname=b"d/f"),
        Entry(b".wh.z"),
    )
    for position in range(0, 3 * 512, 7):
        broken = bytearray(data)
        broken[position] ^= 0x55
        target = root / str(position)
        target.mkdir()
        try:
            apply_layer(io.BytesIO(bytes(broken)), target)
        except BoxwrightError:
            pass
    assert (root.parent / "outside").read_text() == "secret"


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (b"a", b"a"),
        (b"a/", b"a"),
        (b"/a//b/", b"a/b"),
        (b"./a/./b", b"a/b"),
        (b"..", b""),
        (b"", b""),
        (b"a/..", b""),
        (b"a/../../..", b""),
        (b".hidden", b".hidden"),
        (b"a/.hidden", b"a/.hidden"),
    ],
)
def test_clamp(name, path):
    assert clamp(name) == path
