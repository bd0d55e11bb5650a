"""Helpers that move part of a stream's work to a thread of its own.

Hashing, decompression and file writes each take about a core; on one thread they add up,
on two or three they overlap. The threads belong to one stream, never to a pool whose functions
could wait for each other.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable
from typing import Self

from boxwright.core.digest import CANONICAL, Digest, new_hash
from boxwright.fsutil.compress import ByteStream

_DEPTH = 8  # pieces of about 1 MiB
_PIECE = 1 << 18


class HashThread:
    """Computes the sha256 of what is written, beside the caller's own work.

    Used as a context manager; the thread has ended when the block has.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._queue: queue.Queue[bytes | None] = queue.Queue(_DEPTH)
        self._thread = threading.Thread(target=self._run, name="boxwright-hash", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def write(self, data: bytes) -> None:
        """Add data; waits while the hash is more than a few pieces behind."""
        self._queue.put(data)

    def digest(self) -> Digest:
        """Return the digest of all that was written; nothing may be written afterwards."""
        self._stop()
        return Digest.from_hex(self._hash.hexdigest())

    def _stop(self) -> None:
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (data := self._queue.get()) is not None:
            self._hash.update(data)


class SinkThread:
    """Hands what is written to a sink, in order and in pieces of its own size, beside the caller.

    Used as a context manager; the thread has ended when the block has.

    Args:
        sink: called by the thread only.
    """

    def __init__(self, sink: Callable[[bytes], object]) -> None:
        self._sink = sink
        self._queue: queue.Queue[bytes | None] = queue.Queue(_DEPTH)
        self._pieces: list[bytes] = []
        self._pending = 0
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="boxwright-write", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def write(self, data: bytes) -> None:
        """Add data; waits while the sink is more than a few pieces behind.

        Raises:
            BaseException: what the sink raised.
        """
        self._pieces.append(data)
        self._pending += len(data)
        if self._pending >= _PIECE:
            self._flush()

    def finish(self) -> None:
        """Wait until the sink has all of it; nothing may be written afterwards.

        Raises:
            BaseException: what the sink raised.
        """
        self._flush()
        self._stop()
        if self._error is not None:
            raise self._error

    def _flush(self) -> None:
        if self._error is not None:
            raise self._error
        if self._pieces:
            self._queue.put(self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces))
            self._pieces, self._pending = [], 0

    def _stop(self) -> None:
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (data := self._queue.get()) is not None:
            if self._error is None:  # afterwards what comes is only taken, so that nobody waits
                try:
                    self._sink(data)
                except BaseException as error:  # noqa: BLE001  # raised in the writer
                    self._error = error


class ReadAhead:
    """Reads a stream in a thread, a few pieces ahead, and hashes what passes.

    Used as a context manager; a stream that is not read to its end is left where it is.

    Args:
        stream: where bytes come from; used by the thread only.
        size: how much to ask of it at once, in bytes.
        algorithm: of the digest.
    """

    def __init__(
        self, stream: ByteStream, *, size: int = 1 << 20, algorithm: str = CANONICAL
    ) -> None:
        self._stream = stream
        self._size = size
        self._algorithm = algorithm
        self._hash = new_hash(algorithm)
        self._queue: queue.Queue[bytes | BaseException] = queue.Queue(_DEPTH)
        self._closed = threading.Event()
        self._at_end = False
        self._thread = threading.Thread(target=self._run, name="boxwright-read", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        while self._thread.is_alive():
            try:
                self._queue.get_nowait()  # make room for a thread that waits for it
            except queue.Empty:
                self._thread.join(0.001)

    def read(self, size: int, /) -> bytes:
        """Return the next piece, whatever its size, empty at the end.

        Raises:
            BaseException: what reading the stream raised.
        """
        del size
        if self._at_end:
            return b""
        item = self._queue.get()
        if isinstance(item, BaseException):
            self._at_end = True
            raise item
        self._at_end = not item
        return item

    def digest(self) -> Digest:
        """Return the digest of the whole stream, which must have been read to its end."""
        self._thread.join()
        return Digest.of_hash(self._algorithm, self._hash.hexdigest())

    def _run(self) -> None:
        try:
            while not self._closed.is_set():
                data = self._stream.read(self._size)
                self._queue.put(data)
                if not data:
                    return
                self._hash.update(data)
        except BaseException as error:  # noqa: BLE001  # handed to the reader as it is
            self._queue.put(error)
