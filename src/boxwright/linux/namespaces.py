"""Namespaces of the calling thread.

``unshare`` acts on one thread only: call it before any other thread exists, or the process
is split between two views of the mount table.
"""

from __future__ import annotations

import os

from boxwright.linux.libc import check, libc
from boxwright.linux.mount import make_slave

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000


def unshare(flags: int) -> None:
    """Move the calling thread into new namespaces.

    Raises:
        OSError: ``EPERM`` without the privilege, ``ENOSPC`` over a namespace limit.
    """
    check(libc.unshare(flags))


def thread_count() -> int:
    """Return how many threads this process has, those of C libraries included."""
    return len(os.listdir("/proc/self/task"))


def isolate_mounts() -> None:
    """Give this process a mount table of its own that ends with it.

    Mounts of the host still arrive; ours stay inside, so that a killed engine leaves none.

    Raises:
        OSError: the privilege is missing.
        RuntimeError: other threads exist already: they would keep the old table.
    """
    if thread_count() != 1:
        raise RuntimeError("isolate_mounts() must run before any thread is started")
    unshare(CLONE_NEWNS)
    make_slave("/")
