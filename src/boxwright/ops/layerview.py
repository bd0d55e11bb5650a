"""Where a file that a stack of layers shows really lies.

Files seen through an overlay mount can't be hard-linked out of it. A path that only one layer
has is that layer's alone with everything below it, so it can be taken from the layer's own folder.
The lookups follow no link: a parent that is a link in some lower layer does not count as having
the path.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from boxwright.linux.files import openat2_beneath

_MAX_LAYERS = 32
"""Beyond this, asking every layer costs more than copying."""


class LayerView:
    """A stack of sealed layer folders, base first; closed by who opened it. Blocks."""

    def __init__(self, view: str, layers: Sequence[Path]) -> None:
        self.view = view
        self._layers = [os.fspath(layer) for layer in layers]
        self._prefixes = [f"{layer}/" for layer in self._layers]
        self._last = 0
        self._fds: list[int] = []
        if 1 < len(layers) <= _MAX_LAYERS:
            flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
            self._fds = [os.open(layer, flags) for layer in layers]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds = []

    def layer_of(self, path: str) -> int | None:
        """Return the place of the layer whose folder ``path`` is in; ``None`` if in none.

        Args:
            path: Absolute, as :meth:`own_path` gives it or below that.
        """
        if self._prefixes and path.startswith(self._prefixes[self._last]):
            return self._last
        for place, prefix in enumerate(self._prefixes):
            if path.startswith(prefix):
                self._last = place
                return place
        return None

    def own_path(self, relative: str, *, is_dir: bool) -> str | None:
        """Return the path in the layer that alone shows ``relative``, or ``None``.

        A folder is alone only if no other layer has anything of that name; of a file the topmost
        layer's is the visible one.

        Args:
            relative: A path that exists in the view, without links in it.
            is_dir: Whether the view shows a folder there.
        """
        if len(self._layers) == 1:
            return f"{self._layers[0]}/{relative}"
        if not self._fds or not relative:
            return None
        found: int | None = None
        for place in range(len(self._fds) - 1, -1, -1):
            if not _has(self._fds[place], relative):
                continue
            if found is not None:
                return None
            found = place
            if not is_dir:
                break
        return None if found is None else f"{self._layers[found]}/{relative}"


def _has(layer_fd: int, relative: str) -> bool:
    try:
        fd = openat2_beneath(layer_fd, relative, os.O_PATH | os.O_NOFOLLOW)
    except OSError:
        return False
    os.close(fd)
    return True


def is_whiteout(info: os.stat_result) -> bool:
    """Return whether a file in a layer folder marks a deletion."""
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0
