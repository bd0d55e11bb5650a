"""gRPC streams over one HTTP/2 connection, the part that both roles share.

An :class:`Endpoint` joins the state machine of :mod:`boxwright.wire.http2` to a byte stream:
received bytes are parsed and delivered synchronously, writes are gathered and flushed once
per loop turn. Everything runs in the event loop's thread. An endpoint owns its byte stream;
:attr:`Endpoint.closed` is done when nothing moves any more.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from boxwright.wire.bytestream import ByteStream, Peer
from boxwright.wire.frames import ErrorCode, Http2Limits
from boxwright.wire.http2 import Http2
from boxwright.wire.http2send import Headers, Http2Error, Stream
from boxwright.wire.rpcstream import RpcStream, iterate, parse_message
from boxwright.wire.status import RpcError, StatusCode

_log = logging.getLogger(__name__)

__all__ = [
    "MAX_MESSAGE",
    "TRUSTED_MAX_MESSAGE",
    "Endpoint",
    "RpcStream",
    "iterate",
    "parse_message",
]

MAX_MESSAGE: Final = 16 << 20
TRUSTED_MAX_MESSAGE: Final = 128 << 20
_PUMP_BYTES: Final = 512 << 10

_RESET_STATUS: Final[dict[int, StatusCode]] = {
    ErrorCode.REFUSED_STREAM: StatusCode.UNAVAILABLE,
    ErrorCode.CANCEL: StatusCode.CANCELLED,
    ErrorCode.ENHANCE_YOUR_CALM: StatusCode.RESOURCE_EXHAUSTED,
    ErrorCode.INADEQUATE_SECURITY: StatusCode.PERMISSION_DENIED,
}


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

    def on_data(self, stream: Stream, data: bytes | memoryview, *, end: bool) -> None:
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
