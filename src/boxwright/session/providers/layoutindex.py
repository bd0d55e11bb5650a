"""``index.json`` of an OCI layout, which several programs may enter images into at once.

A writer holds flock(2) on ``index.json.lock`` and removes that file when it is done, as BuildKit's
own clients do. So a lock counts only if its file is still there when it has been got.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from boxwright.errors import BoxwrightError, Code
from boxwright.oci.layout import INDEX_FILE, LAYOUT_BYTES, LAYOUT_FILE
from boxwright.oci.mediatypes import OCI_INDEX

_LIMIT_BYTES = 8 << 20
_LOCK_FILE = INDEX_FILE + ".lock"
_PATIENCE_S = 60.0
_INTERVAL_S = 0.01


class LayoutError(BoxwrightError):
    """A folder that should be an OCI layout and is not."""

    code = Code.SOURCE_NOT_FOUND


def read_index(folder: Path) -> dict[str, Any]:
    """Return what a layout's index says.

    Raises:
        LayoutError: it is missing or malformed.
    """
    return read_document(folder / INDEX_FILE)


def read_document(path: Path) -> dict[str, Any]:
    """Return an index or a manifest.

    Raises:
        LayoutError: it is missing or malformed.
    """
    try:
        document = json.loads(path.read_bytes()[:_LIMIT_BYTES])
    except (OSError, ValueError) as exc:
        raise LayoutError(f"can't read {path}", detail=str(exc)) from exc
    if not isinstance(document, dict):
        raise LayoutError(f"{path} is no index or manifest")
    return document


@contextlib.contextmanager
def entries_of(folder: Path) -> Iterator[list[dict[str, Any]]]:
    """Yield the entries of a layout's index, none if there is no index, and write what they became.

    Everything else that the index says stays. Blocks while somebody else writes.

    Raises:
        LayoutError: the index that is there can't be read, it can't be written, or somebody else
            writes it for too long.
    """
    path = folder / INDEX_FILE
    with _alone(folder):
        if not (folder / LAYOUT_FILE).exists():
            _replace(folder / LAYOUT_FILE, LAYOUT_BYTES)
        index: dict[str, Any] = {"schemaVersion": 2, "mediaType": OCI_INDEX}
        if _has_content(path):
            index = read_index(folder)
        entries = index.get("manifests") or []
        if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
            raise LayoutError(f"{path} is no index or manifest")
        entries = list(entries)
        yield entries
        index["manifests"] = entries
        _replace(path, json.dumps(index, separators=(",", ":")).encode())


def _has_content(path: Path) -> bool:
    """Return whether there is an index; stock clients make an empty file before they write it."""
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    path = folder / _LOCK_FILE
    while True:
        fd = _open(path)
        try:
            _lock(fd, path)
            if not _is_file(fd, path):
                continue
            try:
                yield
            finally:  # while it is locked: whoever waits for this file finds that it is gone
                with contextlib.suppress(OSError):  # left behind, it is in nobody's way
                    path.unlink()
            return
        finally:
            os.close(fd)


def _open(path: Path) -> int:
    """Open the lock file, that of another user for reading only: that is enough to wait for it."""
    flags = os.O_CREAT | os.O_CLOEXEC
    try:
        try:
            return os.open(path, os.O_RDWR | flags, 0o666)
        except PermissionError:
            return os.open(path, os.O_RDONLY | flags, 0o666)
    except OSError as exc:
        is_there = os.path.exists(path)
        raise LayoutError(
            f"can't lock {path.parent / INDEX_FILE}",
            detail=str(exc),
            hint=f"remove {path} if no program writes there any more" if is_there else "",
        ) from exc


def _lock(fd: int, path: Path) -> None:
    # Not by one call that waits: nothing could end it if the other program stands still.
    give_up = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > give_up:
                raise LayoutError(
                    f"can't lock {path.parent / INDEX_FILE}",
                    detail=f"another program has locked it for {_PATIENCE_S:g} s",
                ) from None
        except OSError:
            return  # not every file system has locks
        else:
            return
        time.sleep(_INTERVAL_S)


def _is_file(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _replace(path: Path, data: bytes) -> None:
    staged = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        try:
            staged.write_bytes(data)
            staged.replace(path)
        finally:
            staged.unlink(missing_ok=True)
    except OSError as exc:
        raise LayoutError(f"can't write {path}", detail=str(exc)) from exc
