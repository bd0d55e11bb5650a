"""Read files out of a build result: what frontends do with ReadFile, ReadDir and StatFile.

The tree is the work of untrusted steps: every path is resolved inside its root by the kernel
(``openat2`` with ``RESOLVE_IN_ROOT``), so a link can't lead out of it.
"""

from __future__ import annotations

import fnmatch
import os
import stat as stat_module
from pathlib import Path

from boxwright.errors import InvalidInputError, LimitExceededError, NotFoundError
from boxwright.linux.files import openat2_in_root
from boxwright.wire.pb import fsutil_pb2

_FILE_LIMIT_BYTES = 64 << 20
# Go's os.FileMode bits, which the Stat message carries.
_GO_TYPES = {
    stat_module.S_IFDIR: 1 << 31,
    stat_module.S_IFLNK: 1 << 27,
    stat_module.S_IFIFO: 1 << 25,
    stat_module.S_IFSOCK: 1 << 24,
    stat_module.S_IFBLK: 1 << 26,
    stat_module.S_IFCHR: (1 << 26) | (1 << 21),
}


def go_mode(mode: int) -> int:
    """Return a POSIX mode as Go's ``os.FileMode``."""
    result = mode & 0o777
    result |= _GO_TYPES.get(stat_module.S_IFMT(mode), 0)
    result |= (1 << 23) if mode & stat_module.S_ISUID else 0
    result |= (1 << 22) if mode & stat_module.S_ISGID else 0
    result |= (1 << 20) if mode & stat_module.S_ISVTX else 0
    return result


def read_file(root: Path, path: str, *, offset: int = 0, length: int = 0) -> bytes:
    """Return the bytes of a regular file, or a part of them; ``length`` 0 is all.

    Raises:
        NotFoundError: there is no such file.
        InvalidInputError: it is not a regular file.
        LimitExceededError: it is larger than 64 MiB.
    """
    descriptor = _open(root, path, os.O_RDONLY | os.O_NONBLOCK)
    info = os.fstat(descriptor)
    if not stat_module.S_ISREG(info.st_mode):
        os.close(descriptor)
        raise InvalidInputError(f"{path} is not a regular file")
    with os.fdopen(descriptor, "rb") as file:
        wanted = length or max(0, info.st_size - offset)
        if wanted > _FILE_LIMIT_BYTES:
            raise LimitExceededError(
                f"read {path}: file too large", detail=f"{wanted} of {_FILE_LIMIT_BYTES} bytes"
            )
        file.seek(offset)
        return file.read(wanted)


def read_dir(root: Path, path: str, include: str = "") -> list[fsutil_pb2.Stat]:
    """Return the entries of a folder, sorted by name.

    Args:
        root: the tree.
        path: the folder in it.
        include: keep only names that match this pattern.

    Raises:
        NotFoundError: there is no such folder.
    """
    descriptor = _open(root, path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        entries = []
        for name in sorted(os.listdir(descriptor)):
            if include and not fnmatch.fnmatchcase(name, include):
                continue
            entries.append(_stat(descriptor, name, name))
        return entries
    finally:
        os.close(descriptor)


def stat_file(root: Path, path: str) -> fsutil_pb2.Stat:
    """Return what a path is, without following a link at its end.

    Raises:
        NotFoundError: there is no such path.
    """
    clean = os.path.normpath("/" + path)
    parent, name = os.path.split(clean)
    if not name:
        descriptor = _open(root, "/", os.O_RDONLY | os.O_DIRECTORY)
        try:
            return _stat(descriptor, ".", "/")
        finally:
            os.close(descriptor)
    descriptor = _open(root, parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return _stat(descriptor, name, name)
    except FileNotFoundError as exc:
        raise NotFoundError(f"stat {path}: no such file or directory") from exc
    finally:
        os.close(descriptor)


def _open(root: Path, path: str, flags: int) -> int:
    base = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        relative = os.path.normpath("/" + path).lstrip("/") or "."
        return openat2_in_root(base, os.fsencode(relative), flags | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise NotFoundError(f"open {path}: no such file or directory") from exc
    except OSError as exc:
        raise InvalidInputError(f"open {path}: {exc.strerror}") from exc
    finally:
        os.close(base)


def _stat(parent: int, name: str, shown: str) -> fsutil_pb2.Stat:
    info = os.stat(name, dir_fd=parent, follow_symlinks=False)
    message = fsutil_pb2.Stat(
        path=shown,
        mode=go_mode(info.st_mode),
        uid=info.st_uid,
        gid=info.st_gid,
        size=info.st_size if not stat_module.S_ISDIR(info.st_mode) else 0,
        modTime=info.st_mtime_ns,
    )
    if stat_module.S_ISLNK(info.st_mode):
        message.linkname = os.readlink(name, dir_fd=parent)
    if stat_module.S_ISCHR(info.st_mode) or stat_module.S_ISBLK(info.st_mode):
        message.devmajor = os.major(info.st_rdev)
        message.devminor = os.minor(info.st_rdev)
    return message
