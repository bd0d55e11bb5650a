"""Remove a whole state folder, whatever state it is in."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from boxwright.store.errors import NotAStoreError, StoreAccessError
from boxwright.store.store import lock_root

_DATABASE = "state.db"
_ENTRIES = (
    _DATABASE,
    f"{_DATABASE}-wal",
    f"{_DATABASE}-shm",
    "blobs",
    "ingest",
    "snapshots",
    "cachemounts",
    "contexts",
    "run",
    "trash",
    "reserve",
    "worker-id",
    "engine.sock",
    "lock",
)


def erase(root: Path) -> None:
    """Remove everything that the store keeps in ``root``, and ``root`` if nothing else is there.

    The database is not opened: a corrupt one, or one of a newer version, goes as well. Files of
    others in the folder stay. What ``rm -rf`` has left is recognised too. Rootless, this runs in the user namespace whose ids own the files.

    Raises:
        NotAStoreError: it is somebody else's folder.
        StoreLockedError: a process uses it.
        StoreAccessError: something in it can't be removed.
    """
    if not _is_store(root):
        raise NotAStoreError(root)
    fd = lock_root(root)
    try:
        for name in _ENTRIES:
            path = root / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        if not os.listdir(root):
            root.rmdir()
    except OSError as exc:
        raise StoreAccessError(Path(exc.filename or root), exc.strerror or str(exc)) from exc
    finally:
        os.close(fd)


def _is_store(root: Path) -> bool:
    """Return whether it has our database, or nothing but what we make."""
    try:
        names = set(os.listdir(root))
    except OSError:
        return False
    return _DATABASE in names or bool(names and names <= set(_ENTRIES))
