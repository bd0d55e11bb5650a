"""Resolve the paths that a Dockerfile copies over the symlinks of the shared folder.

``COPY link dst`` needs the link and what it points to, so a client that is asked for ``link``
sends both. Links are resolved as if the shared folder were the root of the file system; they
never lead out of it.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Sequence

from boxwright.fsutil.patterns import PatternError, PatternMatcher, clean

_WILDCARDS = frozenset("*?[")
_MAX_LINKS = 4096


def follow_paths(root: bytes, paths: Sequence[str]) -> list[str] | None:
    """Return the paths with everything that their symlinks lead to, sorted.

    Paths below another one of the result are left out. The result is None where the root
    itself is among them, since then everything is wanted.
    """
    resolver = _Resolver(root)
    for path in paths:
        resolver.add(path)
    out: list[str] = []
    for path in sorted(resolver.resolved):
        if path == ".":
            return None
        if out and path.startswith(f"{out[-1]}/"):
            continue
        out.append(path)
    return out


class _Resolver:
    def __init__(self, root: bytes) -> None:
        self._root = root
        self.resolved: set[str] = set()
        self._links = 0

    def add(self, path: str) -> None:
        rest = clean(f"./{path}")
        if rest == ".." or rest.startswith("../"):
            self.resolved.add(rest)  # names nothing inside the folder, so nothing is added
            return
        current = ""
        while True:
            part, _, rest = rest.partition("/")
            current = posixpath.normpath(posixpath.join(current, part))
            targets = self._targets(current)
            if (not rest or targets is not None) and current in self.resolved:
                return
            if targets is not None:
                self.resolved.add(current)
                for target in targets:
                    self.add(posixpath.join(target, rest))
                return
            if not rest:
                self.resolved.add(current)
                return

    def _targets(self, path: str) -> list[str] | None:
        """Return what ``path`` links to; None if it is no link (or not there)."""
        folder, _, base = path.rpartition("/")
        if not _has_wildcards(base):
            target = self._read_link(path)
            return None if target is None else [target]
        try:
            matcher = PatternMatcher([base])
            names = sorted(os.listdir(self._absolute(folder)))
        except (OSError, PatternError):
            return None
        matching = [name for name in map(os.fsdecode, names) if matcher.matches(name)]
        links = [self._read_link(posixpath.join(folder, name)) for name in matching]
        return [link for link in links if link is not None] or None

    def _read_link(self, path: str) -> str | None:
        absolute = self._absolute(path)
        try:
            if not stat.S_ISLNK(os.lstat(absolute).st_mode):
                return None
            target = os.fsdecode(os.readlink(absolute))
        except OSError:
            return None
        self._links += 1
        if self._links > _MAX_LINKS:
            return None
        return clean(posixpath.join("/", posixpath.dirname(path), target))

    def _absolute(self, path: str) -> bytes:
        return self._root + b"/" + os.fsencode(path) if path else self._root


def _has_wildcards(name: str) -> bool:
    escaped = False
    for character in name:
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = True
        elif character in _WILDCARDS:
            return True
    return False
