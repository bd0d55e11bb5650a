"""Where a path would lie, against a chrooted process as the judge."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from boxwright.executor import rootpath

PARTS = ["a", "b", "file", "link", "up", "abs", "loop", "..", ".", "", "missing"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    base = tmp_path / "root"
    (base / "a/b").mkdir(parents=True)
    (base / "a/file").write_text("")
    (base / "file").write_text("")
    (base / "link").symlink_to("a/b")
    (base / "a/up").symlink_to("../../../..")
    (base / "a/b/abs").symlink_to("/a")
    (base / "abs").symlink_to("/missing/deep")
    (base / "loop").symlink_to("loop")
    (tmp_path / "outside").mkdir()
    return base


def resolve(root: Path, path: str, **options: bool) -> str:
    fd = rootpath.open_root(root)
    try:
        return os.fsdecode(rootpath.resolve(fd, os.fsencode(path), **options))
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/", ""),
        ("", ""),
        ("../../..", ""),
        ("a//b/./", "a/b"),
        ("link/x", "a/b/x"),
        ("a/up/../outside", "outside"),
        ("link/abs/b", "a/b"),
        ("abs/more", "missing/deep/more"),
        ("missing/../a", "a"),
        ("new/sub", "new/sub"),
    ],
)
def test_resolve(root: Path, path: str, found: str) -> None:
    assert resolve(root, path) == found


def test_the_last_link_may_be_kept(root: Path) -> None:
    assert resolve(root, "link", follow_last=False) == "link"
    assert resolve(root, "link/abs", follow_last=False) == "a/b/abs"


@pytest.mark.parametrize(
    ("path", "number"), [("loop", errno.ELOOP), ("file/x", errno.ENOTDIR), ("x" * 300, None)]
)
def test_errors(root: Path, path: str, number: int | None) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011
        resolve(root, path)
    assert caught.value.errno == (number or errno.ENAMETOOLONG)


ORACLE = """
import os, sys
os.chroot(sys.argv[1]); os.chdir("/")
for line in sys.stdin.buffer.read().split(b"\\0"):
    try:
        fd = os.open(line or b".", os.O_PATH)
        print(os.readlink(f"/proc/self/fd/{fd}") if False else os.fstat(fd).st_ino)
    except OSError as exc:
        print(-exc.errno)
"""


@pytest.mark.root
@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    deadline=None,
)
@given(parts=st.lists(st.sampled_from(PARTS), min_size=1, max_size=7), absolute=st.booleans())
def test_existing_paths_are_those_of_a_chroot(
    root: Path, parts: list[str], absolute: bool
) -> None:
    path = ("/" if absolute else "") + "/".join(parts)
    done = subprocess.run(
        [sys.executable, "-SIc", ORACLE, str(root)],
        input=path.encode(),
        stdout=subprocess.PIPE,
        check=True,
    )
    answer = int(done.stdout.split()[0])
    if answer > 0:
        assert (root / resolve(root, path)).lstat().st_ino == answer
    else:
        try:
            place = root / resolve(root, path)
        except OSError:
            return
        assert root in (place, *place.parents)
        assert ".." not in place.parts
