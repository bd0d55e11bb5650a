"""How a stack of layer folders becomes one tree: overlayfs, fuse-overlayfs, or by copying.

A layer folder is in overlayfs's own form: character devices 0:0 are whiteouts, the opaque
attribute hides what lies below a folder. Layers come base first everywhere in this package;
only the kernel wants them the other way round.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

from boxwright.linux import mount, probe
from boxwright.snapshots.errors import MountError

BackendName = Literal["overlay", "fuse", "native"]

# overlayfs takes 500; each layer costs a lookup per path component, so merge long before.
MAX_LAYERS = 250


class Backend(Protocol):
    """Mounts stacks of layer folders; every method blocks and is safe from every thread."""

    userxattr: bool

    def mount_view(self, layers: Sequence[Path], target: Path) -> None:
        """Mount two or more layers, base first, read-only at ``target``.

        Raises:
            MountError: the kernel or the program refused.
        """
        ...

    def mount_writable(
        self, layers: Sequence[Path], upper: Path, work: Path, target: Path
    ) -> None:
        """Mount layers with a writable folder on top.

        Raises:
            MountError: the kernel or the program refused.
        """
        ...

    def unmount(self, target: Path) -> None:
        """Unmount what is at ``target``, if anything is, and remove the folder."""
        ...


class OverlayBackend:
    """The kernel's overlayfs."""

    def __init__(self, *, userxattr: bool, volatile: bool) -> None:
        self.userxattr = userxattr
        self._volatile = volatile

    def mount_view(self, layers: Sequence[Path], target: Path) -> None:
        """Mount layers read-only; see :class:`Backend`."""
        self._mount(layers, target, None, None)

    def mount_writable(
        self, layers: Sequence[Path], upper: Path, work: Path, target: Path
    ) -> None:
        """Mount layers writable; see :class:`Backend`."""
        self._mount(layers, target, upper, work)

    def _mount(
        self, layers: Sequence[Path], target: Path, upper: Path | None, work: Path | None
    ) -> None:
        target.mkdir(exist_ok=True)
        try:
            mount.overlay(
                target,
                lower=list(reversed(layers)),
                upper=upper,
                work=work,
                userxattr=self.userxattr,
                volatile=self._volatile,
            )
        except OSError as error:
            target.rmdir()
            if error.errno in {errno.ENOSPC, errno.ENOENT}:
                raise
            raise MountError(
                f"overlayfs at {error.filename or target}: {error.strerror}",
                _HINTS.get(error.errno or 0, ""),
            ) from error

    def unmount(self, target: Path) -> None:
        """Unmount; see :class:`Backend`."""
        unmount(target)


class FuseBackend:
    """fuse-overlayfs, for file systems and kernels where overlayfs is refused to users."""

    userxattr = True

    def __init__(self, program: str) -> None:
        self._program = program

    def mount_view(self, layers: Sequence[Path], target: Path) -> None:
        """Mount layers read-only; see :class:`Backend`."""
        self._mount([f"lowerdir={_join(layers)}"], target)

    def mount_writable(
        self, layers: Sequence[Path], upper: Path, work: Path, target: Path
    ) -> None:
        """Mount layers writable; see :class:`Backend`."""
        options = [f"lowerdir={_join(layers)}", f"upperdir={upper}", f"workdir={work}"]
        self._mount(options, target)

    def _mount(self, options: list[str], target: Path) -> None:
        target.mkdir(exist_ok=True)
        done = subprocess.run(
            [self._program, "-o", ",".join([*options, "noacl"]), str(target)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        if done.returncode:
            target.rmdir()
            said = done.stdout[-2000:].decode("utf-8", "replace").strip()
            raise MountError(f"{self._program} ended with {done.returncode}: {said}")

    def unmount(self, target: Path) -> None:
        """Unmount; see :class:`Backend`."""
        unmount(target)


def _join(layers: Sequence[Path]) -> str:
    return ":".join(str(path).replace(":", "\\:") for path in reversed(layers))


_HINTS = {
    errno.EPERM: "run as root, or rootless on a kernel from 5.13 on",
    errno.EINVAL: "the state folder's file system can't hold overlayfs layers (overlay on "
    "overlay, NFS, eCryptfs): choose another --root",
    errno.ENODEV: "load the kernel's overlay module",
}


def unmount(target: Path) -> None:
    """Unmount ``target`` if something is mounted there and remove the folder.

    A tree that is still busy (a process of a step that is about to end) is detached: it goes
    when its last user goes.

    Raises:
        OSError: the kernel refused for another reason.
    """
    try:
        mount.umount(target)
    except OSError as error:
        if error.errno == errno.EBUSY:
            mount.umount(target, detach=True)
        elif error.errno not in {errno.EINVAL, errno.ENOENT}:
            raise
    try:
        os.rmdir(target)
    except FileNotFoundError:
        pass


def open_backend(name: BackendName, folder: Path, *, userxattr: bool) -> Backend:
    """Return the wanted backend after trying it in ``folder``.

    Raises:
        MountError: it does not work here.
    """
    if name == "overlay":
        if not probe.can_overlay(folder, userxattr=userxattr):
            raise MountError(
                f"overlayfs does not work in {folder}",
                "choose another --root, or the snapshotter fuse-overlayfs",
            )
        volatile = probe.can_volatile(folder, userxattr=userxattr)
        return OverlayBackend(userxattr=userxattr, volatile=volatile)
    if name == "fuse":
        program = shutil.which("fuse-overlayfs")
        if program is None:
            raise MountError("fuse-overlayfs is not installed", "install fuse-overlayfs")
        return FuseBackend(program)
    if name == "native":
        from boxwright.snapshots.native import NativeBackend

        return NativeBackend(userxattr=userxattr)
    raise MountError(f"unknown snapshotter {name!r}", "choose overlay, fuse or native")


def is_whiteout(info: os.stat_result) -> bool:
    """Return whether a file in a layer folder is overlayfs's mark for a deleted one."""
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0


OPAQUE_XATTRS = ("trusted.overlay.opaque", "user.overlay.opaque")


def is_opaque(path: str | bytes | os.PathLike[str]) -> bool:
    """Return whether a folder of a layer hides everything below it."""
    for name in OPAQUE_XATTRS:
        try:
            if os.getxattr(path, name, follow_symlinks=False) == b"y":
                return True
        except OSError as error:
            if error.errno not in {errno.ENODATA, errno.ENOTSUP, errno.EPERM}:
                raise
    return False
