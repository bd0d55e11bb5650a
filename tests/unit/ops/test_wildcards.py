"""Wildcards in paths, as Go's filepath.Match reads them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from boxwright.ops.errors import SourceMissingError
from boxwright.ops.fileop import clean_path
from boxwright.ops.wildcards import contains_wildcards, expand


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a/x.txt", "a/y.txt", "b/x.txt", "b/c/x.txt", "z[1].txt", ".hidden", "a*b"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "out").symlink_to("/etc")
    return tmp_path


def matches(root: Path, pattern: str, *, follow: bool = False) -> list[str]:
    fd = os.open(root, os.O_PATH)
    try:
        return expand(fd, str(root), pattern, follow_links=follow)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("/a/*.txt", ["/a/x.txt", "/a/y.txt"]),
        ("/*/x.txt", ["/a/x.txt", "/b/x.txt"]),
        ("/?", ["/a", "/b"]),
        ("/[ab]/x.*", ["/a/x.txt", "/b/x.txt"]),
        ("/[^a]/x.txt", ["/b/x.txt"]),
        ("/*/*/x.txt", ["/b/c/x.txt"]),
        ("/z\\[1].txt*", ["/z[1].txt"]),
        ("/a\\**", ["/a*b"]),
        ("/.h*", ["/.hidden"]),
        ("/nothing*", []),
        ("/a/x.txt/*", []),
        ("/link/*.txt", ["/a/x.txt", "/a/y.txt"]),
        ("/[", []),
        ("/[]a]*", []),
        ("/b/../a/x*", ["/a/x.txt"]),
    ],
)
def test_expand(root: Path, pattern: str, found: list[str]) -> None:
    assert matches(root, pattern, follow=True) == found


def test_plain_paths_are_not_looked_up(root: Path) -> None:
    assert matches(root, "/nothing") == ["/nothing"]


def test_wildcards_are_told_from_escaped_ones() -> None:
    assert contains_wildcards("a*")
    assert contains_wildcards("[a]")
    assert not contains_wildcards("a\\*\\?\\[")
    assert contains_wildcards("\\\\*")


@pytest.mark.parametrize(
    ("path", "cleaned"),
    [
        ("", "/"),
        ("/", "/"),
        (".", "/"),
        ("/.", "/."),
        ("a/", "/a/"),
        ("a//b/..", "/a"),
        ("a/b/.", "/a/b/."),
        ("../x", "/x"),
        ("./", "/"),
    ],
)
def test_the_end_of_a_path_keeps_its_meaning(path: str, cleaned: str) -> None:
    assert clean_path(path) == cleaned


def test_the_folder_before_a_wildcard_must_exist(root: Path) -> None:
    with pytest.raises(SourceMissingError):
        matches(root, "/missing/*")


def test_a_link_that_is_not_followed_is_not_entered(root: Path) -> None:
    """It may lead out of the root: the machine's own files must not be listed."""
    assert matches(root, "/out/pass*") == []
    assert matches(root, "/link/*") == []
