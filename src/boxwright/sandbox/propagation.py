"""Letting the supervisor see the trees that the engine mounts after it was started.

The supervisor's mount namespace is a slave copy of the engine's, so events arrive there only from
mounts that are *shared*. A mount namespace of our own starts with private or slave mounts; making
the one that holds the state folder shared reaches nobody but the supervisor and its containers.
"""

from __future__ import annotations

import os
from pathlib import Path

from boxwright.linux.mount import MS_SHARED, list_mounts, mount


def share(path: Path) -> None:
    """Make the mount that ``path`` lies on shared.

    Raises:
        OSError: the kernel refused (no privilege over this mount namespace).
    """
    mount(None, mount_point_of(path), None, MS_SHARED)


def mount_point_of(path: Path) -> Path:
    """Return the mount point that ``path`` lies on, seen from this process."""
    real = Path(os.path.realpath(path))
    points = {entry.mount_point for entry in list_mounts()}
    for candidate in (real, *real.parents):
        if candidate in points:
            return candidate
    return Path("/")
