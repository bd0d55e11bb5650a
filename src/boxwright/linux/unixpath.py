"""Paths of unix sockets that are longer than the kernel's address structure holds.

``sun_path`` has 108 bytes with the final NUL (unix(7)). A state folder deep in a user's home
or a CI job's workspace goes over that, though the file itself can exist. The same file has a
short name through its open folder: ``/proc/self/fd/N/name``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

MAX_BYTES = 107
"""The longest path that an address holds, in bytes, without the final NUL."""


@contextlib.contextmanager
def usable(path: str | os.PathLike[str], *, by_others: bool = False) -> Iterator[str]:
    """Give a name of the socket file ``path`` that fits an address while the block runs.

    A path that fits, and an abstract address (one that starts with NUL), are given as they are.

    Args:
        path: The file.
        by_others: Other processes of this user are to use the name, too.

    Raises:
        OSError: the folder of a long path can't be opened.
    """
    name = os.fspath(path)
    if len(os.fsencode(name)) <= MAX_BYTES or name.startswith("\0"):
        yield name
        return
    folder, base = os.path.split(name)
    held = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        process = str(os.getpid()) if by_others else "self"
        yield f"/proc/{process}/fd/{held}/{base}"
    finally:
        os.close(held)
