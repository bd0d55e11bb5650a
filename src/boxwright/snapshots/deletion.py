"""Deleting many snapshots at once: one transaction and one trip to a worker for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from boxwright.core.workers import to_worker
from boxwright.snapshots.usage import tree_size
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
    leased = snapshots.store.leases.snapshots()
    gone = [
        snapshot_id
        for snapshot_id in sizes
        if snapshot_id not in leased and not snapshots.held_by(snapshot_id)
    ]
    with snapshots.store.db.transaction():
        for snapshot_id in gone:
            snapshots.table.delete(snapshot_id)
    trace.point("snapshot-row-deleted")
    for snapshot_id in gone:
        snapshots.forget(snapshot_id)
    await to_worker(_discard, snapshots.store, [snapshots.folder(each) for each in gone])
    trace.point("snapshot-trashed")
    return {snapshot_id: sizes[snapshot_id] for snapshot_id in gone}


async def _sizes(snapshots: SnapshotManager, ids: Sequence[str]) -> dict[str, int]:
    known: dict[str, int] = {}
    unknown: list[str] = []
    for snapshot_id in ids:
        row = snapshots.table.get(snapshot_id)
        if row is None:
            continue
        if row.size is None:
            unknown.append(snapshot_id)
        else:
            known[snapshot_id] = row.size
    if unknown:
        folders = [snapshots.folder(each) for each in unknown]
        known.update(zip(unknown, await to_worker(_count, folders), strict=True))
    return known


def _count(folders: Sequence[Path]) -> list[int]:
    return [tree_size(folder) for folder in folders]


def _discard(store: Store, folders: Sequence[Path]) -> None:
    for folder in folders:
        store.discard(folder)
