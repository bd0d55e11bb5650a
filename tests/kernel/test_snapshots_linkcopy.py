"""Copies by hard link: only where nobody can notice."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from boxwright.snapshots.linkcopy import Attributes, LinkCopier

pytestmark = pytest.mark.root


@pytest.fixture
def source(tmp_path) -> Path:
    root = tmp_path / "source"
    (root / "dir" / "sub").mkdir(parents=True)
    (root / "file").write_text("content")
    (root / "file").chmod(0o4755)
    os.setxattr(root / "file", "user.a", b"1")
    os.setxattr(root / "file", "trusted.overlay.origin", b"x")
    (root / "dir" / "one").write_text("1")
    os.link(root / "dir" / "one", root / "dir" / "two")
    os.symlink("file", root / "link")
    os.mkfifo(root / "fifo", 0o640)
    os.mknod(root / "dev", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    (root / "dir").chmod(0o2750)
    for path in (root / "file", root / "dir" / "one", root / "dir", root / "dev"):
        os.chown(path, 7, 8)
        os.utime(path, ns=(5, 6_000_000_007))
    (root / "file").chmod(0o4755)
    (root / "dir").chmod(0o2750)
    return root


@pytest.fixture
def target(tmp_path) -> Path:
    path = tmp_path / "target"
    path.mkdir()
    return path


def inode(path: Path) -> int:
    return path.lstat().st_ino


def test_an_unchanged_file_is_linked_once(source, target):
    copier = LinkCopier()
    copier.copy(source / "file", target / "first")
    copier.begin_copy()
    copier.copy(source / "file", target / "second")
    assert inode(target / "first") == inode(source / "file")
    assert inode(target / "second") not in {inode(source / "file"), inode(target / "first")}
    assert (target / "second").read_text() == "content"
    assert (copier.linked, copier.copied_bytes) == (1, 7)


@pytest.mark.parametrize(
    "want", [Attributes(owner=(1, 1)), Attributes(mode=0o600), Attributes(mtime_ns=0)]
)
def test_a_file_whose_attributes_change_is_copied_and_its_source_left_alone(source, target, want):
    before = (source / "file").lstat()
    LinkCopier().copy(source / "file", target / "f", want)
    after = (target / "f").lstat()
    assert after.st_ino != before.st_ino
    assert want.equal_to(after)
    now = (source / "file").lstat()
    assert (now.st_uid, now.st_mode, now.st_mtime_ns) == (
        before.st_uid,
        before.st_mode,
        before.st_mtime_ns,
    )


def test_attributes_that_are_wanted_and_there_already_do_not_prevent_a_link(source, target):
    want = Attributes(owner=(7, 8), mode=0o4755, mtime_ns=6_000_000_007)
    LinkCopier().copy(source / "file", target / "f", want)
    assert inode(target / "f") == inode(source / "file")


def test_a_tree_that_is_not_sealed_is_never_linked(source, target):
    copier = LinkCopier(sealed=False)
    copier.copy_tree(source, target)
    assert copier.linked == 0
    assert inode(target / "file") != inode(source / "file")
    # but hard links among themselves stay hard links
    assert inode(target / "dir" / "one") == inode(target / "dir" / "two")


def test_a_copy_has_everything_but_overlayfs_own_attributes(source, target):
    LinkCopier(sealed=False).copy_tree(source, target)
    for name in ("file", "dir", "dir/one", "link", "fifo", "dev"):
        old, new = (source / name).lstat(), (target / name).lstat()
        facts = ("st_mode", "st_uid", "st_gid", "st_mtime_ns", "st_rdev", "st_size")
        for fact in facts if not stat.S_ISDIR(old.st_mode) else facts[:4]:
            assert getattr(old, fact) == getattr(new, fact), (name, fact)
    assert os.listxattr(target / "file") == ["user.a"]
    assert os.readlink(target / "link") == "file"


def test_hard_links_of_the_source_stay_together_when_linked(source, target):
    LinkCopier().copy_tree(source / "dir", target / "dir")
    inodes = {inode(target / "dir" / "one"), inode(target / "dir" / "two")}
    assert inodes == {inode(source / "dir" / "one")}


def test_two_copies_of_one_source_are_two_files(source, target):
    copier = LinkCopier()
    copier.copy_tree(source / "dir", target / "a")
    copier.begin_copy()
    copier.copy_tree(source / "dir", target / "b")
    assert inode(target / "a" / "one") != inode(target / "b" / "one")
    assert inode(target / "b" / "one") == inode(target / "b" / "two")


def test_other_file_systems_are_copied_to(source):
    shm = Path("/dev/shm") / f"bw-linkcopy-{os.getpid()}"
    shm.mkdir()
    try:
        copier = LinkCopier()
        copier.copy(source / "file", shm / "f")
        assert copier.linked == 0
        assert (shm / "f").read_text() == "content"
        assert (shm / "f").lstat().st_mode == (source / "file").lstat().st_mode
    finally:
        for path in shm.iterdir():
            path.unlink()
        shm.rmdir()
