"""gRPC streams over one HTTP/2 connection, the part that both roles share.

An :class:`Endpoint` joins the state machine of :mod:`boxwright.wire.http2` to a byte stream:
received bytes are parsed and delivered synchronously, writes are gathered and flushed once
per loop turn. Everything runs in the event loop's thread. An endpoint owns its byte stream;
:attr:`Endpoint.closed` is done when nothing moves any more.
"""

from __future__ import annotations

import asyncio
import logging
import struct
import time
import zlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from boxwright.wire.bytestream import Buffer, ByteStream, Peer
from boxwright.wire.frames import ErrorCode, Http2Limits
from boxwright.wire.http2 import Headers, Http2, Http2Error, Stream
from boxwright.wire.status import RpcError, StatusCode

_log = logging.getLogger(__name__)

MAX_MESSAGE: Final = 16 << 20
TRUSTED_MAX_MESSAGE: Final = 128 << 20
_PUMP_BYTES: Final = 512 << 10
_HIGH_WATER: Final = 256 << 10
_LOW_WATER: Final = 64 << 10
_JOIN_BELOW: Final = 4096
MessageT = TypeVar("MessageT", bound=Message)
_PREFIX: Final = struct.Struct(">BI")
_FIRST_PIECE: Final = _PREFIX.size + 16

_RESET_STATUS: Final[dict[int, StatusCode]] = {
    ErrorCode.REFUSED_STREAM: StatusCode.UNAVAILABLE,
    ErrorCode.CANCEL: StatusCode.CANCELLED,
    ErrorCode.ENHANCE_YOUR_CALM: StatusCode.RESOURCE_EXHAUSTED,
    ErrorCode.INADEQUATE_SECURITY: StatusCode.PERMISSION_DENIED,
}


def _keep(view: memoryview) -> Buffer:
    """Return what may be kept after the call: large views of immutable bytes as they are."""
    return view if view.readonly and len(view) >= _JOIN_BELOW else bytes(view)


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
        """
        self._sink = on_piece
        self._end_hook = on_end
        self._drain_hook = on_drained
        while self._inbox:
            message = self._inbox.popleft()
            self._take(len(message) + _PREFIX.size)
            on_piece(memoryview(message), 0, len(message))
        if self._ended:
            self._end_hook = None
            on_end(self._error)

    def notify_drained(self) -> None:
        """Ask for one ``on_drained`` call (see :meth:`set_sink`)."""
        if self._stream is not None:
            self._stream.low_water = _LOW_WATER

    # --- events from the endpoint ---------------------------------------------------------

    def _feed(self, data: memoryview) -> None:
        """Take bytes of the stream: find messages, deliver them, keep the rest."""
        if self._ended:
            return
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
            data = memoryview(b"".join(self._parts))
            self._parts = []
        size = len(data)
        offset = 0
        need = _PREFIX.size
        limit = self._endpoint.max_message
        while size - offset >= _PREFIX.size:
            flag, length = _PREFIX.unpack_from(data, offset)
            if length > limit:
                text = f"message of {length} bytes is larger than {limit}"
                raise RpcError(StatusCode.RESOURCE_EXHAUSTED, text)
            need = _PREFIX.size + length
            if offset + need > size:
                if flag == 0 and self._sink is not None and size - offset >= _FIRST_PIECE:
                    self._left = self._total = length
                    self._pass_on(data[offset + _PREFIX.size :])
                    return
                break
            self._deliver(flag, data[offset + _PREFIX.size : offset + need])
            offset += need
            need = _PREFIX.size
        if offset < size:
            self._parts = [_keep(data[offset:])]
            self._have = size - offset
            self._need = need
            if self._sink is not None:
                self._need = min(need, _FIRST_PIECE)
            elif self._stream is not None and need > _PREFIX.size:
                self._endpoint.h2.expect(self._stream, need - self._have)

    def _pass_on(self, data: memoryview) -> memoryview:
        """Give the sink what belongs to the message in progress; return what follows it."""
        piece = data[: self._left]
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


class Endpoint:
    """One connection: the byte sink of its transport and the owner of its streams."""

    is_client = True

    def __init__(self, transport: ByteStream, limits: Http2Limits, max_message: int) -> None:
        self._loop = asyncio.get_running_loop()
        self.transport = transport
        self.max_message = max_message
        self.h2 = Http2(self, is_client=self.is_client, limits=limits, clock=self._loop.time)
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self._failure: RpcError | None = None
        self._scheduled = False
        self._paused = False
        self._closing = False
        self._pings: dict[bytes, asyncio.Future[None]] = {}
        self._ping_count = 0

    @property
    def peer(self) -> Peer:
        """The other end."""
        return self.transport.peer

    def start(self) -> None:
        """Send our preface and begin to read."""
        self.h2.start()
        self.flush()
        self.transport.start(self)

    async def ping(self) -> float:
        """Return the round-trip time in seconds.

        Raises:
            RpcError: the connection ended.
        """
        if self.closed.done():
            raise self._failure or RpcError(StatusCode.UNAVAILABLE, "connection is closed")
        self._ping_count += 1
        payload = self._ping_count.to_bytes(8, "big")
        self._pings[payload] = answer = self._loop.create_future()
        sent_at = time.monotonic()
        try:
            self.h2.ping(payload)
            self.flush_soon()
            await answer
        finally:
            self._pings.pop(payload, None)
        if self.closed.done():
            raise self._failure or RpcError(StatusCode.UNAVAILABLE, "connection is closed")
        return time.monotonic() - sent_at

    # --- ByteSink -----------------------------------------------------------------------

    def bytes_received(self, data: bytes | memoryview) -> None:
        """Parse and dispatch ``data``."""
        if self.closed.done():
            return
        try:
            self.h2.receive(data)
        except Http2Error as exc:
            _log.warning("closing connection to %s: %s", self.peer.address, exc.reason)
            self._fail(RpcError(StatusCode.UNAVAILABLE, str(exc)))
            return
        except Exception:  # noqa: BLE001
            # A bug of ours: it must end this connection, not the one that carries it.
            _log.exception("closing connection to %s", self.peer.address)
            self.h2.goaway(ErrorCode.INTERNAL_ERROR)
            self._fail(RpcError(StatusCode.INTERNAL, "internal error in the connection"))
            return
        if self.h2.out or self.h2.has_sendable():
            self.flush()
        else:
            self._after_flush()

    def bytes_ended(self, error: Exception | None) -> None:
        """The transport is gone."""
        reason = f"connection lost: {error}" if error else "connection closed by the peer"
        self._end(RpcError(StatusCode.UNAVAILABLE, reason))

    def pause_writing(self) -> None:
        """The transport is full."""
        self._paused = True

    def resume_writing(self) -> None:
        """The transport takes bytes again."""
        self._paused = False
        self.flush_soon()

    def flush_soon(self) -> None:
        """Flush at the end of this loop turn."""
        if not self._scheduled and not self.closed.done():
            self._scheduled = True
            self._loop.call_soon(self._scheduled_flush)

    def _scheduled_flush(self) -> None:
        self._scheduled = False
        self.flush()

    def flush(self) -> None:
        """Write control frames and as much DATA as windows and transport allow."""
        if self._paused or self.closed.done():
            return
        h2 = self.h2
        h2.pump(_PUMP_BYTES)
        if h2.out:
            self.transport.write(h2.take_output())
        if h2.has_sendable():
            self.flush_soon()  # does nothing while the transport is full
        self._after_flush()

    def _after_flush(self) -> None:
        """Hook for roles: streams may have ended."""

    def _fail(self, error: RpcError) -> None:
        """Write what is queued (it ends with GOAWAY), close, fail all calls."""
        if not self.closed.done():
            out = self.h2.take_output()
            if out:
                self.transport.write(out)
            self._end(error)
            self.transport.close()

    def _end(self, error: RpcError) -> None:
        if self.closed.done():
            return
        self._closing = True
        self._failure = error
        self.closed.set_result(None)
        for stream in list(self.h2.streams.values()):
            self.h2.streams.pop(stream.id, None)
            stream.local_closed = stream.remote_closed = True
            if isinstance(stream.owner, RpcStream):
                self._stream_failed(stream.owner, error)
        for answer in self._pings.values():
            if not answer.done():
                answer.set_result(None)

    def _stream_failed(self, rpc: RpcStream, error: RpcError) -> None:
        rpc._end(error)  # noqa: SLF001

    # --- Http2Events --------------------------------------------------------------------

    def on_headers(self, stream: Stream, headers: Headers, *, end: bool) -> None:
        """A header block arrived; each role has its own meaning for it."""
        raise NotImplementedError

    def on_data(self, stream: Stream, data: memoryview, *, end: bool) -> None:
        """Bytes of a call."""
        rpc = stream.owner
        if not isinstance(rpc, RpcStream):
            return
        try:
            rpc._feed(data)  # noqa: SLF001
        except RpcError as exc:
            self.abort_stream(rpc, exc)
            return
        if end:
            self._remote_ended(rpc)

    def _remote_ended(self, rpc: RpcStream) -> None:
        rpc._end(None)  # noqa: SLF001

    def abort_stream(self, rpc: RpcStream, error: RpcError) -> None:
        """End one call here because of ``error``."""
        if rpc._stream is not None:  # noqa: SLF001
            self.h2.reset(rpc._stream, ErrorCode.CANCEL)  # noqa: SLF001
        self._stream_failed(rpc, error)
        self.flush_soon()

    def on_reset(self, stream: Stream, error_code: int) -> None:
        """The peer gave up a call."""
        if isinstance(stream.owner, RpcStream):
            status = _RESET_STATUS.get(error_code, StatusCode.INTERNAL)
            text = f"the peer reset the stream (HTTP/2 error {error_code})"
            self._stream_failed(stream.owner, RpcError(status, text))

    def on_drained(self, stream: Stream) -> None:
        """A send queue became short."""
        if isinstance(stream.owner, RpcStream):
            stream.owner._drained()  # noqa: SLF001

    def on_goaway(self, last_stream_id: int, error_code: int, debug: bytes) -> None:
        """The peer takes no further calls."""
        text = debug.decode("utf-8", "replace") if debug else "the peer is going away"
        if error_code:
            _log.info("%s sent GOAWAY %d: %s", self.peer.address, error_code, text)
        if not self.is_client:
            return
        for stream in list(self.h2.streams.values()):
            if stream.id > last_stream_id and isinstance(stream.owner, RpcStream):
                self.h2.streams.pop(stream.id, None)
                stream.local_closed = stream.remote_closed = True
                self._stream_failed(stream.owner, RpcError(StatusCode.UNAVAILABLE, text))

    def on_ping_ack(self, payload: bytes) -> None:
        """The answer to one of our pings."""
        answer = self._pings.get(payload)
        if answer is not None and not answer.done():
            answer.set_result(None)


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
