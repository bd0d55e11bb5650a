"""Deleting folders out of the way: rename now, remove behind the caller's back.

One thread, owned by the store, empties ``<root>/trash``. What a crash leaves there is removed
after the next open. Trees are removed by descriptor, without following links and with folders
made writable on the way (an image may hold mode 000 folders).
"""

from __future__ import annotations

import errno
import logging
import os
import queue
import secrets
import threading
from pathlib import Path

logger = logging.getLogger(__name__)

_DRAIN_LOOK_S = 1.0


def remove_tree(path: Path) -> None:
    """Remove a tree of any depth and whatever modes; a missing one is fine.

    Never recursive: a folder that is not empty is moved up to the top of the tree first, so
    neither deep nesting nor paths beyond PATH_MAX stop it.

    Raises:
        OSError: something can't be removed (a mount point in it, another user's file).
    """
    try:
        top = os.open(path, _FOLDER_FLAGS)
    except FileNotFoundError:
        return
    try:
        pending = _empty(top, top)
        while pending:
            name = pending.pop()
            folder = _open_folder(name, top)
            try:
                pending += _empty(folder, top)
            finally:
                os.close(folder)
            os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(path)


_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def _open_folder(name: str, dir_fd: int) -> int:
    try:
        return os.open(name, _FOLDER_FLAGS, dir_fd=dir_fd)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=dir_fd)
        return os.open(name, _FOLDER_FLAGS, dir_fd=dir_fd)


def _empty(folder: int, top: int) -> list[str]:
    """Remove what ``folder`` holds; return the names under ``top`` of folders still to empty."""
    if not os.fstat(folder).st_mode & 0o200:
        os.fchmod(folder, 0o700)
    moved = []
    with os.scandir(folder) as entries:
        listing = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_folder in listing:
        if not is_folder:
            os.unlink(name, dir_fd=folder)
            continue
        try:
            os.rmdir(name, dir_fd=folder)
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise
            new = name if folder == top else secrets.token_hex(8)
            if folder != top:
                _move_up(name, folder, new, top)
            moved.append(new)
    return moved


def _move_up(name: str, folder: int, new: str, top: int) -> None:
    try:
        os.rename(name, new, src_dir_fd=folder, dst_dir_fd=top)
    except PermissionError:
        # Moving a folder changes its "..": an ordinary user must be able to write it.
        os.chmod(name, 0o700, dir_fd=folder)
        os.rename(name, new, src_dir_fd=folder, dst_dir_fd=top)


class Trash:
    """The trash folder and its thread; :meth:`close` ends the thread after its current tree."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)
        self._queue: queue.SimpleQueue[Path | threading.Event | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        for entry in os.scandir(folder):
            self._queue.put(Path(entry.path))
        self._thread = threading.Thread(target=self._run, name="boxwright-trash", daemon=True)
        self._thread.start()

    def discard(self, path: Path) -> None:
        """Take ``path`` (a file or folder of the same file system) away at once.

        Raises:
            OSError: it could not be renamed; a missing one is fine.
        """
        target = self._folder / secrets.token_hex(8)
        try:
            os.rename(path, target)
        except FileNotFoundError:
            return
        self._queue.put(target)

    def _run(self) -> None:
        while (path := self._queue.get()) is not None and not self._closing.is_set():
            if isinstance(path, threading.Event):
                path.set()
                continue
            try:
                if path.is_dir() and not path.is_symlink():
                    remove_tree(path)
                else:
                    path.unlink(missing_ok=True)
            except OSError as error:
                logger.warning("can't remove %s, tried again at the next start: %s", path, error)

    def drain(self) -> None:
        """Wait until what has been discarded so far is removed. Blocking."""
        done = threading.Event()
        self._queue.put(done)
        while not done.wait(_DRAIN_LOOK_S) and self._thread.is_alive():
            pass

    def close(self, *, drain: bool = False) -> None:
        """End the thread; with ``drain`` only after everything in the trash is gone."""
        if not drain:
            self._closing.set()
        self._queue.put(None)
        self._thread.join()
