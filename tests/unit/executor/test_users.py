"""Users by name and number, from files that an image controls."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from boxwright.executor.errors import UserLookupError
from boxwright.executor.users import User, find_group, find_uid, find_user

PASSWD = """root:x:0:0::/root:/bin/sh
# a comment
bob:x:1001:1002::/home/bob:/bin/sh
broken
1234:x:5:6::/:/bin/sh
+nis
"""
GROUP = "root:x:0:\nbob:x:1002:\nwheel:x:10:root,bob\nstaff:x:50:bob\n"


def look_up(root: Path, text: str) -> User:
    fd = os.open(root, os.O_PATH)
    try:
        return find_user(fd, text)
    finally:
        os.close(fd)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(PASSWD)
    (tmp_path / "etc/group").write_text(GROUP)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "user"),
    [
        ("", User(0, 0, (10,))),
        ("0", User(0, 0, (10,))),
        ("root", User(0, 0, (10,))),
        ("bob", User(1001, 1002, (10, 50))),
        ("1001", User(1001, 1002, (10, 50))),
        ("bob:staff", User(1001, 50)),
        ("bob:7", User(1001, 7)),
        ("77", User(77, 0)),
        ("77:88", User(77, 88)),
        ("root:root", User(0, 0)),
        ("77:staff", User(77, 50)),
        ("4294967295:0", User(4294967295, 0)),
        ("1234", User(1234, 0)),
        ("+77:staff:x", User(77, 50)),
        ("0:0:0", User(0, 0)),
        (":7", User(0, 7)),
    ],
)
def test_lookup(root: Path, text: str, user: User) -> None:
    assert look_up(root, text) == user


@pytest.mark.parametrize("text", ["nobody", "bob:nogroup", "4294967296:0", "bob:-1"])
def test_unknown_names(root: Path, text: str) -> None:
    with pytest.raises(UserLookupError):
        look_up(root, text)


@pytest.mark.parametrize("text", ["-1", "2147483648", "bob:-1", "9" * 5000])
def test_numbers_that_are_no_ids(root: Path, text: str) -> None:
    with pytest.raises(UserLookupError, match="must be in range 0-2147483647"):
        look_up(root, text)


def test_numbers_need_no_files(tmp_path: Path) -> None:
    assert look_up(tmp_path, "5:6") == User(5, 6)
    assert look_up(tmp_path, "5") == User(5, 0)
    assert look_up(tmp_path, "") == User()
    with pytest.raises(UserLookupError):
        look_up(tmp_path, "bob")


def test_links_stay_inside_the_root(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "passwd"
    outside.write_text("evil:x:666:666::/:/bin/sh\n")
    (root / "etc/passwd").unlink()
    (root / "etc/passwd").symlink_to(outside)
    with pytest.raises(UserLookupError):
        look_up(root, "evil")


def test_odd_files_are_refused(root: Path) -> None:
    (root / "etc/passwd").unlink()
    os.mkfifo(root / "etc/passwd")
    with pytest.raises(UserLookupError):
        look_up(root, "bob")
    (root / "etc/passwd").unlink()
    with (root / "etc/passwd").open("wb") as file:
        file.truncate((10 << 20) + 1)
    with pytest.raises(UserLookupError):
        look_up(root, "bob")


def test_single_lookups(root: Path) -> None:
    fd = os.open(root, os.O_PATH)
    try:
        assert find_uid(fd, "bob") == (1001, 1002)
        assert find_group(fd, "wheel") == 10
        assert find_group(fd, "123") == 123
    finally:
        os.close(fd)
