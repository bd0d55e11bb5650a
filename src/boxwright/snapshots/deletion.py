"""Deleting many snapshots at once: one transaction and one trip to a worker for all of them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from boxwright.core.workers import to_worker
from boxwright.snapshots.errors import SnapshotNotFoundError
from boxwright.store import trace
from boxwright.store.store import Store

if TYPE_CHECKING:
    from boxwright.snapshots.manager import SnapshotManager


async def delete_many(snapshots: SnapshotManager, ids: Sequence[str]) -> dict[str, int]:
    """Delete those of the snapshots that nothing needs; return the bytes that each took.

    Args:
        snapshots: Their owner.
        ids: No cache mounts; none of them built on another.
    """
    sizes = await _sizes(snapshots, ids)
    # From here to the end of the transaction nothing is awaited: nobody can take one meanwhile.
    leases = snapshots.store.leases
    gone = [
        snapshot_id
        for snapshot_id in sizes
        if not leases.has_snapshot(snapshot_id) and not snapshots.held_by(snapshot_id)
    ]
    with snapshots.store.db.transaction():
        heirs = [snapshots.table.delete(snapshot_id) for snapshot_id in gone]
    trace.point("snapshot-row-deleted")
    for snapshot_id, others in zip(gone, heirs, strict=True):
        snapshots.forget(snapshot_id, others)
    await to_worker(_discard, snapshots.store, [snapshots.folder(each) for each in gone])
    trace.point("snapshot-trashed")
    return {snapshot_id: sizes[snapshot_id] for snapshot_id in gone}


async def _sizes(snapshots: SnapshotManager, ids: Sequence[str]) -> dict[str, int]:
    rows = {each: row for each in ids if (row := snapshots.table.get(each)) is not None}
    if any(row.size is None for row in rows.values()):
        await snapshots.count_sizes()
    sizes = {}
    for each in rows:
        with contextlib.suppress(SnapshotNotFoundError):
            sizes[each] = await snapshots.size_bytes(each)
    return sizes


def _discard(store: Store, folders: Sequence[Path]) -> None:
    for folder in folders:
        store.discard(folder)
