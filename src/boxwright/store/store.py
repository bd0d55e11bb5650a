"""The state folder: one owner, one database, one blob store.

On disk::

    <root>/lock             held with flock(2) by the owner, holds his process id
    <root>/state.db         metadata (SQLite, WAL)
    <root>/blobs/sha256/    whole, verified blobs (and folders of other digest algorithms)
    <root>/ingest/          blobs being written
    <root>/snapshots/<id>/  file trees (package snapshots)
    <root>/cachemounts/     RUN --mount=type=cache folders (package snapshots)
    <root>/run/mnt/         mount points; nothing in it outlives the process
    <root>/trash/           trees on their way out
    <root>/reserve          room that is given up when the disk is full, so that pruning works

The lock guards everything: whoever holds it may assume that no other process writes here.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Container
from pathlib import Path
from typing import Self

from boxwright.core.clock import Clock, SystemClock
from boxwright.core.dataclass import dataclass, field
from boxwright.core.digest import Digest
from boxwright.linux import files, mount, process
from boxwright.store import schema, trace
from boxwright.store.blobs import BlobStore
from boxwright.store.database import Database
from boxwright.store.errors import (
    BlobNotFoundError,
    DiskFullError,
    StoreAccessError,
    StoreLockedError,
    disk_errors,
)
from boxwright.store.images import ImageStore
from boxwright.store.leases import Leases
from boxwright.store.room import Room
from boxwright.store.trash import Trash

logger = logging.getLogger(__name__)

RESERVE_BYTES = 1 << 20
# A blob that was written a moment ago may not have found its lease or manifest yet.
GRACE_NS = 10 * 60 * 1_000_000_000


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes on the disk by what they are for."""

    blobs: int
    staged: int
    database: int


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection removed."""

    blobs: int = 0
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What :meth:`Store.verify` found; lists are empty on a sound store."""

    checked: int
    corrupt: list[Digest] = field(default_factory=list)
    missing: list[Digest] = field(default_factory=list)
    stray: list[str] = field(default_factory=list)
    broken_images: list[str] = field(default_factory=list)
    database: list[str] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        """Whether nothing was wrong."""
        return not (
            self.corrupt or self.missing or self.stray or self.broken_images or self.database
        )


class Store:
    """An open state folder; :meth:`close` it. Safe from every thread, calls may block."""

    def __init__(self, root: Path, lock_fd: int, clock: Clock, *, rootless: bool) -> None:
        self.root = root
        self.clock = clock
        self.rootless = rootless
        self.boot_id = process.boot_id()
        self._lock_fd = lock_fd
        self._reserve = root / "reserve"
        self.db = Database(root / "state.db", on_full=self._give_up_reserve)
        self.leases = Leases(self.db, clock)
        self.images = ImageStore(self.db, clock)
        self.mounts = root / "run" / "mnt"
        self.was_clean = self._meta("clean") == "1"
        self.trash = Trash(root / "trash")
        try:
            self.room = Room(root, self.trash)
            self.blobs = BlobStore(root, self.db, clock, self.room)
            self._recover()
        except BaseException:
            self.trash.close()
            self.db.close()
            raise

    @classmethod
    def open(cls, root: Path, *, clock: Clock | None = None, rootless: bool = False) -> Self:
        """Lock, migrate and recover the state folder, making it if needed.

        Args:
            root: The state folder.
            clock: Where times come from.
            rootless: We are root only in a user namespace.

        Raises:
            StoreLockedError: another process owns it.
            StoreVersionError: a newer version wrote it.
            StoreAccessError: it can't be made or written.
            StoreCorruptError: its database is damaged.
            DiskFullError: there is no room for its database.
        """
        root = Path(os.path.abspath(root))
        lock_fd = lock_root(root)
        try:
            with disk_errors(root):
                return cls(root, lock_fd, clock or SystemClock(), rootless=rootless)
        except BaseException:
            os.close(lock_fd)
            raise

    def _meta(self, key: str) -> str | None:
        rows = self.db.execute("SELECT value FROM meta WHERE key = ?", (key,))
        return str(rows[0][0]) if rows else None

    def _set_meta(self, key: str, value: str) -> None:
        with self.db.transaction(durable=True) as cursor:
            cursor.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (key, value))

    def _recover(self) -> None:
        left = mount.unmount_below(self.root / "run")
        self.mounts.mkdir(parents=True, exist_ok=True)
        for entry in list(os.scandir(self.mounts)):
            self.discard(Path(entry.path))
        leases = self.leases.recover()
        removed = 0 if self.was_clean else self.blobs.recover()
        self._set_meta("clean", "0")
        self._make_reserve()
        if left or leases or removed:
            logger.info(
                "recovered %s: %d mounts, %d leases, %d half-written blobs removed",
                self.root,
                left,
                leases,
                removed,
            )

    def _make_reserve(self) -> None:
        """Set aside what the database needs to be pruned on a disk that is full."""
        try:
            with open(self._reserve, "ab") as file:
                files.preallocate(file.fileno(), RESERVE_BYTES)
        except OSError as error:
            logger.debug("no reserve on %s: %s", self.root, error)

    def _give_up_reserve(self) -> None:
        self._reserve.unlink(missing_ok=True)

    def discard(self, path: Path) -> None:
        """Move a file or folder of this store to the trash, where it is removed later.

        Raises:
            OSError: it can't be renamed.
        """
        self.trash.discard(path)

    def gc(self, *, grace_ns: int = GRACE_NS, min_bytes: int = 0) -> Collected:
        """Remove blobs that no lease, tag, snapshot or registered root leads to.

        Args:
            grace_ns: Spare blobs written or used within this many nanoseconds.
            min_bytes: Spare blobs smaller than this.

        Returns:
            How many blobs and bytes went.
        """
        self.leases.expire()
        before = self.clock.now_ns() - grace_ns
        dead = self.db.scan(_dead_blobs(), (before, before, min_bytes))
        trace.point("gc-marked")
        still_live = _is_live()
        count = size = 0
        for (text,) in dead:
            freed = self.blobs.delete_unless(Digest(text), still_live)
            if freed is not None:
                count += 1
                size += freed
        return Collected(count, size)

    def usage(self) -> Usage:
        """Return what blobs, unfinished writes and metadata take on the disk."""
        staged = sum(map(_size_of, os.scandir(self.blobs.ingest)))
        database = sum(map(_size_of, self.root.glob("state.db*")))
        return Usage(self.blobs.total_bytes(), staged, database)

    def verify(self, *, repair: bool = True) -> VerifyReport:
        """Read every blob and follow every reference; slow.

        Args:
            repair: Forget damaged and missing blobs (they are fetched or made again when
                needed) and remove files that nothing knows.

        Returns:
            All that was wrong before the repair.
        """
        report = VerifyReport(checked=0, database=self.db.integrity_errors())
        checked = 0
        known: set[str] = set()
        for info in self.blobs.walk():
            checked += 1
            known.add(info.digest)
            try:
                sound = self.blobs.is_sound(info.digest)
            except BlobNotFoundError:
                report.missing.append(info.digest)
                continue
            if not sound:
                report.corrupt.append(info.digest)
        for name in self.blobs.files():
            if name not in known and self._is_stray(name):
                report.stray.append(name)
        bad = {*report.corrupt, *report.missing}
        report.broken_images.extend(self._broken_images(bad))
        if repair:
            for digest in bad:
                self.blobs.delete(digest)
            # A layer is written again when it is next exported; its source may be fetched again.
            self.db.execute(
                "DELETE FROM snapshot_blobs WHERE variant <> 'source'"
                " AND digest NOT IN (SELECT digest FROM blobs)"
            )
            self.db.execute("DELETE FROM blob_refs WHERE parent NOT IN (SELECT digest FROM blobs)")
            for name in report.stray:
                self.blobs.file(name).unlink(missing_ok=True)
        return VerifyReport(
            checked,
            report.corrupt,
            report.missing,
            report.stray,
            report.broken_images,
            report.database,
        )

    def _is_stray(self, name: str) -> bool:
        # Ask again: it may have been committed after the walk had passed its place.
        return not self.db.execute("SELECT 1 FROM blobs WHERE digest = ?", (name,))

    def _broken_images(self, bad: set[Digest]) -> list[str]:
        return [
            record.name
            for record in self.images.list()
            if not self.is_whole(record.descriptor.digest, bad)
        ]

    def is_whole(self, root: Digest, bad: Container[Digest] = ()) -> bool:
        """Return whether a blob and all that it refers to are stored.

        Args:
            root: A manifest, or any blob.
            bad: Blobs that count as missing.
        """
        graph = self.blobs.graph(root)
        return not any(size is None or digest in bad for digest, size in graph.items())

    def available_bytes(self) -> int:
        """Return the bytes that may still be written on this file system."""
        return files.statfs(self.root).available_bytes

    def close(self, *, drain_trash: bool = False) -> None:
        """Give the folder up; harmless a second time.

        Args:
            drain_trash: Wait until discarded trees are removed.
        """
        if self._lock_fd < 0:
            return
        self.trash.close(drain=drain_trash)
        try:
            self._set_meta("clean", "1")
        except DiskFullError:
            logger.info("disk full: the next start of %s looks for leftovers", self.root)
        finally:
            self.db.close()
            os.close(self._lock_fd)
            self._lock_fd = -1


def _roots() -> list[str]:
    """Return the queries whose blobs collection keeps, with all that these refer to."""
    return [
        "SELECT item FROM lease_items WHERE kind = 'blob'",
        "SELECT digest FROM images",
        "SELECT blob FROM snapshots WHERE blob IS NOT NULL",
        "SELECT digest FROM snapshot_blobs",
        *schema.blob_roots(),
    ]


def _dead_blobs() -> str:
    """Go down from all roots; parameters: created before, used before, smallest size."""
    down = "SELECT child FROM blob_refs JOIN live ON parent = live.digest"
    return (
        f"WITH RECURSIVE live (digest) AS ({' UNION '.join([*_roots(), down])})"  # noqa: S608
        " SELECT digest FROM blobs"
        " WHERE created_ns <= ? AND used_ns <= ? AND size >= ? AND digest NOT IN live"
    )


def _is_live() -> str:
    """Go up from one blob, which is short; parameter: its digest."""
    # Not "IN (root)": SQLite would make a list of each root, once for every blob that is asked for.
    roots = [(f"root{number}", query) for number, query in enumerate(_roots())]
    named = "".join(f", {name} (digest) AS ({query})" for name, query in roots)
    in_root = " OR ".join(
        f"EXISTS (SELECT 1 FROM {name} WHERE {name}.digest = up.digest)"  # noqa: S608
        for name, _ in roots
    )
    return (
        "WITH RECURSIVE up (digest) AS (SELECT ? UNION SELECT parent FROM blob_refs"  # noqa: S608
        f" JOIN up ON child = up.digest){named} SELECT 1 FROM up WHERE {in_root} LIMIT 1"
    )


def lock_root(root: Path) -> int:
    """Become the owner of a state folder until the returned descriptor is closed.

    Raises:
        StoreLockedError: another process owns it.
        StoreAccessError: the folder can't be made or written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o711)
        fd = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreAccessError(root, error.strerror or str(error)) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.pread(fd, 32, 0).strip()
        os.close(fd)
        raise StoreLockedError(root, int(owner) if owner.isdigit() else None) from error
    os.ftruncate(fd, 0)
    os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    return fd


def _size_of(file: os.DirEntry[str] | Path) -> int:
    """Return a file's size; none if it is gone, as one that was being written may be."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0
