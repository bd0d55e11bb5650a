"""File system calls that the ``os`` module lacks.

Every function takes descriptors or paths, raises ``OSError`` and keeps no state.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from boxwright.linux.libc import check, libc, syscall

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

STATUS_BLOCK = 512
"""Bytes of one of ``st_blocks``, whatever the file system."""

_SYS_OPENAT2 = 437
_FICLONE = 0x40049409
_COPY_CHUNK = 64 << 20
_AGAIN_LIMIT = 32


def walk_status(root: str | os.PathLike[str]) -> Iterator[tuple[str, os.stat_result]]:
    """Yield path and status of everything below a folder, on its own file system only.

    What can't be asked, as it vanishes meanwhile, is left out, and nothing beside it. A folder
    that is missing has nothing below it.
    """
    try:
        device = os.stat(root).st_dev
    except OSError:
        return
    pending = [os.fspath(root)]
    while pending:
        try:
            entries = os.scandir(pending.pop())
        except OSError:
            continue
        with entries:
            for entry in entries:
                try:
                    info = entry.stat(follow_symlinks=False)
                except OSError:
                    continue
                if info.st_dev != device:
                    continue
                if stat.S_ISDIR(info.st_mode):
                    pending.append(entry.path)
                yield entry.path, info


def disk_usage(root: str | os.PathLike[str]) -> int:
    """Return the bytes that everything below a folder takes on its disk, each inode once."""
    total = 0
    seen: set[int] = set()
    for _, info in walk_status(root):
        if info.st_nlink > 1 and not stat.S_ISDIR(info.st_mode):
            if info.st_ino in seen:
                continue
            seen.add(info.st_ino)
        total += info.st_blocks * STATUS_BLOCK
    return total


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def openat2(
    dirfd: int, path: str | bytes | os.PathLike[str], flags: int, *, mode: int = 0, resolve: int
) -> int:
    """Open ``path`` under ``dirfd`` as ``resolve`` allows and return the descriptor.

    ``EAGAIN`` (a rename raced with ``..``) is tried again a bounded number of times.

    Raises:
        OSError: ``EXDEV`` or ``ELOOP`` where ``resolve`` forbids the way.
    """
    how = _OpenHow(flags=flags | os.O_CLOEXEC, mode=mode, resolve=resolve)
    raw = os.fsencode(path) or b"."
    for attempt in range(_AGAIN_LIMIT):
        try:
            return syscall(
                _SYS_OPENAT2, dirfd, raw, ctypes.byref(how), ctypes.sizeof(how), path=path
            )
        except BlockingIOError:
            if attempt == _AGAIN_LIMIT - 1:
                raise
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), os.fspath(path))


def openat2_in_root(
    dirfd: int, path: str | bytes | os.PathLike[str], flags: int, *, mode: int = 0
) -> int:
    """Open ``path`` as a process chrooted to ``dirfd`` would; links can't lead outside.

    Raises:
        OSError: as open(2).
    """
    return openat2(dirfd, path, flags, mode=mode, resolve=RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)


def openat2_beneath(
    dirfd: int, path: str | bytes | os.PathLike[str], flags: int, *, mode: int = 0
) -> int:
    """Open ``path`` under ``dirfd`` following no symbolic link at all.

    Raises:
        OSError: ``ELOOP`` for a link on the way, ``EXDEV`` for an escape.
    """
    return openat2(dirfd, path, flags, mode=mode, resolve=RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)


def reflink(source_fd: int, target_fd: int) -> None:
    """Share the whole content of ``source_fd`` with ``target_fd`` (FICLONE).

    Raises:
        OSError: ``EOPNOTSUPP``, ``EXDEV`` or ``EINVAL`` where the file system can't.
    """
    fcntl.ioctl(target_fd, _FICLONE, source_fd)


def copy_content(source_fd: int, target_fd: int, size_bytes: int) -> None:
    """Copy the content of a regular file: reflink, else copy_file_range, else read and write.

    Holes stay holes. The target is empty and both are at their beginning.

    Args:
        source_fd: An open regular file.
        target_fd: An open empty one.
        size_bytes: The size of the source; 0 copies nothing.

    Raises:
        OSError: reading or writing failed (``ENOSPC`` …).
    """
    if size_bytes == 0:
        return
    try:
        reflink(source_fd, target_fd)
    except OSError as error:
        if error.errno not in _NO_RANGE:
            raise
    else:
        return
    found = os.fstat(source_fd)
    if found.st_blocks * 512 >= found.st_size:
        _copy_range(source_fd, target_fd, None)
        return
    for start, end in _data_ranges(source_fd, found.st_size):
        os.lseek(source_fd, start, os.SEEK_SET)
        os.lseek(target_fd, start, os.SEEK_SET)
        _copy_range(source_fd, target_fd, end - start)
    os.ftruncate(target_fd, found.st_size)


def _data_ranges(fd: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield the parts of a file that are no holes, as far as its file system knows."""
    end = 0
    while end < size_bytes:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
            end = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole is left
                return
            if error.errno not in _NO_RANGE:
                raise
            start, end = end, size_bytes
        yield start, end


def _copy_range(source_fd: int, target_fd: int, length: int | None) -> None:
    """Copy from the current positions; ``None`` copies to the end."""
    left = length
    try:
        while left is None or left > 0:
            step = _COPY_CHUNK if left is None else min(left, _COPY_CHUNK)
            copied = os.copy_file_range(source_fd, target_fd, step)
            if not copied:
                return
            left = None if left is None else left - copied
    except OSError as error:
        if error.errno not in _NO_RANGE:
            raise
    else:
        return
    while left is None or left > 0:
        chunk = os.read(source_fd, 1 << 20 if left is None else min(left, 1 << 20))
        if not chunk:
            return
        left = None if left is None else left - len(chunk)
        view = memoryview(chunk)
        while view:
            view = view[os.write(target_fd, view) :]


_NO_RANGE = frozenset(
    {
        errno.EOPNOTSUPP,
        errno.EXDEV,
        errno.EINVAL,
        errno.ENOSYS,
        errno.ENOTTY,
        errno.EPERM,
        errno.EBADF,
        errno.ETXTBSY,
    }
)


def syncfs(fd: int) -> None:
    """Write the whole file system that ``fd`` lies on to the disk.

    Raises:
        OSError: a write-back failed since the descriptor was opened.
    """
    check(libc.syncfs(fd))


def preallocate(fd: int, size_bytes: int) -> None:
    """Reserve room for ``size_bytes`` without changing the file's size.

    Raises:
        OSError: ``ENOSPC``; ``EOPNOTSUPP`` where the file system can't reserve.
    """
    keep_size = 1
    offset, length = ctypes.c_int64(0), ctypes.c_int64(size_bytes)
    check(libc.fallocate64(fd, keep_size, offset, length))


def start_writeback(fd: int, offset: int, size_bytes: int) -> None:
    """Ask the kernel to begin writing a range of dirty pages; a later fsync waits less.

    Raises:
        OSError: ``ESPIPE`` or ``EINVAL`` on odd descriptors.
    """
    write = 2
    check(libc.sync_file_range(fd, ctypes.c_int64(offset), ctypes.c_int64(size_bytes), write))


def renameat2(
    old_dirfd: int,
    old: str | os.PathLike[str],
    new_dirfd: int,
    new: str | os.PathLike[str],
    flags: int,
) -> None:
    """Rename with ``RENAME_NOREPLACE`` or ``RENAME_EXCHANGE``.

    Raises:
        OSError: ``EEXIST`` where the target exists and must not; the path is ``new``.
    """
    check(
        libc.renameat2(
            old_dirfd, os.fsencode(old), new_dirfd, os.fsencode(new), ctypes.c_uint(flags)
        ),
        new,
    )


@dataclass(frozen=True, slots=True)
class FileSystemSpace:
    """Space of one file system in bytes and inodes; ``available`` is what we may use."""

    total_bytes: int
    available_bytes: int
    total_inodes: int
    available_inodes: int


def statfs(path: str | os.PathLike[str] | int) -> FileSystemSpace:
    """Return the space of the file system that ``path`` lies on.

    Raises:
        OSError: the path can't be reached.
    """
    found = os.statvfs(path)
    return FileSystemSpace(
        total_bytes=found.f_frsize * found.f_blocks,
        available_bytes=found.f_frsize * found.f_bavail,
        total_inodes=found.f_files,
        available_inodes=found.f_favail,
    )
