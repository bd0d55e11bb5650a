"""The complete progress of a build, written to disk while it runs.

The live view may lose log bytes when a client is slow; the record never does, up to its quota.
It is a row of length-prefixed ``StatusResponse`` messages as BuildKit stores them (32-bit
little-endian lengths), so that clients which read the blob understand it; written through a spool
file and published as a blob when the build ends. Above the quota head and tail are kept, with
a line between them that counts what was dropped.
"""

from __future__ import annotations

import contextlib
import struct
import tempfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from boxwright.core.digest import Digest
from boxwright.engine.status import to_responses
from boxwright.progress.events import Event, LogEvent
from boxwright.store.blobs import BlobStore
from boxwright.store.errors import disk_errors
from boxwright.wire.pb import control_pb2

MEDIA_TYPE = "application/vnd.buildkit.status.v0"
_LENGTH = struct.Struct("<I")
_MESSAGE_LIMIT_BYTES = 64 << 20
_COPY_BYTES = 1 << 20
_TAIL_BYTES = 1 << 20


class StatusRecorder:
    """Collects one build's events; used from the event loop, writes are small and buffered."""

    def __init__(self, folder: Path, quota_bytes: int) -> None:
        self._folder = folder
        with disk_errors(folder):
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed in publish/abort)
        self._quota_bytes = quota_bytes
        self._tail: deque[LogEvent] = deque()
        self._tail_bytes = 0
        self._dropped_bytes = 0
        self._failure: OSError | None = None

    def write(self, events: list[Event]) -> None:
        """Add a batch of events; a disk that is full loses the record, not the build."""
        if self._failure is not None:
            return
        try:
            self._write(events)
        except OSError as exc:
            self._failure = exc

    def _write(self, events: list[Event]) -> None:
        if self._file.tell() > self._quota_bytes:
            events = [event for event in events if not self._over_quota(event)]
        for response in to_responses(events):
            data = response.SerializeToString()
            self._file.write(_LENGTH.pack(len(data)) + data)

    def _over_quota(self, event: Event) -> bool:
        if not isinstance(event, LogEvent):
            return False
        self._tail.append(event)
        self._tail_bytes += len(event.data)
        while self._tail_bytes > _TAIL_BYTES:
            old = self._tail.popleft()
            self._tail_bytes -= len(old.data)
            self._dropped_bytes += len(old.data)
        return True

    def publish(self, blobs: BlobStore) -> tuple[Digest, int]:
        """Store the record as a blob; return its digest and size in bytes. Blocking.

        Raises:
            DiskFullError: there is no room for it, or there was none while it was written.
            OSError: the disk failed otherwise.
        """
        with disk_errors(self._folder), self._file:  # closing it flushes, which can fail again
            if self._failure is not None:
                raise self._failure
            return self._publish(blobs)

    def _publish(self, blobs: BlobStore) -> tuple[Digest, int]:
        if self._tail:
            note = b"[%d bytes of log dropped: over the quota]\n" % self._dropped_bytes
            last = self._tail[-1]
            events: list[Event] = [LogEvent(last.vertex, 2, note, last.timestamp_ns), *self._tail]
            for response in to_responses(events):
                data = response.SerializeToString()
                self._file.write(_LENGTH.pack(len(data)) + data)
        self._file.seek(0)
        with blobs.writer() as writer:
            while chunk := self._file.read(_COPY_BYTES):
                writer.write(chunk)
            return writer.commit()

    def abort(self) -> None:
        """Throw the record away."""
        with contextlib.suppress(OSError):
            self._file.close()


def read_record(path: Path) -> Iterator[control_pb2.StatusResponse]:
    """Yield the messages of a record; a damaged tail ends it early. Blocking."""
    with path.open("rb") as file:
        while True:
            head = file.read(_LENGTH.size)
            if len(head) < _LENGTH.size:
                return
            (length,) = _LENGTH.unpack(head)
            if length > _MESSAGE_LIMIT_BYTES:
                return
            data = file.read(length)
            if len(data) < length:
                return
            yield control_pb2.StatusResponse.FromString(data)
