"""The single file actions, each on the root folder of a tree that is being made.

Everything here blocks and runs in the worker pool. Paths come from the build definition and names
from images: all are resolved inside the root, and no link in an image leads out of it.
"""

from __future__ import annotations

import errno
import os
import posixpath
import shutil
import stat
from pathlib import Path

from boxwright.errors import BoxwrightError
from boxwright.executor import rootpath
from boxwright.executor.errors import UserLookupError
from boxwright.executor.users import find_group, find_uid
from boxwright.fsutil.compress import open_decompressor
from boxwright.fsutil.tar import TarReader
from boxwright.fsutil.unpack import apply_layer
from boxwright.linux.files import openat2_in_root
from boxwright.ops.copier import make_dirs
from boxwright.ops.errors import FileOpError, from_os_error, inside
from boxwright.ops.wildcards import expand
from boxwright.wire.pb import ops_pb2 as pb

_NO_TIME = -1
_PERMISSIONS = 0o777

Owner = tuple[int, int] | None


def read_owner(option: pb.ChownOpt, user_root: Path | None, group_root: Path | None) -> Owner:
    """Return the numbers that ``option`` means.

    Names are looked up in the given roots; one that is not found there is 0, as in BuildKit.

    Raises:
        FileOpError: a name has no root to be looked up in, or its file can't be trusted.
    """
    uid = gid = 0
    if option.HasField("user"):
        if option.user.WhichOneof("user") == "byName":
            uid, gid = _by_name(user_root, option.user.byName.name)
        else:
            uid = gid = option.user.byID
    if option.HasField("group"):
        if option.group.WhichOneof("user") == "byName":
            gid = _group_by_name(group_root, option.group.byName.name, gid)
        else:
            gid = option.group.byID
    return uid, gid


def _by_name(root: Path | None, name: str) -> tuple[int, int]:
    if root is None:
        raise FileOpError("invalid missing user mount")
    root_fd = rootpath.open_root(root)
    try:
        return find_uid(root_fd, name)
    except UserLookupError as exc:
        if "no matching entries" not in exc.brief:
            raise
        return 0, 0
    finally:
        os.close(root_fd)


def _group_by_name(root: Path | None, name: str, default: int) -> int:
    if root is None:
        raise FileOpError("invalid missing group mount")
    root_fd = rootpath.open_root(root)
    try:
        return find_group(root_fd, name)
    except UserLookupError as exc:
        if "no matching entries" not in exc.brief:
            raise
        return default
    finally:
        os.close(root_fd)


def mtime_of(timestamp: int) -> int | None:
    """Return a wire timestamp (nanoseconds, -1: none) as ``os.utime`` takes it."""
    return None if timestamp == _NO_TIME else timestamp


def mkdir(root: Path, action: pb.FileActionMkDir, owner: Owner) -> None:
    """Make a folder; one that exists stays as it is.

    Raises:
        FileOpError: a parent is missing or something else is in the way.
    """
    mode, mtime = action.mode & _PERMISSIONS, mtime_of(action.timestamp)
    root_fd = rootpath.open_root(root)
    try:
        place = os.fsdecode(rootpath.resolve(root_fd, os.fsencode(action.path)))
        if action.makeParents:
            make_dirs(root_fd, place, mode=mode, owner=owner, mtime_ns=mtime)
            return
        if not place:
            return
        try:
            os.mkdir(place, mode, dir_fd=root_fd)
        except FileExistsError:
            return
        os.chmod(place, mode, dir_fd=root_fd)
        _own_and_date(root_fd, place, owner, mtime)
    except OSError as exc:
        raise from_os_error("mkdir", action.path, exc) from exc
    finally:
        os.close(root_fd)


def _own_and_date(root_fd: int, place: str, owner: Owner, mtime_ns: int | None) -> None:
    if owner is not None:
        os.chown(place, *owner, dir_fd=root_fd, follow_symlinks=False)
    if mtime_ns is not None:
        os.utime(place, ns=(mtime_ns, mtime_ns), dir_fd=root_fd, follow_symlinks=False)


def mkfile(root: Path, action: pb.FileActionMkFile, owner: Owner) -> None:
    """Write a file; one that exists keeps its mode and owner and gets the new content.

    Raises:
        FileOpError: the parent is missing or the path is a folder.
    """
    root_fd = rootpath.open_root(root)
    try:
        place = os.fsdecode(rootpath.resolve(root_fd, os.fsencode(action.path)))
        folder, name = posixpath.split(place)
        if not name:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        folder_fd = rootpath.open_directory(root_fd, os.fsencode(folder))
        try:
            _write_file(folder_fd, name, action.data, action.mode & _PERMISSIONS)
            _own_and_date(folder_fd, name, owner, mtime_of(action.timestamp))
        finally:
            os.close(folder_fd)
    except OSError as exc:
        raise from_os_error("open", action.path, exc) from exc
    finally:
        os.close(root_fd)


def _write_file(folder_fd: int, name: str, data: bytes, mode: int) -> None:
    """Write in place, or a new inode where the old one may be a snapshot's by a hard link."""
    kept: os.stat_result | None = None
    try:
        kept = os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
    except FileNotFoundError:
        pass
    times = os.stat(folder_fd)
    is_shared = kept is not None and stat.S_ISREG(kept.st_mode) and kept.st_nlink > 1
    if is_shared:
        os.unlink(name, dir_fd=folder_fd)
    flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    if kept is None or is_shared:
        flags |= os.O_CREAT | os.O_EXCL
    elif stat.S_ISREG(kept.st_mode):
        flags |= os.O_TRUNC
    fd = os.open(name, flags, 0o600, dir_fd=folder_fd)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        if kept is None:
            os.fchmod(fd, mode)
        elif is_shared:
            os.fchown(fd, kept.st_uid, kept.st_gid)
            os.fchmod(fd, stat.S_IMODE(kept.st_mode))
    finally:
        os.close(fd)
    if is_shared:
        os.utime(f"/proc/self/fd/{folder_fd}", ns=(times.st_atime_ns, times.st_mtime_ns))


def symlink(root: Path, action: pb.FileActionSymlink, owner: Owner) -> None:
    """Make a symbolic link; its target is text and is not looked at.

    Raises:
        FileOpError: the parent is missing or the path exists.
    """
    root_fd = rootpath.open_root(root)
    try:
        place = os.fsdecode(rootpath.resolve(root_fd, os.fsencode(action.newpath)))
        os.symlink(action.oldpath, place, dir_fd=root_fd)
        _own_and_date(root_fd, place, owner, mtime_of(action.timestamp))
    except OSError as exc:
        raise from_os_error(f"symlink {action.oldpath}", action.newpath, exc) from exc
    finally:
        os.close(root_fd)


def rm(root: Path, action: pb.FileActionRm) -> None:
    """Remove a file or a whole folder; links are removed, never followed at their end.

    Raises:
        FileOpError: it does not exist and must.
    """
    root_fd = rootpath.open_root(root)
    try:
        paths = [action.path]
        if action.allowWildcard:
            paths = expand(root_fd, os.fspath(root), action.path, follow_links=False)
        for path in paths:
            _rm_one(root_fd, root, path, allow_missing=action.allowNotFound)
    except OSError as exc:
        path = inside(os.fspath(root), exc.filename) or action.path
        if exc.errno == errno.ENOENT:
            raise from_os_error("stat", posixpath.join("/", path), exc) from exc
        raise from_os_error("rm", path, exc) from exc
    finally:
        os.close(root_fd)


def _rm_one(root_fd: int, root: Path, path: str, *, allow_missing: bool) -> None:
    place = os.fsdecode(
        rootpath.resolve(root_fd, os.fsencode(path.rstrip("/")), follow_last=False)
    )
    if not place:
        raise FileOpError("rmPath: invalid empty path", path=path)
    try:
        info = os.stat(place, dir_fd=root_fd, follow_symlinks=False)
    except FileNotFoundError:
        if allow_missing:
            return
        raise
    if stat.S_ISDIR(info.st_mode):
        shutil.rmtree(root / place)
    else:
        os.unlink(place, dir_fd=root_fd)


def unpack(
    source: Path, source_path: str, target: Path, target_path: str, owner: Owner, timestamp: int
) -> bool:
    """Unpack ``source_path`` below ``target_path`` if it is an archive; return whether it is.

    Raises:
        FileOpError: the target can't be made.
        ApplyError: an entry of the archive is hostile or contradicts the tree.
    """
    source_fd = rootpath.open_root(source)
    try:
        file_fd = _open_archive(source_fd, source_path)
    finally:
        os.close(source_fd)
    if file_fd is None:
        return False
    with open(file_fd, "rb") as file:
        target_fd = rootpath.open_root(target)
        try:
            place = os.fsdecode(rootpath.resolve(target_fd, os.fsencode(target_path)))
            make_dirs(target_fd, place, mode=0o755, owner=owner, mtime_ns=mtime_of(timestamp))
        except OSError as exc:
            raise from_os_error("mkdir", target_path, exc) from exc
        finally:
            os.close(target_fd)
        apply_layer(file, target / place, whiteouts="keep", owner=owner)
    return True


def _open_archive(root_fd: int, path: str) -> int | None:
    """Return a descriptor at the start of the archive ``path``, or ``None`` if it is none."""
    try:
        fd = openat2_in_root(root_fd, path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    is_archive = False
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            with open(os.dup(fd), "rb") as file:
                _, plain = open_decompressor(file)
                is_archive = TarReader(plain).next() is not None
            os.lseek(fd, 0, os.SEEK_SET)
    except (BoxwrightError, OSError):
        is_archive = False
    if not is_archive:
        os.close(fd)
        return None
    return fd
