"""What a step needs in its root file system before it starts, and what must not stay after.

The runtime makes an empty file or folder at every mount point that does not exist. Those stubs
would end up in the image, so they are made here and removed again when the step has ended, if it
has left them empty (BuildKit's executor/stubs.go), and the parent folder's times are put back.

All functions block on the file system and run in the worker pool.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import stat
from collections.abc import Iterable, Mapping

from boxwright.core.dataclass import dataclass
from boxwright.executor import rootpath
from boxwright.executor.errors import RuntimeFailedError
from boxwright.executor.process import BindMount, ProcessSpec, TmpfsMount
from boxwright.executor.users import User, find_user
from boxwright.linux.files import openat2_in_root

_ALWAYS_MOUNTED = ("/etc/resolv.conf", "/etc/hosts")
_KERNEL_FOLDERS = (b"proc", b"dev", b"sys")
_FOLDER_MODE = 0o755
_FILE_MODE = 0o644


@dataclass(frozen=True, slots=True)
class PreparedRoot:
    """The user to run as and the mount points that did not exist before."""

    user: User
    stubs: tuple[bytes, ...]


def prepare(root: str, process: ProcessSpec, *, has_sys: bool = True) -> PreparedRoot:
    """Look the user up, make missing mount points and the working folder.

    Args:
        root: The root file system.
        process: What will run in it.
        has_sys: Whether the step gets a ``/sys``.

    Raises:
        UserLookupError: the user or group does not exist in ``root``.
        RuntimeFailedError: the working folder is no absolute path or can't be made.
    """
    root_fd = rootpath.open_root(root)
    try:
        user = find_user(root_fd, process.user)
        recursive = process.remove_mount_stubs_recursive
        stubs = make_stubs(root_fd, _mount_points(process), recursive=recursive)
        for name in _KERNEL_FOLDERS if has_sys else _KERNEL_FOLDERS[:-1]:
            _make_kernel_folder(root_fd, name)
        _make_working_folder(root_fd, working_folder(process), user)
    finally:
        os.close(root_fd)
    return PreparedRoot(user, stubs)


def working_folder(process: ProcessSpec) -> str:
    """Return the folder that a process starts in.

    Raises:
        RuntimeFailedError: it is no absolute path. runc, which upstream's steps run in, refuses
            it; crun would start in some folder.
    """
    if not process.cwd:
        raise RuntimeFailedError("Cwd property must not be empty")
    if not process.cwd.startswith("/"):
        raise RuntimeFailedError("Cwd must be an absolute path", detail=process.cwd)
    return process.cwd


def _make_kernel_folder(root_fd: int, name: bytes) -> None:
    """Make a folder that stays in the layer, as BuildKit's steps leave it.

    The runtime would make it as well, but crun gives /dev the sticky bit and runc does not.
    """
    try:
        os.mkdir(name, _FOLDER_MODE, dir_fd=root_fd)
        os.chmod(name, _FOLDER_MODE, dir_fd=root_fd)
    except OSError:
        pass  # it exists, if only as a link; else the runtime will say what is wrong


def _mount_points(process: ProcessSpec) -> dict[str, bool]:
    """Return the destinations that lie in the root itself, and whether each is a folder."""
    points = dict.fromkeys(_ALWAYS_MOUNTED, False)
    for mount in process.mounts:
        is_folder = isinstance(mount, TmpfsMount)
        if isinstance(mount, BindMount):
            is_folder = mount.source.is_dir()
        points[posixpath.normpath("/" + mount.dest)] = is_folder
    covered = [dest.rstrip("/") + "/" for dest, is_folder in points.items() if is_folder]
    return {
        dest: is_folder
        for dest, is_folder in points.items()
        if not any(dest.startswith(prefix) for prefix in covered)
    }


def make_stubs(root_fd: int, points: Mapping[str, bool], *, recursive: bool) -> tuple[bytes, ...]:
    """Make what is missing of ``points`` and return what must go again, deepest first.

    The runtime would make them too, but could not say which were missing. The parent folder
    keeps the time at which they were made, as under BuildKit: a step that copies ``/etc`` or a
    later ``COPY --from`` of it sees that time, and images must not differ in it.
    With ``recursive`` the parents that had to be made go as well.
    """
    stubs: dict[bytes, None] = {}
    for dest, is_folder in points.items():
        try:
            place = rootpath.resolve(root_fd, os.fsencode(dest))
            missing = _missing(root_fd, place)
            if missing:
                _make_stub(root_fd, missing, is_folder=is_folder)
        except OSError:
            continue  # the runtime will say what is wrong with it
        if missing:
            stubs.update(dict.fromkeys(missing if recursive else missing[-1:]))
    return tuple(sorted(stubs, key=lambda place: place.count(b"/"), reverse=True))


def _missing(root_fd: int, place: bytes) -> list[bytes]:
    """Return ``place`` and those of its parents that do not exist, outermost first."""
    found: list[bytes] = []
    while place and not _exists(root_fd, place):
        found.append(place)
        place = rootpath.split(place)[0]
    return found[::-1]


def _make_stub(root_fd: int, missing: list[bytes], *, is_folder: bool) -> None:
    parent_fd = rootpath.open_directory(root_fd, rootpath.split(missing[0])[0])
    try:
        for place in missing if is_folder else missing[:-1]:
            os.mkdir(place, _FOLDER_MODE, dir_fd=root_fd)
        if not is_folder:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(missing[-1], flags, _FILE_MODE, dir_fd=root_fd))
    finally:
        os.close(parent_fd)


def _restore_times(folder_fd: int, times: os.stat_result) -> None:
    os.utime(f"/proc/self/fd/{folder_fd}", ns=(times.st_atime_ns, times.st_mtime_ns))


def _exists(root_fd: int, place: bytes) -> bool:
    try:
        os.stat(place, dir_fd=root_fd, follow_symlinks=False)
    except OSError as exc:
        return exc.errno not in (errno.ENOENT, errno.ENOTDIR)
    return True


def clean_stubs(root: str, stubs: Iterable[bytes]) -> None:
    """Remove those of ``stubs`` that exist and are still empty."""
    root_fd = rootpath.open_root(root)
    try:
        for place in stubs:
            with contextlib.suppress(OSError):
                _clean_stub(root_fd, place)
    finally:
        os.close(root_fd)


def _clean_stub(root_fd: int, place: bytes) -> None:
    parent, name = rootpath.split(place)
    parent_fd = rootpath.open_directory(root_fd, parent)
    try:
        found = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
        times = os.stat(parent_fd)
        if stat.S_ISDIR(found.st_mode):
            os.rmdir(name, dir_fd=parent_fd)  # fails where the step put something into it
        elif found.st_size == 0:
            os.unlink(name, dir_fd=parent_fd)
        else:
            return
        _restore_times(parent_fd, times)
    finally:
        os.close(parent_fd)


def _make_working_folder(root_fd: int, cwd: str, user: User) -> None:
    wanted = os.fsencode(cwd)
    try:
        os.close(openat2_in_root(root_fd, wanted, os.O_PATH))
        return
    except FileNotFoundError:
        pass
    except OSError as exc:
        raise _bad_folder(cwd, exc) from exc
    try:
        place = rootpath.resolve(root_fd, wanted)
        made = b""
        for part in place.split(b"/"):
            made = made + b"/" + part if made else part
            try:
                os.mkdir(made, _FOLDER_MODE, dir_fd=root_fd)
            except FileExistsError:
                continue
            os.chown(made, user.uid, user.gid, dir_fd=root_fd, follow_symlinks=False)
            os.chmod(made, _FOLDER_MODE, dir_fd=root_fd)
    except OSError as exc:
        raise _bad_folder(cwd, exc) from exc


def _bad_folder(cwd: str, exc: OSError) -> RuntimeFailedError:
    return RuntimeFailedError(
        f"failed to create working directory {cwd}", detail=exc.strerror or str(exc)
    )
