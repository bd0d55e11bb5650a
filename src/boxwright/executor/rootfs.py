# SPDX-License-Identifier: Apache-2.0
"""What a step needs in its root file system before it starts, and what must not stay after.

The runtime makes an empty file or folder at every mount point that does not exist. Those stubs
would end up in the image, so the ones that it made are removed again, with the parent folder's
times put back, as BuildKit does (executor/stubs.go): layers are equal.

All functions block on the file system and run in the worker pool.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass

from boxwright.executor import rootpath
from boxwright.executor.errors import RuntimeFailedError
from boxwright.executor.process import ProcessSpec
from boxwright.executor.users import User, find_user
from boxwright.linux.files import openat2_in_root

_ALWAYS_MOUNTED = ("/etc/resolv.conf", "/etc/hosts")
_CWD_MODE = 0o755


@dataclass(frozen=True, slots=True)
class PreparedRoot:
    """The user to run as and the mount points that did not exist before."""

    user: User
    stubs: tuple[bytes, ...]


def prepare(root: str, process: ProcessSpec) -> PreparedRoot:
    """Look the user up, note missing mount points and make the working folder.

    Raises:
        UserLookupError: the user or group does not exist in ``root``.
        RuntimeFailedError: the working folder can't be made.
    """
    root_fd = rootpath.open_root(root)
    try:
        dests = (*_ALWAYS_MOUNTED, *(mount.dest for mount in process.mounts))
        stubs = missing(root_fd, dests, recursive=process.remove_mount_stubs_recursive)
        user = find_user(root_fd, process.user)
        _make_working_folder(root_fd, process.cwd, user)
    finally:
        os.close(root_fd)
    return PreparedRoot(user, stubs)


def missing(root_fd: int, dests: Iterable[str], *, recursive: bool) -> tuple[bytes, ...]:
    """Return the resolved places of ``dests`` that do not exist, deepest part of each first.

    With ``recursive`` the missing parents of each are returned as well, after it.
    """
    found: dict[bytes, None] = {}
    for dest in dests:
        try:
            place = rootpath.resolve(root_fd, os.fsencode(dest))
        except OSError:
            continue  # the runtime will say what is wrong with it
        while place and not _exists(root_fd, place):
            found[place] = None
            if not recursive:
                break
            place = rootpath.split(place)[0]
    return tuple(found)


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
        os.utime(f"/proc/self/fd/{parent_fd}", ns=(times.st_atime_ns, times.st_mtime_ns))
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
                os.mkdir(made, _CWD_MODE, dir_fd=root_fd)
            except FileExistsError:
                continue
            os.chown(made, user.uid, user.gid, dir_fd=root_fd, follow_symlinks=False)
            os.chmod(made, _CWD_MODE, dir_fd=root_fd)
    except OSError as exc:
        raise _bad_folder(cwd, exc) from exc


def _bad_folder(cwd: str, exc: OSError) -> RuntimeFailedError:
    return RuntimeFailedError(
        f"failed to create working directory {cwd}", detail=exc.strerror or str(exc)
    )
