"""Find the packages in a tree of files. Blocks; the tree is not trusted and does not change.

Links are never followed: what is found is what the tree has at that path.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from boxwright.core.dataclass import dataclass, field
from boxwright.sbom import databases, gobinary
from boxwright.sbom.packages import Distribution, Package

_MAX_TEXT_BYTES = 64 << 20
_MAX_METADATA_BYTES = 1 << 20
_RELEASES = (b"etc/os-release", b"usr/lib/os-release")
_DPKG = b"var/lib/dpkg/status"
_DPKG_FOLDER = b"var/lib/dpkg/status.d/"
_APK = frozenset({b"lib/apk/db/installed", b"usr/lib/apk/db/installed"})
_SKIPPED = frozenset({b"proc", b"sys", b"dev"})
_EXECUTABLE = 0o111


@dataclass(frozen=True, slots=True)
class Scan:
    """What a tree consists of: packages in order, each once, and the distribution."""

    packages: tuple[Package, ...]
    distribution: Distribution = field(default_factory=Distribution)


def scan(root: Path, *, stopped: Callable[[], bool] = lambda: False) -> Scan:
    """Return the packages in a tree.

    Args:
        root: The tree.
        stopped: Asked now and then; the scan ends early when it says so.
    """
    top = os.fsencode(root)
    distribution = next(filter(None, (_release(top, name) for name in _RELEASES)), Distribution())
    found: dict[tuple[str, str], Package] = {}
    for path, mode in _files(top, stopped):
        for package in _packages(top, path, mode, distribution):
            found.setdefault((package.url, package.source), package)
    ordered = sorted(found.values(), key=lambda item: (item.kind, item.url, item.source))
    return Scan(tuple(ordered), distribution)


def _release(top: bytes, name: bytes) -> Distribution | None:
    if not _is_plain(top, name):
        return None
    text = _text(top, name, _MAX_METADATA_BYTES)
    return databases.os_release(text) if text else None


def _is_plain(top: bytes, name: bytes) -> bool:
    """Return whether no part of a path is a link."""
    path = top
    for part in name.split(b"/"):
        path += b"/" + part
        if os.path.islink(path):
            return False
    return os.path.isfile(path)


def _files(top: bytes, stopped: Callable[[], bool]) -> Iterator[tuple[bytes, int]]:
    """Yield path and mode of all regular files."""
    pending = [b""]
    while pending and not stopped():
        folder = pending.pop()
        try:
            with os.scandir(top + b"/" + folder) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in listed:
            path = folder + b"/" + entry.name if folder else entry.name
            if entry.is_dir(follow_symlinks=False):
                if folder or entry.name not in _SKIPPED:
                    pending.append(path)
            elif entry.is_file(follow_symlinks=False):
                yield path, entry.stat(follow_symlinks=False).st_mode


def _packages(top: bytes, path: bytes, mode: int, distribution: Distribution) -> Iterator[Package]:
    folder, _, name = path.rpartition(b"/")
    shown = "/" + path.decode("utf-8", "replace")
    if path == _DPKG or (path.startswith(_DPKG_FOLDER) and not name.endswith(b".md5sums")):
        text = _text(top, path, _MAX_TEXT_BYTES)
        yield from databases.dpkg(text, distribution, shown)
    elif path in _APK:
        yield from databases.apk(_text(top, path, _MAX_TEXT_BYTES), distribution, shown)
    elif _is_python(folder, name):
        package = databases.python(_text(top, path, _MAX_METADATA_BYTES), shown)
        if package is not None:
            yield package
    elif name == b"package.json" and _is_npm(folder):
        package = databases.npm(_text(top, path, _MAX_METADATA_BYTES), shown)
        if package is not None:
            yield package
    elif stat.S_IMODE(mode) & _EXECUTABLE:
        with contextlib.suppress(OSError), open(top + b"/" + path, "rb") as file:
            yield from gobinary.modules(file, shown)


def _is_python(folder: bytes, name: bytes) -> bool:
    if name == b"METADATA":
        return folder.endswith(b".dist-info")
    if name == b"PKG-INFO":
        return folder.endswith(b".egg-info")
    return name.endswith(b".egg-info")


def _is_npm(folder: bytes) -> bool:
    """Return whether a folder is that of an installed package, scoped or not."""
    parts = folder.split(b"/")
    if parts[-2:-1] == [b"node_modules"]:
        return True
    return parts[-3:-2] == [b"node_modules"] and parts[-2].startswith(b"@")


def _text(top: bytes, path: bytes, limit: int) -> str:
    try:
        with open(top + b"/" + path, "rb") as file:
            return file.read(limit).decode("utf-8", "replace")
    except OSError:
        return ""
