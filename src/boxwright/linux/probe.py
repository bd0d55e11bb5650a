"""Capability probes that really try the thing, in a folder that the caller gives.

An answer from version numbers or from being root is a guess: containers, user namespaces and
security modules take privileges away one by one.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from boxwright.linux.libc import libc
from boxwright.linux.mount import bind, overlay, umount

_MARKER = "probe"


def can_bind(folder: Path) -> bool:
    """Return whether a bind mount inside ``folder`` works."""
    scratch = Path(tempfile.mkdtemp(prefix="probe-", dir=folder))
    try:
        (scratch / "target").mkdir()
        bind(scratch, scratch / "target", recursive=False)
        umount(scratch / "target", detach=True)
    except OSError:
        return False
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return True


def can_overlay(folder: Path, *, userxattr: bool) -> bool:
    """Return whether an overlay with its upper folder in ``folder`` works.

    The probe writes, deletes a lower file and checks the whiteout, as file systems that
    can't hold a character device or the attributes fail only then.
    """
    scratch = Path(tempfile.mkdtemp(prefix="probe-", dir=folder))
    lower, upper, work, target = (scratch / name for name in ("l", "u", "w", "t"))
    mounted = False
    try:
        for path in (lower, upper, work, target):
            path.mkdir()
        (lower / _MARKER).write_bytes(b"lower")
        (lower / "dir").mkdir()
        overlay(target, lower=[lower], upper=upper, work=work, userxattr=userxattr)
        mounted = True
        (target / _MARKER).unlink()
        (target / "dir").rmdir()
        (target / "dir").mkdir()
        return (upper / _MARKER).lstat().st_rdev == 0 and not (target / _MARKER).exists()
    except OSError:
        return False
    finally:
        if mounted:
            umount(target, detach=True)
        shutil.rmtree(scratch, ignore_errors=True)


def can_volatile(folder: Path, *, userxattr: bool) -> bool:
    """Return whether overlayfs knows the ``volatile`` option here (kernel 5.10)."""
    scratch = Path(tempfile.mkdtemp(prefix="probe-", dir=folder))
    lower, upper, work, target = (scratch / name for name in ("l", "u", "w", "t"))
    try:
        for path in (lower, upper, work, target):
            path.mkdir()
        overlay(target, lower=[lower], upper=upper, work=work, userxattr=userxattr, volatile=True)
        umount(target, detach=True)
    except OSError:
        return False
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return True


def can_mknod(folder: Path) -> bool:
    """Return whether a real device node can be made in ``folder``."""
    name = folder / f"probe-node-{os.getpid()}"
    try:
        os.mknod(name, 0o600 | 0o020000, os.makedev(1, 3))
    except OSError:
        return False
    name.unlink()
    return True


def has_syncfs() -> bool:
    """Return whether the C library offers syncfs."""
    return hasattr(libc, "syncfs")
