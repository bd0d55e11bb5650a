"""Mount points of one engine: made in workers, always unmounted, cancelled or not."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from boxwright.core.workers import to_worker
from boxwright.snapshots.backend import Backend
from boxwright.store.trash import remove_tree


class Mounts:
    """Mounts stacks of layers under ``<root>/run/mnt``; whoever mounts unmounts."""

    def __init__(self, backend: Backend, folder: Path) -> None:
        self.backend = backend
        self._folder = folder
        self._numbers = itertools.count(1)

    def _point(self) -> Path:
        return self._folder / str(next(self._numbers))

    async def view(self, layers: Sequence[Path]) -> Path:
        """Mount two or more layers, base first, for reading; return the mount point.

        Raises:
            MountError: the kernel refused.
        """
        target = self._point()
        try:
            await to_worker(self.backend.mount_view, layers, target)
        except BaseException:
            self.backend.unmount(target)
            raise
        return target

    async def writable(self, layers: Sequence[Path], upper: Path, work: Path) -> Path:
        """Mount a writable folder over layers, base first; return the mount point.

        Raises:
            MountError: the kernel refused.
        """
        target = self._point()

        def mount() -> None:
            remove_tree(work)  # volatile mounts leave a mark that forbids the next one
            work.mkdir(mode=0o700)
            self.backend.mount_writable(layers, upper, work, target)

        try:
            await to_worker(mount)
        except BaseException:
            self.backend.unmount(target)
            raise
        return target

    async def unmount(self, target: Path) -> None:
        """Unmount a mount point, even when cancelled."""
        try:
            await to_worker(self.backend.unmount, target)
        except asyncio.CancelledError:
            self.backend.unmount(target)  # harmless if the worker got there first
            raise

    @asynccontextmanager
    async def stack(self, layers: Sequence[Path]) -> AsyncIterator[Path]:
        """Give the read-only root of any layers, base first; one layer is its own root."""
        if len(layers) == 1:
            yield layers[0]
            return
        view = await self.view(layers)
        try:
            yield view
        finally:
            await self.unmount(view)
