"""Receive a tree with the file transfer protocol (the receiving side of ``DiffCopy``).

The event loop sorts packets and nothing else. Data is collected while a worker thread writes
what came before, so a batch is as large as the writer is slow, up to a bound at which reading
stops and the connection's flow control holds the sender. Requests go out from a task of their
own: reading never waits for sending, else both sides could wait for each other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from boxwright.core.workers import to_worker
from boxwright.errors import BoxwrightError
from boxwright.session import packets
from boxwright.session.base import FIRST_STATS, MessagePipe, TransferError, TreeReceiver
from boxwright.session.tasks import run_together

_MAX_WAITING_BYTES = 16 << 20
_MAX_ENTRIES = 20_000_000
_REQUESTS_AT_ONCE = 1000

ReceivedCallback = Callable[[int], None]
"""Told the number of bytes of received packets, now and then."""


async def receive_tree(
    pipe: MessagePipe, receiver: TreeReceiver, *, on_received: ReceivedCallback | None = None
) -> None:
    """Take a whole tree; returns when all is written and the sender knows it.

    Raises:
        TransferError: the sender gave up or broke the protocol.
        BoxwrightError: the receiver refused something; the sender is told.
    """
    transfer = _Transfer(pipe, receiver, on_received)
    try:
        await run_together(transfer.read(), transfer.write(), transfer.request())
    except TransferError:
        raise
    except BoxwrightError as exc:
        await pipe.send_bytes(packets.error_packet(str(exc)))
        raise


class _Transfer:
    def __init__(
        self, pipe: MessagePipe, receiver: TreeReceiver, on_received: ReceivedCallback | None
    ) -> None:
        self._pipe = pipe
        self._receiver = receiver
        self._on_received = on_received
        self._missing: set[int] = set()
        self._requests: list[int] = []
        self._request_wake = asyncio.Event()
        self._batch: list[tuple[int, bytes]] = []
        self._batch_bytes = 0
        self._batch_wake = asyncio.Event()
        self._space = asyncio.Event()
        self._named_all = False
        self._received_bytes = 0
        self._next_id = 0
        self._first: list[bytes] | None = []

    @property
    def _complete(self) -> bool:
        return self._named_all and not self._missing

    async def read(self) -> None:
        receive = self._pipe.recv_batch
        while batch := await receive():
            self._received_bytes += sum(map(len, batch))
            if self._first is not None:
                batch = self._gather(self._first, batch)
            if self._take(batch):
                self._report()  # the farewell counts, too: of an empty folder come two bytes
                return
            if self._batch_bytes > _MAX_WAITING_BYTES:
                self._space.clear()
                await self._space.wait()
        raise TransferError("the sender of a folder ended the transfer early")

    def _report(self) -> None:
        if self._on_received is not None:
            self._on_received(self._received_bytes)
            self._received_bytes = 0

    def _gather(self, first: list[bytes], batch: Sequence[bytes]) -> list[bytes]:
        """Collect the first messages; return all of them once the receiver has seen enough."""
        first += batch
        stats: list[bytes] = []
        for raw in first[:FIRST_STATS]:
            packet = packets.parse_packet(raw)
            if packet.type != packets.STAT or packet.payload is None:
                break
            stats.append(packet.payload)
        if len(stats) == len(first) < FIRST_STATS:
            return []
        self._first = None
        self._receiver.begin(stats)
        return first

    def _take(self, batch: Sequence[bytes]) -> bool:
        """Sort messages; return whether the last of the transfer is among them."""
        take_known = self._receiver.take_known
        at, end = 0, len(batch)
        while at < end:
            raw = batch[at]
            if not self._named_all and raw[:1] == packets.STAT_TAG:
                count = take_known(batch, at)
                if count:
                    self._next_id += count
                    at += count
                    continue
            at += 1
            if raw[:2] == packets.DATA_TAG and (found := packets.parse_data(raw)) is not None:
                self._take_data(*found)
                continue
            packet = packets.parse_packet(raw)
            if packet.type == packets.DATA:
                self._take_data(packet.id, packet.payload or b"")
            elif packet.type == packets.STAT:
                self._take_stat(packet.payload)
            elif packet.type == packets.FIN:
                if not self._complete:  # else what waits for the rest would wait for ever
                    raise TransferError("the sender ended the transfer before all was sent")
                return True
            else:
                raise _refusal(packet)
        return False

    def _take_stat(self, raw_stat: bytes | None) -> None:
        if self._named_all:
            raise TransferError("the sender named a file after the last one")
        if raw_stat is not None:
            self._add(raw_stat)
            return
        self._named_all = True
        self._receiver.end()
        self._request_wake.set()
        self._batch_wake.set()

    def _add(self, raw_stat: bytes) -> None:
        file_id = self._next_id
        self._next_id += 1
        if file_id >= _MAX_ENTRIES:
            raise TransferError("the sender named too many files", detail=f"{file_id}")
        if self._receiver.add(file_id, raw_stat):
            self._missing.add(file_id)
            self._requests.append(file_id)
            self._request_wake.set()

    def _take_data(self, file_id: int, data: bytes) -> None:
        if file_id not in self._missing:
            raise TransferError("the sender sent a file that was not asked for")
        if not data:
            self._missing.discard(file_id)
        self._batch.append((file_id, data))
        self._batch_bytes += len(data)
        self._batch_wake.set()

    async def request(self) -> None:
        while True:
            await self._request_wake.wait()
            self._request_wake.clear()
            wanted, self._requests = self._requests, []
            for start in range(0, len(wanted), _REQUESTS_AT_ONCE):
                numbers = wanted[start : start + _REQUESTS_AT_ONCE]
                await self._pipe.send_batch([packets.request_packet(each) for each in numbers])
            if self._named_all and not self._requests:
                return

    async def write(self) -> None:
        while True:
            await self._batch_wake.wait()
            self._batch_wake.clear()
            batch, self._batch, self._batch_bytes = self._batch, [], 0
            self._space.set()
            self._report()
            if batch:
                await self._receiver.prepare()
                await to_worker(self._receiver.write, batch)
            if self._complete and not self._batch:
                await self._receiver.finish()
                await self._pipe.send_bytes(packets.FIN_PACKET)
                return


def _refusal(packet: packets.Packet) -> TransferError:
    if packet.type == packets.ERROR:
        text = (packet.payload or b"").decode("utf-8", "replace")
        return TransferError("the sender of a folder failed", detail=text)
    return TransferError("the sender of a folder sent an unexpected packet")
