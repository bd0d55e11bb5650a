"""Reading out of a result: the tree is hostile, its links can't lead outside."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from boxwright.engine import reffiles
from boxwright.errors import InvalidInputError, NotFoundError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "dir").mkdir(parents=True)
    (root / "dir/file").write_bytes(b"0123456789")
    (root / "link").symlink_to("dir/file")
    (root / "absolute").symlink_to("/dir/file")
    (root / "escape").symlink_to("../../../../../../etc/hostname")
    (tmp_path / "secret").write_text("outside")
    (root / "up").symlink_to("../secret")
    os.mkfifo(root / "fifo")
    return root


def test_read(tree: Path) -> None:
    assert reffiles.read_file(tree, "dir/file") == b"0123456789"
    assert reffiles.read_file(tree, "/dir/file", offset=2, length=3) == b"234"
    assert reffiles.read_file(tree, "link") == b"0123456789"
    assert reffiles.read_file(tree, "absolute") == b"0123456789"


@pytest.mark.parametrize("path", ["up", "escape", "../secret", "dir/../../secret", "nothing"])
def test_nothing_outside_can_be_read(tree: Path, path: str) -> None:
    with pytest.raises(NotFoundError):
        reffiles.read_file(tree, path)


@pytest.mark.parametrize("path", ["fifo", "dir", "/"])
def test_only_regular_files_are_read(tree: Path, path: str) -> None:
    with pytest.raises(InvalidInputError):
        reffiles.read_file(tree, path)


def test_read_dir_and_stat(tree: Path) -> None:
    names = [entry.path for entry in reffiles.read_dir(tree, "/")]
    assert names == ["absolute", "dir", "escape", "fifo", "link", "up"]
    assert [e.path for e in reffiles.read_dir(tree, "/", "*i*")] == ["dir", "fifo", "link"]
    info = reffiles.stat_file(tree, "link")
    assert info.linkname == "dir/file"
    assert info.mode & (1 << 27)
    assert reffiles.stat_file(tree, "dir/file").size == 10
    assert reffiles.stat_file(tree, "/").mode & (1 << 31)
    with pytest.raises(NotFoundError):
        reffiles.stat_file(tree, "dir/none")
    with pytest.raises(NotFoundError):
        reffiles.read_dir(tree, "none")
