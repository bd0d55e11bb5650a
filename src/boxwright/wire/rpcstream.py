"""The messages of one call, in both directions: what client and server streams share."""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Final, TypeVar

from google.protobuf.message import DecodeError, Message

from boxwright.wire.bytestream import Buffer
from boxwright.wire.http2send import Stream
from boxwright.wire.status import RpcError, StatusCode

if TYPE_CHECKING:
    from boxwright.wire.rpc import Endpoint

_HIGH_WATER: Final = 256 << 10
_LOW_WATER: Final = 64 << 10
_JOIN_BELOW: Final = 4096
MessageT = TypeVar("MessageT", bound=Message)
_PREFIX: Final = struct.Struct(">BI")
_UNPACK_PREFIX: Final = _PREFIX.unpack_from
_FIRST_PIECE: Final = _PREFIX.size + 16


def _keep(data: bytes | memoryview) -> Buffer:
    """Return what may be kept after the call: large views of immutable bytes as they are."""
    if isinstance(data, bytes):
        return data
    return data if data.readonly and len(data) >= _JOIN_BELOW else bytes(data)


def _gunzip(data: bytes, limit: int) -> bytes:
    inflater = zlib.decompressobj(wbits=31)
    try:
        out = inflater.decompress(data, limit + 1)
    except zlib.error as exc:
        raise RpcError(StatusCode.INTERNAL, f"malformed compressed message: {exc}") from None
    if len(out) > limit:
        raise RpcError(StatusCode.RESOURCE_EXHAUSTED, f"message is larger than {limit} bytes")
    if not inflater.eof:
        raise RpcError(StatusCode.INTERNAL, "compressed message is truncated")
    return out


class RpcStream:
    """Messages of one call in both directions; base of the client's and server's streams.

    One task at a time may receive and one may send. Received messages wait in the stream's
    own window: whoever does not receive stops only this call.
    """

    __slots__ = (
        "_drain_hook",
        "_drain_waiter",
        "_end_hook",
        "_ended",
        "_endpoint",
        "_error",
        "_gzip",
        "_have",
        "_inbox",
        "_left",
        "_need",
        "_parts",
        "_recv_waiter",
        "_sink",
        "_sink_idle",
        "_sink_run",
        "_stream",
        "_total",
    )

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._stream: Stream | None = None
        self._inbox: deque[bytes] = deque()
        self._parts: list[Buffer] = []
        self._have = 0
        self._need = 0
        self._left = 0  # of a message that is being passed on in pieces
        self._total = 0
        self._gzip = False
        self._ended = False
        self._error: RpcError | None = None
        self._recv_waiter: asyncio.Future[None] | None = None
        self._drain_waiter: asyncio.Future[None] | None = None
        self._sink: Callable[[memoryview, int, int], None] | None = None
        self._sink_idle: Callable[[], None] | None = None
        self._sink_run: Callable[[bytes, int], int] | None = None
        self._end_hook: Callable[[RpcError | None], None] | None = None
        self._drain_hook: Callable[[], None] | None = None

    # --- sending ------------------------------------------------------------------------

    async def send(self, message: Message) -> None:
        """Send one message; waits while the peer does not keep up.

        Raises:
            RpcError: the call has ended.
        """
        await self.send_bytes(message.SerializeToString())

    async def send_bytes(self, payload: Buffer) -> None:
        """Send one already serialised message. A mutable buffer must not change any more.

        Raises:
            RpcError: the call has ended.
        """
        self.write(payload)
        if self.pending_bytes > _HIGH_WATER:
            await self.drain()

    async def send_batch(self, payloads: Sequence[bytes]) -> None:
        """Send several small messages, already serialised, as one piece of the stream.

        Raises:
            RpcError: the call has ended.
        """
        stream = self._sendable()
        pack = _PREFIX.pack
        pieces = [piece for each in payloads for piece in (pack(0, len(each)), each)]
        self._endpoint.h2.send_data(stream, b"".join(pieces))
        self._endpoint.flush_soon()
        if self.pending_bytes > _HIGH_WATER:
            await self.drain()

    def write(self, *parts: Buffer) -> None:
        """Queue one message made of ``parts`` without waiting; see :meth:`drain`.

        Raises:
            RpcError: the call has ended.
        """
        stream = self._sendable()
        size = sum(map(len, parts))
        prefix = _PREFIX.pack(0, size)
        h2 = self._endpoint.h2
        if size < _JOIN_BELOW:
            h2.send_data(stream, b"".join((prefix, *parts)))
        else:
            h2.send_data(stream, prefix)
            for part in parts:
                h2.send_data(stream, part)
        self._endpoint.flush_soon()

    @property
    def pending_bytes(self) -> int:
        """Bytes that are queued and not yet handed to the transport."""
        return self._stream.queued if self._stream is not None else 0

    async def drain(self) -> None:
        """Wait until little is queued.

        Raises:
            RpcError: the call has ended.
        """
        while self.pending_bytes > _LOW_WATER:
            stream = self._sendable()
            stream.low_water = _LOW_WATER
            # Several tasks may send on one stream: they share the one wake-up.
            if self._drain_waiter is None or self._drain_waiter.done():
                self._drain_waiter = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._drain_waiter)
        self._sendable()

    def _sendable(self) -> Stream:
        stream = self._stream
        if stream is None or stream.local_closed or stream.end_queued:
            raise self._ended_error()
        return stream

    def _ended_error(self) -> RpcError:
        if self._error is not None:
            return RpcError(self._error.status, self._error.message, self._error.details)
        return RpcError(StatusCode.UNAVAILABLE, "the call has already ended")

    # --- receiving ----------------------------------------------------------------------

    async def recv_bytes(self) -> bytes | None:
        """Return the next message unparsed, or None at the clean end.

        Raises:
            RpcError: the call failed.
        """
        while not self._inbox:
            if self._ended:
                if self._error is not None:
                    raise self._ended_error()
                return None
            await self._wait_input()
        message = self._inbox.popleft()
        self._take(len(message) + _PREFIX.size)
        return message

    async def recv_batch(self) -> list[bytes]:
        """Return all messages that have arrived, at least one; empty at the clean end.

        Raises:
            RpcError: the call failed.
        """
        first = await self.recv_bytes()
        if first is None:
            return []
        batch = [first]
        if self._inbox:
            batch += self._inbox
            self._inbox.clear()
            self._take(sum(map(len, batch)) - len(first) + _PREFIX.size * (len(batch) - 1))
        return batch

    def _take(self, size: int) -> None:
        if self._stream is not None:
            self._endpoint.h2.consumed(self._stream, size)
            if self._endpoint.h2.out:
                self._endpoint.flush_soon()

    async def _wait_input(self) -> None:
        self._recv_waiter = asyncio.get_running_loop().create_future()
        try:
            await self._recv_waiter
        finally:
            self._recv_waiter = None

    def set_sink(
        self,
        on_piece: Callable[[memoryview, int, int], None],
        on_end: Callable[[RpcError | None], None],
        on_drained: Callable[[], None] | None = None,
        on_idle: Callable[[], None] | None = None,
        on_run: Callable[[bytes, int], int] | None = None,
    ) -> None:
        """Deliver synchronously to ``on_piece`` instead of to :meth:`recv_bytes`.

        For consumers that never wait, such as a tunnel: credit goes back to the peer at once,
        and messages are passed on in the pieces in which they arrive, not put together.

        Args:
            on_piece: ``(piece, offset in its message, size of the message)``. A message's
                first piece has at least 16 bytes, or is all of it. An empty message is one
                empty piece.
            on_end: called once, with what :meth:`recv_bytes` would have raised or None.
            on_drained: called once after each :meth:`notify_drained`.
            on_idle: called when what has arrived was delivered: a consumer that gathers small
                pieces passes them on then.
            on_run: ``(bytes, offset)``: shown many small messages at once, the first at the
                offset; takes as many whole ones as it likes and returns the offset behind them.
        """
        self._sink = on_piece
        self._sink_idle = on_idle
        self._sink_run = on_run
        self._end_hook = on_end
        self._drain_hook = on_drained
        while self._inbox:
            message = self._inbox.popleft()
            self._take(len(message) + _PREFIX.size)
            on_piece(memoryview(message), 0, len(message))
        if on_idle is not None:
            on_idle()
        if self._ended:
            self._end_hook = None
            on_end(self._error)

    def notify_drained(self) -> None:
        """Ask for one ``on_drained`` call (see :meth:`set_sink`)."""
        if self._stream is not None:
            self._stream.low_water = _LOW_WATER

    # --- events from the endpoint ---------------------------------------------------------

    def _feed(self, data: bytes | memoryview) -> None:
        """Take bytes of the stream: find messages, deliver them, keep the rest."""
        if self._ended:
            return
        self._feed_messages(data)
        if self._sink_idle is not None:
            self._sink_idle()

    def _feed_messages(self, data: bytes | memoryview) -> None:
        if self._sink is not None:
            if self._stream is not None:
                self._endpoint.h2.consumed(self._stream, len(data))
            if self._left:
                data = self._pass_on(data)
        if self._parts:
            self._parts.append(_keep(data))
            self._have += len(data)
            if self._have < self._need:
                return
            data = b"".join(self._parts)
            self._parts = []
        self._split(data)

    def _split(self, data: bytes | memoryview) -> None:
        """Find the messages in ``data``, which begins with one."""
        size = len(data)
        offset = 0
        need = 5  # _PREFIX.size
        limit = self._endpoint.max_message
        sink, inbox, run = self._sink, self._inbox, self._sink_run
        while True:
            if run is not None and isinstance(data, bytes):
                offset = run(data, offset)
            if size - offset < 5:
                break
            flag, length = _UNPACK_PREFIX(data, offset)
            if length > limit:
                text = f"message of {length} bytes is larger than {limit}"
                raise RpcError(StatusCode.RESOURCE_EXHAUSTED, text)
            need = 5 + length
            if offset + need > size:
                if flag == 0 and sink is not None and size - offset >= _FIRST_PIECE:
                    self._left = self._total = length
                    self._pass_on(data[offset + 5 :])
                    return
                break
            if flag or sink is not None:
                self._deliver(flag, memoryview(data)[offset + 5 : offset + need])
            else:
                inbox.append(bytes(data[offset + 5 : offset + need]))
            offset += need
            need = 5
        if inbox:
            self._wake_receiver()
        if offset < size:
            self._keep_rest(data[offset:], need)

    def _keep_rest(self, rest: bytes | memoryview, need: int) -> None:
        """Keep the beginning of a message of which ``need`` bytes are needed to go on."""
        self._parts = [_keep(rest)]
        self._have = len(rest)
        self._need = need
        if self._sink is not None:
            self._need = min(need, _FIRST_PIECE)
        elif self._stream is not None and need > _PREFIX.size:
            self._endpoint.h2.expect(self._stream, need - self._have)

    def _pass_on(self, data: bytes | memoryview) -> bytes | memoryview:
        """Give the sink what belongs to the message in progress; return what follows it."""
        piece = memoryview(data)[: self._left]
        offset = self._total - self._left
        self._left -= len(piece)
        if self._sink is not None:
            self._sink(piece, offset, self._total)
        return data[len(piece) :]

    def _deliver(self, flag: int, view: memoryview) -> None:
        if flag:
            if flag != 1 or not self._gzip:
                raise RpcError(StatusCode.INTERNAL, "compressed message without grpc-encoding")
            view = memoryview(_gunzip(bytes(view), self._endpoint.max_message))
        if self._sink is not None:
            self._sink(view, 0, len(view))
            return
        self._inbox.append(bytes(view))

    def _wake_receiver(self) -> None:
        waiter = self._recv_waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _end(self, error: RpcError | None) -> None:
        """The peer sent its last message, or the call failed."""
        if self._ended:
            return
        if error is None and (self._parts or self._left):
            error = RpcError(StatusCode.INTERNAL, "the stream ended inside a message")
        self._ended = True
        self._error = error
        self._parts = []
        for waiter in (self._recv_waiter, self._drain_waiter if error is not None else None):
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
        hook, self._end_hook = self._end_hook, None
        if hook is not None:
            hook(error)

    def _drained(self) -> None:
        waiter = self._drain_waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
        if self._drain_hook is not None:
            self._drain_hook()


def parse_message(kind: type[MessageT], payload: bytes) -> MessageT:
    """Parse a received message.

    Raises:
        RpcError: not a serialised ``kind``.
    """
    try:
        return kind.FromString(payload)
    except DecodeError as exc:
        name = kind.DESCRIPTOR.full_name
        raise RpcError(StatusCode.INTERNAL, f"malformed {name}: {exc}") from None


async def iterate(stream: RpcStream, kind: type[MessageT]) -> AsyncIterator[MessageT]:
    """Yield parsed messages until the clean end.

    Raises:
        RpcError: the call failed.
    """
    while (payload := await stream.recv_bytes()) is not None:
        yield parse_message(kind, payload)
