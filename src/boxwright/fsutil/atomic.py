"""Replace a small file so that readers and crashes see the old one or the new one."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_file(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write ``data`` to ``path``; it is on the disk when this returns.

    Args:
        path: the file; a symbolic link there is replaced, not followed.
        data: its new content.
        mode: permission bits before the umask.

    Raises:
        OSError: the folder is missing, not writable or full; nothing is left behind.
    """
    staged = path.with_name(f".{path.name[:200]}.{secrets.token_hex(8)}")
    fd = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(staged, path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
