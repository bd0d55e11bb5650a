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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from boxwright.errors import BoxwrightError, Code
from boxwright.oci.layout import INDEX_FILE, LAYOUT_BYTES, LAYOUT_FILE
from boxwright.oci.mediatypes import OCI_INDEX

_LIMIT_BYTES = 8 << 20
_LOCK_FILE = INDEX_FILE + ".lock"


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
        LayoutError: the index that is there can't be read.
        OSError: it can't be written.
    """
    with _alone(folder):
        if not (folder / LAYOUT_FILE).exists():
            _replace(folder / LAYOUT_FILE, LAYOUT_BYTES)
        index: dict[str, Any] = {"schemaVersion": 2, "mediaType": OCI_INDEX}
        if (folder / INDEX_FILE).exists():
            index = read_index(folder)
        entries = list(index.get("manifests") or [])
        yield entries
        index["manifests"] = entries
        _replace(folder / INDEX_FILE, json.dumps(index, separators=(",", ":")).encode())


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    path = folder / _LOCK_FILE
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with contextlib.suppress(OSError):  # not every file system has locks
                fcntl.flock(fd, fcntl.LOCK_EX)
            if not _is_file(fd, path):
                continue
            try:
                yield
            finally:  # while it is locked: whoever waits for this file finds that it is gone
                path.unlink(missing_ok=True)
            return
        finally:
            os.close(fd)


def _is_file(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _replace(path: Path, data: bytes) -> None:
    staged = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        staged.write_bytes(data)
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)
