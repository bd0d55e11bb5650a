"""Whom ``USER`` means: names and numbers against the image's own passwd and group files.

The files are read inside the root file system, so a link in the image can't lead outside it,
and only so far as a sane file reaches.
"""

from __future__ import annotations

import errno
import os
import re
import stat

from boxwright.core.dataclass import dataclass
from boxwright.executor.errors import UserLookupError
from boxwright.linux.files import openat2_in_root

_MAX_FILE_BYTES = 10 << 20
_MAX_ID = 0xFFFF_FFFF
_MAX_LOOKED_UP = 0x7FFF_FFFF
_MAX_DIGITS = 20


@dataclass(frozen=True, slots=True)
class User:
    """Numbers in the step's own view."""

    uid: int = 0
    gid: int = 0
    additional_gids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Passwd:
    name: str
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class _Group:
    name: str
    gid: int
    members: frozenset[str]


def find_user(root_fd: int, text: str) -> User:
    """Return the user that ``text`` (``user[:group]``, names or numbers) means in ``root_fd``.

    Numbers need no files. Without a group the user's own and its supplementary groups apply;
    an empty text is root, whatever the files say.

    Raises:
        UserLookupError: no such user or group, or the files can't be trusted.
    """
    if not text:
        try:
            return _look_up(root_fd, "0")
        except UserLookupError:
            return User()
    user_part, separator, group_part = text.partition(":")
    if separator:
        uid, gid = _number(user_part, root=True), _number(group_part, root=True)
        if uid is not None and gid is not None:
            return User(uid, gid)
    return _look_up(root_fd, text)


def _number(text: str, *, root: bool = False) -> int | None:
    if root and text == "root":
        return 0
    if text.isascii() and text.isdigit() and int(text) <= _MAX_ID:
        return int(text)
    return None


def _looked_up_number(text: str) -> int | None:
    """Return the number that a part of ``user[:group]`` is; upstream's look-up takes fewer."""
    if not re.fullmatch(r"[+-]?[0-9]+", text):
        return None
    if len(text) > _MAX_DIGITS or not 0 <= int(text) <= _MAX_LOOKED_UP:
        raise UserLookupError(f"uids and gids must be in range 0-{_MAX_LOOKED_UP}")
    return int(text)


def _look_up(root_fd: int, text: str) -> User:
    user_part, group_part, *_ = *text.split(":"), ""
    number, group_number = map(_looked_up_number, (user_part, group_part))
    entry = None
    for candidate in _read_passwd(root_fd):
        if (candidate.uid == number) if number is not None else (candidate.name == user_part):
            entry = candidate
            break
    if entry is None and number is None and user_part:
        raise UserLookupError(
            f"unable to find user {user_part}: no matching entries in passwd file",
            hint="create the user in an earlier step, or use a number",
        )
    uid, gid = (entry.uid, entry.gid) if entry else (number or 0, 0)
    if group_part:
        found = group_number if group_number is not None else find_group(root_fd, group_part)
        return User(uid, found)
    if entry is None:
        return User(uid, gid)
    extra = tuple(g.gid for g in _read_group(root_fd) if entry.name in g.members)
    return User(uid, gid, extra)


def find_group(root_fd: int, text: str) -> int:
    """Return the number of the group that ``text`` names.

    Raises:
        UserLookupError: there is no such group.
    """
    number = _number(text)
    if number is not None:
        return number
    for group in _read_group(root_fd):
        if group.name == text:
            return group.gid
    raise UserLookupError(
        f"unable to find group {text}: no matching entries in group file",
        hint="create the group in an earlier step, or use a number",
    )


def find_uid(root_fd: int, name: str) -> tuple[int, int]:
    """Return number and primary group of the user called ``name``.

    Raises:
        UserLookupError: there is no such user.
    """
    for entry in _read_passwd(root_fd):
        if entry.name == name:
            return entry.uid, entry.gid
    raise UserLookupError(f"unable to find user {name}: no matching entries in passwd file")


def _read_passwd(root_fd: int) -> list[_Passwd]:
    found = []
    for fields in _read_colon_file(root_fd, "/etc/passwd"):
        if len(fields) >= 4:
            uid, gid = _number(fields[2]), _number(fields[3])
            found.append(_Passwd(fields[0], uid or 0, gid or 0))
    return found


def _read_group(root_fd: int) -> list[_Group]:
    found = []
    for fields in _read_colon_file(root_fd, "/etc/group"):
        if len(fields) >= 3:
            members = frozenset(fields[3].split(",")) if len(fields) > 3 else frozenset()
            found.append(_Group(fields[0], _number(fields[2]) or 0, members))
    return found


def _read_colon_file(root_fd: int, path: str) -> list[list[str]]:
    try:
        fd = openat2_in_root(root_fd, path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES):
            return []
        raise UserLookupError(f"can't read {path} of the image", detail=str(exc)) from exc
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise UserLookupError(f"{path} of the image is not a regular file")
        data = file.read(_MAX_FILE_BYTES + 1)
    if len(data) > _MAX_FILE_BYTES:
        raise UserLookupError(f"{path} of the image exceeds {_MAX_FILE_BYTES} bytes")
    lines = data.decode("utf-8", "surrogateescape").splitlines()
    return [line.strip().split(":") for line in lines if line.strip() and line[0] not in "#+-"]
