"""Stacks of layers without any mount: by copying. Slow, works on every file system.

A view is made of hard links and only ever read; a writable tree is a real copy. When a writable
tree is given up, it is compared with the layers below and the difference becomes its layer
folder, so that committed snapshots look the same whatever the backend.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from boxwright.core.dataclass import dataclass
from boxwright.snapshots.diff import write_difference
from boxwright.snapshots.materialise import copy_stack
from boxwright.store.trash import remove_tree


@dataclass(frozen=True, slots=True)
class _Writable:
    layers: tuple[Path, ...]
    upper: Path
    work: Path


class NativeBackend:
    """Copies instead of mounts; see :class:`boxwright.snapshots.backend.Backend`."""

    def __init__(self, *, userxattr: bool) -> None:
        self.userxattr = userxattr
        self._writable: dict[Path, _Writable] = {}

    def mount_view(self, layers: Sequence[Path], target: Path) -> None:
        """Link the tree together at ``target``.

        Raises:
            DiskFullError: no space left.
        """
        target.mkdir()
        try:
            copy_stack(layers, target, link=True)
        except BaseException:
            remove_tree(target)
            raise

    def mount_writable(
        self, layers: Sequence[Path], upper: Path, work: Path, target: Path
    ) -> None:
        """Copy the tree to ``target``.

        Raises:
            DiskFullError: no space left.
        """
        target.mkdir()
        try:
            copy_stack([*layers, upper], target, link=False)
        except BaseException:
            remove_tree(target)
            raise
        self._writable[target] = _Writable(tuple(layers), upper, work)

    def unmount(self, target: Path) -> None:
        """Write what has changed into the layer folder and remove the copy.

        Raises:
            DiskFullError: no space left for the difference.
        """
        found = self._writable.pop(target, None)
        if found is not None:
            self._write_back(target, found)
        remove_tree(target)

    def _write_back(self, target: Path, tree: _Writable) -> None:
        lower, staged = tree.work / "lower", tree.work / "fs"
        for path in (lower, staged):
            path.mkdir(mode=0o700)
        copy_stack(tree.layers, lower, link=True)
        write_difference(lower, target, [], staged, userxattr=self.userxattr)
        info = target.stat()
        os.chown(staged, info.st_uid, info.st_gid)
        staged.chmod(info.st_mode & 0o7777)
        remove_tree(tree.upper)
        staged.rename(tree.upper)
        remove_tree(lower)
