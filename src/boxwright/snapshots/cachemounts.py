"""The folders behind ``RUN --mount=type=cache``: kept from build to build, outside every layer.

On disk::

    <root>/cachemounts/<id>/fs      what steps wrote
    <root>/cachemounts/<id>/work    overlayfs's own, only while mounted over a parent

A *key* names what a step asks for; behind one key there may be several folders, as a private
user never waits. Who holds what lives in memory only: nobody outlives the process. A folder that
was written to carries the boot id until a syncfs covers it, and is dropped after a power cut.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from boxwright.core.dataclass import dataclass
from boxwright.core.workers import to_worker
from boxwright.linux import files
from boxwright.snapshots import materialise
from boxwright.snapshots.errors import SnapshotInUseError, SnapshotNotFoundError
from boxwright.snapshots.usage import CACHE_MOUNT_TYPE, SnapshotRecord
from boxwright.store import trace

if TYPE_CHECKING:
    from boxwright.snapshots.manager import SnapshotManager
    from boxwright.snapshots.refs import ImmutableRef

Sharing = Literal["shared", "private", "locked"]


@dataclass(slots=True)
class _Slot:
    """One folder in use: how many use it, and whether more may join."""

    users: int
    is_shared: bool
    root: Path | None = None
    parent: ImmutableRef | None = None


class CacheMounts:
    """All cache mounts of a store; belongs to the event loop of its snapshot manager."""

    def __init__(self, snapshots: SnapshotManager) -> None:
        self._snapshots = snapshots
        self._store = snapshots.store
        self._folder = snapshots.store.root / "cachemounts"
        self._slots: dict[str, _Slot] = {}
        self._waiters: list[asyncio.Future[None]] = []
        self._recover()
        snapshots.cache_mounts = self

    def _recover(self) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        db = self._store.db
        db.execute("DELETE FROM cache_mounts WHERE boot <> ?", (self._store.boot_id,))
        db.execute(
            "DELETE FROM cache_mounts WHERE parent <> ''"
            " AND parent NOT IN (SELECT id FROM snapshots)"
        )
        known = {row[0] for row in db.execute("SELECT id FROM cache_mounts")}
        for entry in os.scandir(self._folder):
            if entry.name not in known:
                self._store.discard(Path(entry.path))
        for missing in known - {entry.name for entry in os.scandir(self._folder)}:
            db.execute("DELETE FROM cache_mounts WHERE id = ?", (missing,))

    @asynccontextmanager
    async def acquired(
        self,
        key: str,
        sharing: Sharing,
        *,
        parent: ImmutableRef | None = None,
        description: str = "",
    ) -> AsyncIterator[Path]:
        """Give the writable root of a cache mount for the length of the block.

        Args:
            key: What the step asks for.
            sharing: ``shared`` joins other shared users; ``private`` takes a folder of its own,
                a new one if all are in use; ``locked`` waits until one is free.
            parent: The tree that a new folder starts from.
            description: For listings.

        Raises:
            LayerMissingError: a layer of ``parent`` can no longer be fetched.
            DiskFullError: no space left.
        """
        mount_id = await self._take(key, sharing, parent, description)
        try:
            async with self._snapshots.mutable_lock(mount_id):
                root = await self._mount(mount_id, self._slots[mount_id])
            yield root
        finally:
            await self._give_back(mount_id)

    async def _take(
        self, key: str, sharing: Sharing, parent: ImmutableRef | None, description: str
    ) -> str:
        # No await between the look and the claim: nobody comes in between.
        while True:
            existing = self._ids(key, parent)
            for mount_id in existing if sharing == "shared" else ():
                slot = self._slots.get(mount_id)
                if slot is not None and slot.is_shared:
                    slot.users += 1
                    return mount_id
            free = [mount_id for mount_id in existing if mount_id not in self._slots]
            if free or not existing or sharing != "locked":
                break
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter
        mount_id = free[0] if free else self._insert(key, parent, description)
        held = parent.clone() if parent is not None else None
        self._slots[mount_id] = _Slot(1, sharing == "shared", parent=held)
        return mount_id

    def _ids(self, key: str, parent: ImmutableRef | None) -> list[str]:
        rows = self._store.db.execute(
            "SELECT id FROM cache_mounts WHERE key = ? AND parent = ? ORDER BY used_ns DESC",
            (key, parent.id if parent is not None else ""),
        )
        return [row[0] for row in rows]

    def _insert(self, key: str, parent: ImmutableRef | None, description: str) -> str:
        mount_id = secrets.token_hex(8)
        now = self._store.clock.now_ns()
        (self._folder / mount_id).mkdir(mode=0o700)
        trace.point("cachemount-made")
        self._store.db.execute(
            "INSERT INTO cache_mounts (id, key, parent, description, created_ns, used_ns)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (mount_id, key, parent.id if parent is not None else "", description, now, now),
        )
        return mount_id

    async def _mount(self, mount_id: str, slot: _Slot) -> Path:
        if slot.root is not None:
            return slot.root
        folder = self._folder / mount_id
        upper = folder / "fs"
        layers = await slot.parent.stack() if slot.parent is not None else []
        # From here on a power cut may tear the folder.
        self._store.db.execute(
            "UPDATE cache_mounts SET boot = ?, size = NULL WHERE id = ?",
            (self._store.boot_id, mount_id),
        )
        if not upper.exists():
            await to_worker(materialise.make_root, upper, layers[-1] if layers else None)
        slot.root = (
            await self._snapshots.mounts.writable(layers, upper, folder / "work")
            if layers
            else upper
        )
        return slot.root

    async def _give_back(self, mount_id: str) -> None:
        slot = self._slots[mount_id]
        slot.users -= 1
        self._store.db.execute(
            "UPDATE cache_mounts SET used_ns = ?, usage_count = usage_count + 1, size = NULL"
            " WHERE id = ?",
            (self._store.clock.now_ns(), mount_id),
        )
        if slot.users:
            return
        try:
            if slot.root is not None and slot.parent is not None:
                slot.is_shared = False  # nobody may join while it is being unmounted
                await self._snapshots.mounts.unmount(slot.root)
        finally:
            if slot.parent is not None:
                await slot.parent.release()
            del self._slots[mount_id]
            self._wake()  # before what may take long, or fail
            if self._is_forgotten(mount_id):
                await self.delete(mount_id)

    def _is_forgotten(self, mount_id: str) -> bool:
        rows = self._store.db.execute("SELECT key FROM cache_mounts WHERE id = ?", (mount_id,))
        return bool(rows) and str(rows[0][0]).startswith("\0")

    def _wake(self) -> None:
        """Have everybody who waits look again; the first to look takes it."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def forget(self, ids: Mapping[str, bool]) -> None:
        """Have the next step that asks for one of these find an empty folder.

        A folder that a step uses stays that step's, and is nobody's afterwards.

        Args:
            ids: The mounts' ids, and whether they start from a snapshot.
        """
        for cache_id, has_parent in ids.items():
            rows = self._store.db.execute(
                "SELECT id FROM cache_mounts WHERE key = ? AND (parent <> '') = ?",
                (cache_id, has_parent),
            )
            for (mount_id,) in rows:
                self._store.db.execute(
                    "UPDATE cache_mounts SET key = ? WHERE id = ?", (f"\0{mount_id}", mount_id)
                )
                if mount_id not in self._slots:
                    await self.delete(mount_id)
        self._wake()

    # -- listing, deleting --------------------------------------------------------------

    def has(self, mount_id: str) -> bool:
        """Return whether there is a cache mount with this id."""
        return bool(self._store.db.execute("SELECT 1 FROM cache_mounts WHERE id = ?", (mount_id,)))

    def is_parent(self, snapshot_id: str) -> bool:
        """Return whether a cache mount is built on this snapshot."""
        return bool(
            self._store.db.execute("SELECT 1 FROM cache_mounts WHERE parent = ?", (snapshot_id,))
        )

    def records(self) -> list[SnapshotRecord]:
        """Return all cache mounts, the oldest first."""
        rows = self._store.db.execute(
            "SELECT id, parent, description, created_ns, used_ns, usage_count, size"
            " FROM cache_mounts ORDER BY created_ns, id"
        )
        return [
            SnapshotRecord(
                id=row[0],
                parents=(row[1],) if row[1] else (),
                description=row[2],
                record_type=CACHE_MOUNT_TYPE,
                created_ns=row[3],
                last_used_ns=row[4],
                usage_count=row[5],
                size_bytes=row[6],
                in_use=row[0] in self._slots,
                mutable=True,
            )
            for row in rows
        ]

    async def count_size(self, mount_id: str) -> int:
        """Count what a cache mount takes on the disk, in bytes; stored if nobody uses it."""
        size = await to_worker(files.disk_usage, self._folder / mount_id)
        if mount_id not in self._slots:
            self._store.db.execute(
                "UPDATE cache_mounts SET size = ? WHERE id = ?", (size, mount_id)
            )
        return size

    async def delete(self, mount_id: str) -> int:
        """Delete a cache mount that nobody uses; return the bytes that it took.

        Raises:
            SnapshotNotFoundError: there is none with this id.
            SnapshotInUseError: a step uses it.
        """
        if not self.has(mount_id):
            raise SnapshotNotFoundError(mount_id)
        size = await to_worker(files.disk_usage, self._folder / mount_id)
        if mount_id in self._slots:
            raise SnapshotInUseError(mount_id, "a step uses this cache mount")
        self._store.db.execute("DELETE FROM cache_mounts WHERE id = ?", (mount_id,))
        self._store.discard(self._folder / mount_id)
        return size

    def unsynced(self) -> list[str]:
        """Return the unused cache mounts that no syncfs has covered yet."""
        rows = self._store.db.execute("SELECT id FROM cache_mounts WHERE boot IS NOT NULL")
        return [row[0] for row in rows if row[0] not in self._slots]

    def mark_synced(self, ids: list[str]) -> None:
        """Note that these are on the disk, unless they are in use again."""
        self._store.db.execute_many(
            "UPDATE cache_mounts SET boot = NULL WHERE id = ?",
            [(mount_id,) for mount_id in ids if mount_id not in self._slots],
        )
