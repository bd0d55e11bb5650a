"""A message pipe between two tasks of one process."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from boxwright.session.base import SessionLostError

_MAX_WAITING_BYTES = 4 << 20


class _Lane:
    """One direction: a queue that is bounded by bytes, and its end."""

    def __init__(self) -> None:
        self.messages: deque[bytes] = deque()
        self.waiting_bytes = 0
        self.arrived = asyncio.Event()
        self.taken = asyncio.Event()
        self.ended = False
        self.broken = False

    def wake(self) -> None:
        self.arrived.set()
        self.taken.set()


class MemoryPipe:
    """One end of a bounded in-memory stream of messages; see :func:`memory_pipe`."""

    def __init__(self, inbound: _Lane, outbound: _Lane) -> None:
        self._in = inbound
        self._out = outbound

    async def send_bytes(self, payload: bytes) -> None:
        """Send one message; waits while the other end has much unread."""
        lane = self._out
        while lane.waiting_bytes > _MAX_WAITING_BYTES and not lane.broken:
            lane.taken.clear()
            await lane.taken.wait()
        if lane.broken:
            raise SessionLostError("the other end of a stream is gone")
        lane.messages.append(payload)
        lane.waiting_bytes += len(payload)
        lane.arrived.set()

    async def send_batch(self, payloads: Sequence[bytes]) -> None:
        """Send several messages."""
        for payload in payloads:
            await self.send_bytes(payload)

    async def recv_bytes(self) -> bytes | None:
        """Return the next message, or None at the end."""
        lane = self._in
        while not lane.messages:
            if lane.broken:
                raise SessionLostError("the other end of a stream is gone")
            if lane.ended:
                return None
            lane.arrived.clear()
            await lane.arrived.wait()
        raw = lane.messages.popleft()
        lane.waiting_bytes -= len(raw)
        lane.taken.set()
        return raw

    async def recv_batch(self) -> list[bytes]:
        """Return all messages that have arrived, at least one; empty at the end."""
        first = await self.recv_bytes()
        if first is None:
            return []
        lane = self._in
        batch = [first, *lane.messages]
        lane.messages.clear()
        lane.waiting_bytes = 0
        return batch

    async def close_send(self) -> None:
        """Say that no message follows."""
        self._out.ended = True
        self._out.wake()

    def abort(self) -> None:
        """Break the stream in both directions."""
        for lane in (self._in, self._out):
            lane.broken = True
            lane.wake()


def memory_pipe() -> tuple[MemoryPipe, MemoryPipe]:
    """Return the two ends of a new pipe."""
    one, two = _Lane(), _Lane()
    return MemoryPipe(one, two), MemoryPipe(two, one)
