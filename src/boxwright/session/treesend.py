"""Send a tree with the file transfer protocol (the sending side of ``DiffCopy``).

Walking and reading run in worker threads and hand over batches of finished packets; the event
loop only passes them on. The receiver's requests are read while stats are still sent, so that
neither side ever waits for the other with both windows full.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat as stat_module
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice

from boxwright.core.workers import to_worker
from boxwright.errors import BoxwrightError
from boxwright.session import packets
from boxwright.session.base import ContextReadError, MessagePipe, TransferError
from boxwright.session.tasks import run_together
from boxwright.session.treewalk import TreeWalk, WalkedEntry

_STATS_PER_BATCH = 512
_FILES_PER_BATCH = 256
_BATCH_BYTES = 1 << 20
_CHUNK_BYTES = 256 << 10
_READERS = 2
_OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK

SentCallback = Callable[[int], None]
"""Told the number of bytes of every batch that was handed to the connection."""


async def send_tree(
    pipe: MessagePipe, walk: TreeWalk, *, on_sent: SentCallback | None = None
) -> None:
    """Send everything that ``walk`` names and the receiver asks for.

    Returns when the receiver has said that it has all. The pipe is left open.

    Raises:
        ContextReadError: a file or folder can't be read; the receiver is told.
        TransferError: the receiver gave up or broke the protocol.
    """
    sender = _Sender(pipe, walk, on_sent)
    try:
        await run_together(
            sender.send_stats(),
            sender.read_requests(),
            *(sender.send_files() for _ in range(_READERS)),
        )
    except TransferError:
        raise
    except BoxwrightError as exc:
        await pipe.send_bytes(packets.error_packet(str(exc)))
        raise


class _Sender:
    def __init__(self, pipe: MessagePipe, walk: TreeWalk, on_sent: SentCallback | None) -> None:
        self._pipe = pipe
        self._walk = walk
        self._on_sent = on_sent
        self._files: dict[int, bytes] = {}
        self._requests: deque[tuple[int, bytes]] = deque()
        self._wake = asyncio.Condition()
        self._finished = False

    async def _send(self, batch: list[bytes]) -> None:
        send = self._pipe.send_bytes
        for packet in batch:
            await send(packet)
        if self._on_sent is not None:
            self._on_sent(sum(map(len, batch)))

    async def send_stats(self) -> None:
        entries = await to_worker(iter, self._walk)
        next_id = 0
        while True:
            batch, files = await to_worker(_walk_batch, entries, next_id)
            self._files.update(files)
            await self._send(batch)
            next_id += len(batch)
            if len(batch) < _STATS_PER_BATCH:
                break
        await self._send([packets.LAST_STAT_PACKET])

    async def read_requests(self) -> None:
        while True:
            raw = await self._pipe.recv_bytes()
            if raw is None:
                raise TransferError("the receiver of a folder ended the transfer early")
            packet = packets.parse_packet(raw)
            if packet.type == packets.REQUEST:
                path = self._files.pop(packet.id, None)
                if path is None:
                    raise TransferError("the receiver asked for an unknown file")
                self._requests.append((packet.id, path))
                async with self._wake:
                    self._wake.notify()
            elif packet.type == packets.FIN:
                await self._pipe.send_bytes(packets.FIN_PACKET)
                self._finished = True
                async with self._wake:
                    self._wake.notify_all()
                return
            elif packet.type == packets.ERROR:
                text = (packet.payload or b"").decode("utf-8", "replace")
                raise TransferError("the receiver of a folder failed", detail=text)
            else:
                raise TransferError("the receiver of a folder sent an unexpected packet")

    async def send_files(self) -> None:
        while True:
            async with self._wake:
                await self._wake.wait_for(lambda: self._requests or self._finished)
            if self._finished:
                return
            wanted = [
                self._requests.popleft() for _ in range(min(len(self._requests), _FILES_PER_BATCH))
            ]
            if wanted:
                await self._send_batch(wanted)

    async def _send_batch(self, wanted: list[tuple[int, bytes]]) -> None:
        chunks = _read_files(self._walk.root, wanted)
        while batch := await to_worker(_take, chunks):
            await self._send(batch)


def _walk_batch(
    entries: Iterator[WalkedEntry], next_id: int
) -> tuple[list[bytes], dict[int, bytes]]:
    batch: list[bytes] = []
    files: dict[int, bytes] = {}
    for file_id, walked in enumerate(islice(entries, _STATS_PER_BATCH), next_id):
        stat = walked.stat
        if not stat.mode & packets.MODE_TYPE:
            files[file_id] = stat.path
        batch.append(packets.stat_packet(packets.encode_stat(stat)))
    return batch, files


def _take(chunks: Iterator[bytes]) -> list[bytes]:
    """Take packets of about a batch's size from the reader."""
    batch: list[bytes] = []
    total = 0
    for chunk in chunks:
        batch.append(chunk)
        total += len(chunk)
        if total >= _BATCH_BYTES:
            break
    return batch


def _read_files(root: bytes, wanted: list[tuple[int, bytes]]) -> Iterator[bytes]:
    for file_id, path in wanted:
        yield from _read_file(root + b"/" + path, file_id)


def _read_file(path: bytes, file_id: int) -> Iterator[bytes]:
    """Yield the data packets of a file and the empty one that ends it."""
    try:
        descriptor = os.open(path, _OPEN_FLAGS)
    except OSError as exc:
        if exc.errno == errno.ENXIO:  # a socket: it has no content to send
            yield packets.data_packet(file_id, b"")
            return
        raise ContextReadError(os.fsdecode(path), exc) from exc
    try:
        if not stat_module.S_ISREG(os.fstat(descriptor).st_mode):
            changed = OSError(errno.ESTALE, "it is no longer a regular file")
            raise ContextReadError(os.fsdecode(path), changed)
        while data := os.read(descriptor, _CHUNK_BYTES):
            yield packets.data_packet(file_id, data)
    except OSError as exc:
        raise ContextReadError(os.fsdecode(path), exc) from exc
    finally:
        os.close(descriptor)
    yield packets.data_packet(file_id, b"")
