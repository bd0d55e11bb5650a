"""Uploads in progress: chunked or in one piece, one staged blob each.

An upload lives in memory and in its staged file: after a restart it is unknown and the client
starts again, as the specification allows. One that nobody touches for an hour is dropped, also
one whose client is connected and sends nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
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


class StalledUploadError(BoxwrightError):
    """A client that is connected and sends nothing."""


class RangeError(BoxwrightError):
    """A chunk that does not begin where the last one ended."""


@dataclass
class Upload:
    """One upload; the lock admits one request at a time, ``patience`` ends its waiting."""

    id: str
    repository: str
    writer: BlobWriter
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    used_s: float = field(default_factory=time.monotonic)
    patience: asyncio.Timeout | None = None


class Uploads:
    """All uploads of one server."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._uploads: dict[str, Upload] = {}
        self._timer: asyncio.TimerHandle | None = None

    def start(self, repository: str, algorithm: str) -> Upload:
        """Begin an upload.

        Args:
            repository: The blob is shown in it.
            algorithm: That of the digest, as far as the client has told.

        Raises:
            InvalidInputError: digests can't be of this algorithm.
        """
        writer = self._blobs.writer(algorithm=algorithm)
        upload = Upload(uuid.uuid4().hex, repository, writer)
        self._uploads[upload.id] = upload
        if self._timer is None:
            self._arm()
        return upload

    def get(self, repository: str, upload_id: str) -> Upload:
        """Return a running upload.

        Raises:
            UnknownUploadError: it does not exist, or belongs to another repository.
        """
        upload = self._uploads.get(upload_id)
        if upload is None or upload.repository != repository:
            raise _unknown(upload_id)
        upload.used_s = time.monotonic()
        return upload

    @contextlib.asynccontextmanager
    async def _alone(self, upload: Upload) -> AsyncIterator[None]:
        """Have an upload to oneself; who cancels it meanwhile leaves its file to us.

        Raises:
            UnknownUploadError: it has been finished or cancelled.
        """
        async with upload.lock:
            try:
                self._check(upload)
                yield
            finally:
                if upload.id not in self._uploads:
                    upload.writer.abort()

    def _check(self, upload: Upload) -> None:
        if upload.id not in self._uploads:
            raise _unknown(upload.id)

    async def append(
        self, upload: Upload, chunks: AsyncIterator[bytes], *, start: int | None
    ) -> int:
        """Write a request's body; return the upload's size in bytes.

        Raises:
            RangeError: ``start`` is not the present size.
            UnknownUploadError: it was cancelled meanwhile.
            StalledUploadError: nothing came for an hour; the upload is dropped.
        """
        async with self._alone(upload):
            if start is not None and start != upload.writer.size:
                raise RangeError(
                    "chunk does not begin at the end of the upload",
                    detail=f"begins at {start}, {upload.writer.size} bytes are there",
                )
            await self._write(upload, chunks)
            upload.used_s = time.monotonic()
            return upload.writer.size

    async def _write(self, upload: Upload, chunks: AsyncIterator[bytes]) -> None:
        loop = asyncio.get_running_loop()
        pending = bytearray()
        upload.patience = patience = asyncio.timeout(_IDLE_LIMIT_S)
        try:
            async with patience:
                async for chunk in chunks:
                    self._check(upload)
                    patience.reschedule(loop.time() + _IDLE_LIMIT_S)
                    pending += chunk
                    if len(pending) >= _BATCH_BYTES:
                        await to_worker(upload.writer.write, bytes(pending))
                        pending.clear()
                if pending:
                    await to_worker(upload.writer.write, bytes(pending))
        except TimeoutError as exc:
            if not patience.expired():
                raise
            self._check(upload)  # cancelled, and woken for that
            self._uploads.pop(upload.id, None)
            raise StalledUploadError("nothing more came of a blob", detail=upload.id) from exc
        except BoxwrightError:
            self._uploads.pop(upload.id, None)  # what was staged is gone
            raise
        finally:
            upload.patience = None
        self._check(upload)

    async def finish(self, upload: Upload, expected: Digest) -> None:
        """Verify and publish.

        Raises:
            DigestMismatchError: the bytes are not what ``expected`` says.
            UnknownUploadError: it was finished or cancelled meanwhile.
        """
        async with self._alone(upload):
            upload.writer.expect(expected)
            trace.point("upload-received")
            try:
                await to_worker(upload.writer.commit)
                trace.point("upload-published")
            finally:
                self._uploads.pop(upload.id, None)

    def cancel(self, upload: Upload) -> None:
        """Drop an upload and what it staged.

        A request that is just writing to it is woken and drops the file itself: closed under a
        thread that writes, its descriptor could by then be another file's.
        """
        self._uploads.pop(upload.id, None)
        if not upload.lock.locked():
            upload.writer.abort()
        elif upload.patience is not None:
            upload.patience.reschedule(0)

    def close(self) -> None:
        """Drop all uploads."""
        if self._timer is not None:
            self._timer.cancel()
        for upload in list(self._uploads.values()):
            self.cancel(upload)

    def _arm(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(_IDLE_LIMIT_S / 4, self._look_for_idle)

    def _look_for_idle(self) -> None:
        self._drop_idle()
        self._timer = None
        if self._uploads:
            self._arm()

    def _drop_idle(self) -> None:
        limit = time.monotonic() - _IDLE_LIMIT_S
        for upload in [u for u in self._uploads.values() if u.used_s < limit]:
            if not upload.lock.locked():
                self.cancel(upload)


def _unknown(upload_id: str) -> UnknownUploadError:
    return UnknownUploadError("blob upload unknown to registry", detail=upload_id)
