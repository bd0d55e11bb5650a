"""Shared folders that an engine may read in place, though the client is another process.

Our client tells over a unix socket where its shared folders are. The engine believes it only
if the kernel vouches that the client is the engine's own user, who could read the same files
anyway, and if the path leads to the very same folder (device and inode) on the engine's side:
it may be in another mount namespace.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from boxwright.session.providers.localdirs import LocalDirs
from boxwright.wire.bytestream import Peer

LOCAL_DIR = "x-boxwright-session-local-dir"
_MAX_BYTES = 8192


def announce(dirs: LocalDirs) -> list[tuple[str, str]]:
    """Return the metadata that tells where the folders are; for unix sockets only."""
    items = []
    for name in dirs.names:
        path = os.path.realpath(dirs.path(name))
        try:
            found = os.stat(path)
        except OSError:
            continue
        fields = {"name": name, "path": path, "device": found.st_dev, "inode": found.st_ino}
        items.append((LOCAL_DIR, json.dumps(fields)))
    return items


def readable_here(values: Iterable[str], peer: Peer) -> dict[str, Path]:
    """Return the announced folders that may be read in place; those in doubt are left out."""
    if peer.kind != "unix" or peer.uid is None or peer.uid != os.geteuid():
        return {}
    found: dict[str, Path] = {}
    for value in values:
        if len(value) > _MAX_BYTES:
            continue
        try:
            fields = json.loads(value)
            name, path = str(fields["name"]), str(fields["path"])
            info = os.stat(path)
            same = (info.st_dev, info.st_ino) == (fields["device"], fields["inode"])
        except (ValueError, KeyError, TypeError, OSError):
            continue
        if same and os.path.isabs(path) and stat.S_ISDIR(info.st_mode) and _readable(path):
            found[name] = Path(path)
    return found


def _readable(path: str) -> bool:
    return os.access(path, os.R_OK | os.X_OK)
