# SPDX-License-Identifier: Apache-2.0
"""Cache mounts from the snapshots' own folders."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from boxwright.ops.execmounts import Sharing
from boxwright.snapshots.manager import SnapshotManager
from boxwright.snapshots.refs import ImmutableRef


class SnapshotCacheMounts:
    """:class:`boxwright.ops.execmounts.CacheMountProvider` over ``snapshots.cachemounts``."""

    def __init__(self, snapshots: SnapshotManager) -> None:
        self._snapshots = snapshots

    @contextlib.asynccontextmanager
    async def acquired(
        self, key: str, sharing: Sharing, *, parent: ImmutableRef | None, description: str
    ) -> AsyncIterator[Path]:
        """Give the folder of ``key`` for as long as the context is open."""
        from boxwright.snapshots.cachemounts import CacheMounts

        mounts = CacheMounts(self._snapshots)
        mount = await mounts.acquire(key, sharing, parent=parent, description=description)
        try:
            yield mount.path
        finally:
            await mount.release()
