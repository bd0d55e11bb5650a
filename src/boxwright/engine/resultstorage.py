"""Results that outlive a build: a cache record's result id is a snapshot's id."""

from __future__ import annotations

from boxwright.core.cacheinfo import CacheResult
from boxwright.errors import NotFoundError
from boxwright.fsutil.compress import Compression
from boxwright.ops.result import SCRATCH_ID, RefResult
from boxwright.remotecache.snapshotlayers import known_remote
from boxwright.snapshots.manager import SnapshotManager
from boxwright.solver.types import Remote, Result


class SnapshotResults:
    """The solver's ``ResultStorage`` over snapshots.

    A snapshot with a cache record is an ordinary snapshot: it stays until it is pruned, and
    the record of one that was pruned is a miss.
    """

    def __init__(self, snapshots: SnapshotManager) -> None:
        self._snapshots = snapshots

    async def save(self, result: Result, created_at: int) -> CacheResult:
        """Return the record of a result; the snapshot itself is already durable."""
        return CacheResult(result.id, created_at)

    async def load(self, record: CacheResult) -> Result:
        """Return the snapshot of a record.

        Raises:
            NotFoundError: it was pruned.
        """
        if record.id == SCRATCH_ID:
            return RefResult(None)
        ref = self._snapshots.get(record.id)
        if ref is None:
            raise NotFoundError("a cached result is gone", detail=record.id)
        return RefResult(ref)

    def exists(self, result_id: str) -> bool:
        """Return whether the snapshot is still there."""
        return result_id == SCRATCH_ID or self._snapshots.exists(result_id)

    async def load_remotes(self, record: CacheResult, ctx: object) -> list[Remote]:
        """Return the blobs that a snapshot has already; ``ctx`` is the export's Compression."""
        if record.id == SCRATCH_ID or not self._snapshots.exists(record.id):
            return []
        ref = self._snapshots.get(record.id)
        if ref is None:
            return []
        try:
            wanted = ctx if isinstance(ctx, Compression) else Compression()
            remote = await known_remote(ref, wanted)
        finally:
            await ref.release()
        return [] if remote is None else [remote]
