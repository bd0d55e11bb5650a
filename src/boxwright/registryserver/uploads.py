"""Uploads in progress: chunked or in one piece, one staged blob each.

An upload lives in memory and in its staged file: after a restart it is unknown and the client
starts again, as the specification allows. One that nobody touches for an hour is dropped.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator

from boxwright.core.dataclass import dataclass, field
from boxwright.core.digest import Digest
from boxwright.core.workers import to_worker
from boxwright.errors import BoxwrightError, NotFoundError
from boxwright.store import trace
from boxwright.store.blobs import BlobStore, BlobWriter

_IDLE_LIMIT_S = 3600.0
_BATCH_BYTES = 1 << 20


class UnknownUploadError(NotFoundError):
    """There is no such upload (any more)."""


class RangeError(BoxwrightError):
    """A chunk that does not begin where the last one ended."""


@dataclass
class Upload:
    """One upload; the lock admits one request at a time."""

    id: str
    repository: str
    writer: BlobWriter
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    used_s: float = field(default_factory=time.monotonic)


class Uploads:
    """All uploads of one server."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._uploads: dict[str, Upload] = {}

    def start(self, repository: str, algorithm: str) -> Upload:
        """Begin an upload.

        Args:
            repository: The blob is shown in it.
            algorithm: That of the digest, as far as the client has told.

        Raises:
            InvalidInputError: digests can't be of this algorithm.
        """
        self._drop_idle()
        writer = self._blobs.writer(algorithm=algorithm)
        upload = Upload(uuid.uuid4().hex, repository, writer)
        self._uploads[upload.id] = upload
        return upload

    def get(self, repository: str, upload_id: str) -> Upload:
        """Return a running upload.

        Raises:
            UnknownUploadError: it does not exist, or belongs to another repository.
        """
        upload = self._uploads.get(upload_id)
        if upload is None or upload.repository != repository:
            raise UnknownUploadError("blob upload unknown to registry", detail=upload_id)
        upload.used_s = time.monotonic()
        return upload

    async def append(
        self, upload: Upload, chunks: AsyncIterator[bytes], *, start: int | None
    ) -> int:
        """Write a request's body; return the upload's size in bytes.

        Raises:
            RangeError: ``start`` is not the present size.
        """
        async with upload.lock:
            if start is not None and start != upload.writer.size:
                raise RangeError(
                    "chunk does not begin at the end of the upload",
                    detail=f"begins at {start}, {upload.writer.size} bytes are there",
                )
            pending = bytearray()
            async for chunk in chunks:
                pending += chunk
                if len(pending) >= _BATCH_BYTES:
                    await to_worker(upload.writer.write, bytes(pending))
                    pending.clear()
            if pending:
                await to_worker(upload.writer.write, bytes(pending))
            upload.used_s = time.monotonic()
            return upload.writer.size

    async def finish(self, upload: Upload, expected: Digest) -> None:
        """Verify and publish.

        Raises:
            DigestMismatchError: the bytes are not what ``expected`` says.
        """
        async with upload.lock:
            upload.writer.expect(expected)
            trace.point("upload-received")
            try:
                await to_worker(upload.writer.commit)
                trace.point("upload-published")
            finally:
                self._uploads.pop(upload.id, None)
                upload.writer.abort()

    def cancel(self, upload: Upload) -> None:
        """Drop an upload and what it staged."""
        self._uploads.pop(upload.id, None)
        upload.writer.abort()

    def close(self) -> None:
        """Drop all uploads."""
        for upload in list(self._uploads.values()):
            self.cancel(upload)

    def _drop_idle(self) -> None:
        limit = time.monotonic() - _IDLE_LIMIT_S
        for upload in [u for u in self._uploads.values() if u.used_s < limit]:
            if not upload.lock.locked():
                self.cancel(upload)
