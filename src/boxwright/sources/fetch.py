"""Bringing the blobs of images into the store, each once however many want it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from boxwright.core.dataclass import dataclass
from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.core.workers import to_worker
from boxwright.store.blobs import BlobStore, BlobWriter
from boxwright.store.errors import DigestMismatchError

_PARALLEL_FETCHES = 4
_BATCH_BYTES = 1 << 20

OnProgress = Callable[[int], None]


class AsyncSink(Protocol):
    """Takes a blob's bytes as they arrive."""

    async def write(self, data: bytes) -> None:
        """Take the next bytes."""
        ...


class ImageRemote(Protocol):
    """A place that serves one image's manifests and blobs."""

    async def manifest(self, digest: Digest | None) -> tuple[Descriptor, bytes]:
        """Return a verified manifest or index: the named one, or what ``digest`` says.

        Raises:
            BoxwrightError: it is not there, or the place can't be reached.
        """
        ...

    async def blob(self, descriptor: Descriptor, sink: AsyncSink) -> None:
        """Stream a blob into ``sink``; its caller verifies the digest."""
        ...

    @property
    def source_labels(self) -> Mapping[str, str]:
        """Labels for blobs that come from here (which registry and repository)."""
        ...


class MemorySink:
    """Keeps a small blob's bytes; more than ``size`` of them are refused."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.data = bytearray()

    async def write(self, data: bytes) -> None:
        """Take the next bytes.

        Raises:
            DigestMismatchError: there are more than announced.
        """
        self.data += data
        if len(self.data) > self._size:
            raise DigestMismatchError(
                want=None, got=None, want_size=self._size, got_size=len(self.data)
            )


class WriterSink:
    """Feeds a blob writer in worker threads, in large pieces."""

    def __init__(self, writer: BlobWriter, on_progress: OnProgress | None = None) -> None:
        self._writer = writer
        self._pending = bytearray()
        self._taken = 0
        self._on_progress = on_progress

    async def write(self, data: bytes) -> None:
        """Take the next bytes."""
        self._pending += data
        if len(self._pending) >= _BATCH_BYTES:
            await self.flush()

    async def flush(self) -> None:
        """Write what is pending."""
        if self._pending:
            data, self._pending = self._pending, bytearray()
            await to_worker(self._writer.write, data)
            self._taken += len(data)
            if self._on_progress is not None:
                self._on_progress(self._taken)


@dataclass
class _Fetch:
    """One blob on its way, and who waits for it."""

    task: asyncio.Task[None]
    listeners: list[OnProgress]
    waiting: int = 0


class BlobFetcher:
    """Brings blobs into the store, a few at a time.

    Who asks for a blob that is on its way already waits for the same transfer. It is cancelled
    when nobody waits any more.
    """

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._running: dict[Digest, _Fetch] = {}
        self._slots = asyncio.Semaphore(_PARALLEL_FETCHES)

    async def fetch(
        self,
        remote: ImageRemote,
        descriptor: Descriptor,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Make sure that the store has the blob.

        Args:
            remote: where it is.
            descriptor: its digest and size in bytes.
            on_progress: called with the bytes that have arrived.

        Raises:
            DigestMismatchError: the remote sent something else.
            BoxwrightError: of the remote or the store.
        """
        if await to_worker(self._have, remote, descriptor):
            return
        running = self._running.get(descriptor.digest)
        if running is None:
            listeners: list[OnProgress] = []
            task = asyncio.ensure_future(self._fetch(remote, descriptor, listeners))
            running = _Fetch(task, listeners)
            self._running[descriptor.digest] = running
        running.waiting += 1
        if on_progress is not None:
            running.listeners.append(on_progress)
        try:
            await asyncio.shield(running.task)
        finally:
            running.waiting -= 1
            if not running.waiting:
                if self._running.get(descriptor.digest) is running:
                    del self._running[descriptor.digest]
                running.task.cancel()
                await asyncio.gather(running.task, return_exceptions=True)

    def _have(self, remote: ImageRemote, descriptor: Descriptor) -> bool:
        if self._blobs.stat(descriptor.digest) != descriptor.size:
            return False
        self._blobs.touch(descriptor.digest)
        labels = dict(remote.source_labels)
        if labels.items() - self._blobs.labels(descriptor.digest).items():
            self._blobs.set_labels(descriptor.digest, labels)
        return True

    async def _fetch(
        self, remote: ImageRemote, descriptor: Descriptor, listeners: Sequence[OnProgress]
    ) -> None:
        def tell(arrived: int) -> None:
            for listener in listeners:
                listener(arrived)

        opened: list[BlobWriter] = []

        def begin() -> None:
            size = descriptor.size
            opened.append(self._blobs.writer(expected=descriptor.digest, expected_size=size))

        async with self._slots:
            try:
                async with self._blobs.room.reserved(descriptor.size):  # until the disk has it
                    await to_worker(begin)
                sink = WriterSink(opened[0], tell)
                await remote.blob(descriptor, sink)
                await sink.flush()
                await to_worker(opened[0].commit, dict(remote.source_labels))
            finally:
                for writer in opened:  # also if this was cancelled while it was made
                    writer.abort()
