"""The content-addressed blob store, in the layout of an OCI image layout's ``blobs``.

On disk::

    <root>/ingest/<random>           a write in progress
    <root>/blobs/sha256/<hex>        a whole, verified blob, read-only, never changed
    <root>/blobs/sha512/<hex>        one that was asked for by that algorithm (likewise sha384)

A blob has the algorithm under which it came. The same bytes under two algorithms are two blobs,
so that a row, a lease or a reference always means one file.

Publishing is *stage → verify digest → fsync file → link → fsync folder → commit row*. A crash
leaves a staged file, or a linked file without a row; opening the store removes both. The row
is the truth: a file without one does not exist for readers. ``_publish`` serialises linking and
row against the deletion in a collection, so that neither sees the other half-done; it is taken
before the database's lock, so nobody may commit or delete a blob inside a ``transaction()``.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from boxwright.core.clock import Clock
from boxwright.core.dataclass import dataclass
from boxwright.core.digest import ALGORITHMS, CANONICAL, Digest, new_hash
from boxwright.errors import LimitExceededError
from boxwright.linux import files
from boxwright.store import trace
from boxwright.store.database import Database
from boxwright.store.errors import (
    BlobNotFoundError,
    DigestMismatchError,
    DiskFullError,
    disk_errors,
)
from boxwright.store.room import Room

_RESERVE_FROM = 1 << 20  # smaller blobs are not worth the extra call
_WRITEBACK_STEP = 16 << 20
READ_LIMIT = 64 << 20


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """One blob as the database knows it; times in nanoseconds since the epoch."""

    digest: Digest
    size: int
    created_ns: int
    used_ns: int
    labels: Mapping[str, str]


class BlobWriter:
    """One staged blob: write, then commit; leaving the block without a commit drops it.

    Not safe from several threads at once; may move between threads from call to call.
    """

    def __init__(
        self,
        store: BlobStore,
        *,
        expected: Digest | None,
        expected_size: int | None,
        algorithm: str = CANONICAL,
    ) -> None:
        self._store = store
        self._expected = expected
        self._expected_size = expected_size
        self._algorithm = expected.algorithm if expected else algorithm
        self._hash = new_hash(self._algorithm)
        self._size = 0
        self._flushed = 0
        self._path = store.ingest / secrets.token_hex(16)
        with disk_errors(self._path):
            self._fd = os.open(
                self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444
            )
        if expected_size is not None and expected_size >= _RESERVE_FROM:
            self._check(expected_size)
            self._reserve(expected_size)

    def _check(self, size: int) -> None:
        try:
            self._store.room.check(size)
        except BaseException:
            self.abort()
            raise

    def _reserve(self, size: int) -> None:
        try:
            files.preallocate(self._fd, size)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
                self.abort()
                free = files.statfs(self._store.ingest).available_bytes
                raise DiskFullError(self._path, needed=size, available=free) from error

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._size

    def expect(self, digest: Digest) -> None:
        """Announce the digest after the fact: an upload names it only in its last request."""
        self._expected = digest

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append and hash ``data``.

        Raises:
            DiskFullError: there is no room; the staged file is gone.
            DiskCapError: the state folder may not grow any more.
            DigestMismatchError: more bytes than announced.
        """
        length = len(data)
        if self._expected_size is not None and self._size + length > self._expected_size:
            got = self._size + length
            self.abort()
            raise DigestMismatchError(
                want=self._expected, got=None, want_size=self._expected_size, got_size=got
            )
        self._hash.update(data)
        try:
            with disk_errors(self._path, needed=length):
                written = os.write(self._fd, data)
                while written < length:
                    written += os.write(self._fd, memoryview(data)[written:])
        except BaseException:
            self.abort()
            raise
        self._size += length
        if self._size - self._flushed >= _WRITEBACK_STEP:
            # Start the disk while the producer still compresses: the fsync then waits little.
            files.start_writeback(self._fd, self._flushed, self._size - self._flushed)
            self._flushed = self._size
            self._check(0)
        return length

    def commit(self, labels: Mapping[str, str] | None = None) -> tuple[Digest, int]:
        """Verify and publish; return digest and size. The same content twice is one blob.

        Raises:
            DigestMismatchError: the content is not what was announced.
            DiskFullError: there is no room.
        """
        digest = self._digest()
        wrong_size = self._expected_size is not None and self._size != self._expected_size
        if wrong_size or (self._expected is not None and digest != self._expected):
            self.abort()
            raise DigestMismatchError(
                want=self._expected,
                got=digest,
                want_size=self._expected_size,
                got_size=self._size,
            )
        try:
            trace.point("blob-staged")
            with disk_errors(self._path):
                if self._store.stat(digest) is None:
                    os.fsync(self._fd)
                    trace.point("blob-synced")
                self._store.publish(self._path, digest, self._size, labels or {})
        finally:
            self.abort()
        return digest, self._size

    def _digest(self) -> Digest:
        if self._expected is not None and self._expected.algorithm != self._algorithm:
            # Announced after the bytes, and not by what they were hashed with.
            with open(self._path, "rb") as file:
                return _digest_of(file, self._expected.algorithm)
        return Digest.of_hash(self._algorithm, self._hash.hexdigest())

    def abort(self) -> None:
        """Drop the staged file; harmless after a commit or a second time."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.abort()


class BlobStore:
    """All blobs of one state folder; safe from every thread."""

    def __init__(self, root: Path, database: Database, clock: Clock, room: Room) -> None:
        self.room = room
        self.folder = root / "blobs"
        self._prefix = f"{self.folder}/"
        self.ingest = root / "ingest"
        self._database = database
        self._clock = clock
        self._publish = threading.RLock()
        for path in (self.folder / CANONICAL, self.ingest):
            path.mkdir(parents=True, exist_ok=True)

    def path(self, digest: Digest) -> Path:
        """Return where the blob lies or would lie; ask :meth:`stat` whether it is there."""
        return self.folder / digest.algorithm / digest.hex

    def stat(self, digest: Digest) -> int | None:
        """Return the size in bytes, or ``None`` if the blob is missing or cut short."""
        rows = self._database.execute("SELECT size FROM blobs WHERE digest = ?", (digest,))
        if not rows:
            return None
        try:
            found = os.stat(f"{self._prefix}{digest.replace(':', '/')}").st_size
        except FileNotFoundError:
            return None
        return found if found == rows[0][0] else None

    def info(self, digest: Digest) -> BlobInfo:
        """Return what is known about a blob.

        Raises:
            BlobNotFoundError: it is not there.
        """
        rows = self._database.execute(
            "SELECT digest, size, created_ns, used_ns, labels FROM blobs WHERE digest = ?",
            (digest,),
        )
        if not rows:
            raise BlobNotFoundError(digest)
        return _info(rows[0])

    def open(self, digest: Digest) -> BinaryIO:
        """Open a blob for reading, unbuffered; the caller closes it.

        Raises:
            BlobNotFoundError: it is not there.
        """
        if self.stat(digest) is None:
            raise BlobNotFoundError(digest)
        try:
            return open(self.path(digest), "rb", buffering=0)
        except FileNotFoundError as error:
            raise BlobNotFoundError(digest) from error

    def read(self, digest: Digest, limit: int = READ_LIMIT) -> bytes:
        """Return a whole blob, checked against its digest: for manifests and configs.

        Raises:
            BlobNotFoundError: it is not there, or damaged (it is then forgotten).
            LimitExceededError: it is larger than ``limit`` bytes.
        """
        size = self.stat(digest)
        if size is None:
            raise BlobNotFoundError(digest)
        if size > limit:
            raise LimitExceededError(
                f"blob {digest} is too large to read whole", detail=f"{size} of {limit} bytes"
            )
        with self.open(digest) as file:
            data = file.read(limit + 1)
        if not digest.matches(data):
            self.delete(digest)
            raise BlobNotFoundError(digest)
        return data

    def writer(
        self,
        *,
        expected: Digest | None = None,
        expected_size: int | None = None,
        algorithm: str = CANONICAL,
    ) -> BlobWriter:
        """Begin a blob; use as a context manager.

        Args:
            expected: The digest that it must have.
            expected_size: How many bytes come.
            algorithm: What to hash with if ``expected`` does not say it; a guess of another one
                than :meth:`BlobWriter.expect` names later costs reading the blob again.

        Raises:
            DiskFullError: ``expected_size`` bytes can't be reserved.
            InvalidInputError: digests can't be of this algorithm.
        """
        return BlobWriter(
            self, expected=expected, expected_size=expected_size, algorithm=algorithm
        )

    def put(
        self,
        data: bytes,
        labels: Mapping[str, str] | None = None,
        *,
        expected: Digest | None = None,
    ) -> Digest:
        """Store a small blob that is in memory and return its digest.

        Raises:
            DigestMismatchError: it has not the ``expected`` one.
            DiskFullError: there is no room.
        """
        with self.writer(expected=expected) as writer:
            writer.write(data)
            return writer.commit(labels)[0]

    def publish(self, staged: Path, digest: Digest, size: int, labels: Mapping[str, str]) -> None:
        """Link a verified, synced file into place and commit its row (BlobWriter's last step).

        Raises:
            DiskFullError: there is no room for the link or the row.
        """
        target, now = self.path(digest), self._clock.now_ns()
        with self._publish, disk_errors(target):
            if self.stat(digest) is None:
                if not target.parent.is_dir():  # the first of its algorithm
                    target.parent.mkdir()
                    sync_folder(self.folder)
                target.unlink(missing_ok=True)  # a leftover or damaged file without a row
                os.link(staged, target)
                trace.point("blob-linked")
                sync_folder(target.parent)
            with self._database.transaction() as cursor:
                cursor.execute(
                    "INSERT INTO blobs (digest, size, created_ns, used_ns) VALUES (?, ?, ?, ?)"
                    " ON CONFLICT (digest) DO UPDATE SET used_ns = ?, size = excluded.size",
                    (digest, size, now, now, now),
                )
                if labels:
                    self.set_labels(digest, labels)
            trace.point("blob-recorded")

    def labels(self, digest: Digest) -> dict[str, str]:
        """Return the labels of a blob.

        Raises:
            BlobNotFoundError: it is not there.
        """
        return dict(self.info(digest).labels)

    def set_labels(self, digest: Digest, labels: Mapping[str, str]) -> None:
        """Add or change labels; an empty value removes one.

        Raises:
            BlobNotFoundError: the blob is not there.
        """
        with self._database.transaction() as cursor:
            merged = {**self.labels(digest), **labels}
            kept = {key: value for key, value in merged.items() if value}
            cursor.execute(
                "UPDATE blobs SET labels = ? WHERE digest = ?",
                (json.dumps(kept, sort_keys=True), digest),
            )

    def touch(self, digest: Digest) -> None:
        """Note that a blob was used now: collection spares recently used ones."""
        self._database.execute(
            "UPDATE blobs SET used_ns = ? WHERE digest = ?", (self._clock.now_ns(), digest)
        )

    def add_refs(self, parent: Digest, children: Iterable[Digest]) -> None:
        """Note that ``parent`` (a manifest or index) needs ``children``."""
        self._database.execute_many(
            "INSERT OR IGNORE INTO blob_refs (parent, child) VALUES (?, ?)",
            [(parent, child) for child in children],
        )

    def refs(self, parent: Digest) -> list[Digest]:
        """Return the blobs that ``parent`` was noted to need."""
        rows = self._database.execute("SELECT child FROM blob_refs WHERE parent = ?", (parent,))
        return [Digest(row[0]) for row in rows]

    def graph(self, root: Digest) -> dict[Digest, int | None]:
        """Return a blob and all that it leads to, with sizes in bytes; ``None``: not stored."""
        rows = self._database.execute(
            "WITH RECURSIVE graph (digest) AS (SELECT ?"
            " UNION SELECT child FROM blob_refs JOIN graph ON parent = graph.digest)"
            " SELECT graph.digest, blobs.size FROM graph"
            " LEFT JOIN blobs ON blobs.digest = graph.digest",
            (root,),
        )
        return {Digest(digest): size for digest, size in rows}

    def is_sound(self, digest: Digest) -> bool:
        """Read a blob and return whether its bytes are what its digest says; slow.

        Raises:
            BlobNotFoundError: it is not there.
        """
        with self.open(digest) as file:
            return _digest_of(file, digest.algorithm) == digest

    def delete(self, digest: Digest) -> int:
        """Forget a blob whoever may need it; return the bytes freed. For repair and pruning."""
        return self.delete_unless(digest, None) or 0

    def delete_unless(self, digest: Digest, still_needed: str | None) -> int | None:
        """Delete a blob unless the query ``still_needed`` (one parameter) finds it by now.

        Returns:
            The bytes freed, ``None`` if it was kept.
        """
        with self._publish:
            with self._database.transaction() as cursor:
                if still_needed and cursor.execute(still_needed, (digest,)).fetchone():
                    return None
                rows = cursor.execute(
                    "DELETE FROM blobs WHERE digest = ? RETURNING size", (digest,)
                ).fetchall()
                cursor.execute("DELETE FROM blob_refs WHERE parent = ?", (digest,))
            trace.point("gc-row-deleted")
            self.path(digest).unlink(missing_ok=True)
            trace.point("gc-unlinked")
        return int(rows[0][0]) if rows else 0

    def walk(self) -> Iterator[BlobInfo]:
        """Iterate over all blobs by digest, in batches, while others may come and go."""
        last = ""
        while rows := self._database.execute(
            "SELECT digest, size, created_ns, used_ns, labels FROM blobs"
            " WHERE digest > ? ORDER BY digest LIMIT 500",
            (last,),
        ):
            yield from map(_info, rows)
            last = rows[-1][0]

    def recover(self) -> int:
        """Remove staged files, files without a row and rows without a file; return how many."""
        removed = 0
        for entry in os.scandir(self.ingest):
            os.unlink(entry.path)
            removed += 1
        known = {row[0] for row in self._database.execute("SELECT digest FROM blobs")}
        found = set(self.files())
        for stray in found - known:
            self.file(stray).unlink()
            removed += 1
        for digest in known - found:
            self.delete(Digest(digest))
            removed += 1
        return removed

    def files(self) -> Iterator[str]:
        """Iterate over what lies among the blobs, as the digests that the names say."""
        for algorithm in ALGORITHMS:
            if (folder := self.folder / algorithm).is_dir():
                yield from (f"{algorithm}:{entry.name}" for entry in os.scandir(folder))

    def file(self, name: str) -> Path:
        """Return where something that :meth:`files` found lies."""
        return self.folder / name.replace(":", "/", 1)

    def total_bytes(self) -> int:
        """Return the sum of all blob sizes."""
        return int(self._database.scan("SELECT coalesce(sum(size), 0) FROM blobs")[0][0])


def _info(row: tuple[str, int, int, int, str]) -> BlobInfo:
    return BlobInfo(Digest(row[0]), row[1], row[2], row[3], json.loads(row[4]))


def _digest_of(file: BinaryIO, algorithm: str) -> Digest:
    found = hashlib.file_digest(file, algorithm).hexdigest()  # type: ignore[arg-type]
    return Digest.of_hash(algorithm, found)


def sync_folder(path: Path) -> None:
    """Write a folder's entries to the disk.

    Raises:
        OSError: it can't be opened or synced.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
