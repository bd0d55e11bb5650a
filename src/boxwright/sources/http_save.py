"""One file becomes one snapshot, hashed while it is written."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from boxwright.core.dataclass import dataclass
from boxwright.core.digest import Digest
from boxwright.core.workers import to_worker
from boxwright.errors import InvalidInputError
from boxwright.snapshots.manager import SnapshotManager
from boxwright.snapshots.refs import ImmutableRef
from boxwright.sources.base import SourceProgress
from boxwright.sources.fetch import AsyncSink
from boxwright.store.errors import DiskFullError

_PIECE_BYTES = 1 << 20
_PROGRESS_INTERVAL_S = 0.1


@dataclass(frozen=True, slots=True)
class DownloadedFile:
    """How the file lies in the snapshot; ``name`` is a plain name, times in seconds."""

    name: str
    mode: int
    owner: tuple[int, int] = (0, 0)
    mtime_s: int = 0


async def save(
    snapshots: SnapshotManager,
    description: str,
    file: DownloadedFile,
    body: AsyncIterator[bytes],
    *,
    total_bytes: int = 0,
    progress: SourceProgress | None = None,
) -> tuple[ImmutableRef, Digest]:
    """Write a stream into a new snapshot; return it with the content's digest.

    Raises:
        DiskFullError: no room; nothing stays behind.
        InvalidInputError: the file system can't have this name.
    """

    async def fill(sink: AsyncSink) -> None:
        async for data in body:
            await sink.write(data)

    return await save_from(
        snapshots, description, file, fill, total_bytes=total_bytes, progress=progress
    )


async def save_from(
    snapshots: SnapshotManager,
    description: str,
    file: DownloadedFile,
    fill: Callable[[AsyncSink], Awaitable[None]],
    *,
    total_bytes: int = 0,
    progress: SourceProgress | None = None,
) -> tuple[ImmutableRef, Digest]:
    """As :func:`save`, of what ``fill`` writes into the sink that it is given."""
    shown = _Transfer(file.name, total_bytes, progress)
    async with snapshots.new(None, description=description) as tree:
        async with tree.mounted() as root:
            writer = await to_worker(_Writer, root, file)
            try:
                sink = _Sink(writer, shown)
                await fill(sink)
                digest = await to_worker(writer.finish, sink.pending)
            finally:
                writer.close()
        shown.done()
        return await tree.commit(), digest


class _Sink:
    """Hands bytes to the writer in large pieces."""

    def __init__(self, writer: _Writer, shown: _Transfer) -> None:
        self._writer = writer
        self._shown = shown
        self.pending = bytearray()

    async def write(self, data: bytes) -> None:
        self._shown.add(len(data))
        self.pending += data
        if len(self.pending) >= _PIECE_BYTES:
            piece, self.pending = self.pending, bytearray()
            await to_worker(self._writer.write, piece)


class _Writer:
    """The file while it is written; runs in worker threads."""

    def __init__(self, root: Path, file: DownloadedFile) -> None:
        self._path = root / file.name
        self._file = file
        self._hash = hashlib.sha256()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._fd = os.open(self._path, flags, 0o600)
        except OSError as exc:
            if exc.errno in {errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ}:
                raise InvalidInputError(
                    "invalid name for a download", detail=f"{file.name[:80]!r}: {exc.strerror}"
                ) from exc
            raise

    def write(self, data: bytearray) -> None:
        self._hash.update(data)
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as exc:
            if exc.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise DiskFullError(self._path) from exc
            raise

    def finish(self, rest: bytearray) -> Digest:
        self.write(rest)
        if self._file.owner != (0, 0):
            os.fchown(self._fd, *self._file.owner)
        os.fchmod(self._fd, self._file.mode)
        os.utime(self._fd, (self._file.mtime_s, self._file.mtime_s))
        return Digest.from_hex(self._hash.hexdigest())

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class _Transfer:
    """Shows the bytes that have come, at most every tenth of a second."""

    def __init__(self, name: str, total: int, progress: SourceProgress | None) -> None:
        self._name = name
        self._total = total
        self._progress = progress
        self._bytes = 0
        self._started_ns = time.time_ns()
        self._shown_s = 0.0

    def add(self, count: int) -> None:
        self._bytes += count
        now_s = time.monotonic()
        if now_s - self._shown_s >= _PROGRESS_INTERVAL_S:
            self._shown_s = now_s
            self._report(None)

    def done(self) -> None:
        self._report(time.time_ns())

    def _report(self, completed_ns: int | None) -> None:
        if self._progress is not None:
            self._progress.status(
                f"downloading {self._name}",
                name="downloading",
                current=self._bytes,
                total=self._total,
                started_ns=self._started_ns,
                completed_ns=completed_ns,
            )
