"""One call of the client, and the connection's end that opens calls."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Final, Generic, Self

from google.protobuf.message import DecodeError

from boxwright._version import __version__
from boxwright.errors import InvalidInputError
from boxwright.wire import metadata as md
from boxwright.wire.bytestream import ByteStream
from boxwright.wire.frames import ErrorCode, Http2Limits
from boxwright.wire.http2send import Headers, Stream
from boxwright.wire.metadata import Metadata, MetadataItems
from boxwright.wire.methods import Method, Request, Response
from boxwright.wire.pb import status_pb2
from boxwright.wire.rpc import Endpoint, RpcStream, iterate, parse_message
from boxwright.wire.status import RpcError, StatusCode, from_pb

_USER_AGENT: Final = f"boxwright/{__version__}".encode()
_HTTP_STATUS: Final[dict[bytes, StatusCode]] = {
    b"400": StatusCode.INTERNAL,
    b"401": StatusCode.UNAUTHENTICATED,
    b"403": StatusCode.PERMISSION_DENIED,
    b"404": StatusCode.UNIMPLEMENTED,
    b"429": StatusCode.UNAVAILABLE,
    b"502": StatusCode.UNAVAILABLE,
    b"503": StatusCode.UNAVAILABLE,
    b"504": StatusCode.UNAVAILABLE,
}


class ClientStream(RpcStream, Generic[Request, Response]):
    """A call in progress; an async context manager that resets the call if left early."""

    __slots__ = (
        "_deadline",
        "_final",
        "_headers_waiter",
        "_initial",
        "_method",
        "_request_metadata",
        "_timer",
        "_trailing",
    )

    def __init__(
        self,
        endpoint: ClientEndpoint,
        method: Method[Request, Response],
        metadata: MetadataItems,
        timeout_s: float | None,
    ) -> None:
        super().__init__(endpoint)
        self._method = method
        self._request_metadata = metadata
        self._initial: Metadata | None = None
        self._trailing = Metadata()
        self._final = False
        self._headers_waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = timeout_s

    async def __aenter__(self) -> Self:
        """Open the stream; waits while the peer allows no further one.

        Raises:
            RpcError: the connection is closed.
        """
        await self._open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cancel()

    async def _open(self) -> None:
        endpoint = self._endpoint
        assert isinstance(endpoint, ClientEndpoint)
        headers = endpoint.request_headers(self._method.path, self._deadline)
        headers += md.to_headers(self._request_metadata)
        if self._deadline is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._deadline, self._expire)
        try:
            await endpoint.open_call(self, headers)
        except BaseException:
            self.cancel()
            raise

    def _expire(self) -> None:
        self._timer = None
        text = f"no answer from {self._method.path} within the deadline"
        self._endpoint.abort_stream(self, RpcError(StatusCode.DEADLINE_EXCEEDED, text))

    def cancel(self) -> None:
        """Give the call up; nothing happens if it has ended."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._final:
            error = RpcError(StatusCode.CANCELLED, "the call was cancelled here")
            self._endpoint.abort_stream(self, error)

    async def recv(self) -> Response | None:
        """Return the next message, or None at the clean end.

        Raises:
            RpcError: the call failed.
        """
        payload = await self.recv_bytes()
        return None if payload is None else parse_message(self._method.response, payload)

    def __aiter__(self) -> AsyncIterator[Response]:
        return iterate(self, self._method.response)

    async def close_send(self) -> None:
        """Say that no further message follows."""
        stream = self._stream
        if stream is not None:
            self._endpoint.h2.end_stream(stream, None)
            self._endpoint.flush_soon()

    async def initial_metadata(self) -> Metadata:
        """Wait for the response headers.

        Raises:
            RpcError: the call failed before them.
        """
        while self._initial is None:
            if self._ended:
                if self._error is not None:
                    raise self._ended_error()
                return Metadata()
            self._headers_waiter = asyncio.get_running_loop().create_future()
            try:
                await self._headers_waiter
            finally:
                self._headers_waiter = None
        return self._initial

    def trailing_metadata(self) -> Metadata:
        """Return the trailers' metadata; empty until the call has ended."""
        return self._trailing

    def _on_headers(self, headers: Headers, *, end: bool) -> None:
        fields = {bytes(name): bytes(value) for name, value in headers}
        if self._initial is None:
            status = fields.get(b":status", b"")
            if status.startswith(b"1") and not end:
                return
            content_type = fields.get(b"content-type", b"")
            if status != b"200" or not content_type.startswith(b"application/grpc"):
                code = _HTTP_STATUS.get(status, StatusCode.UNKNOWN)
                text = f"the peer answered HTTP {status.decode('latin-1')}, not gRPC"
                self._endpoint.abort_stream(self, RpcError(code, text))
                return
            self._initial = md.from_headers(headers)
            encoding = fields.get(b"grpc-encoding", b"identity")
            if encoding not in {b"identity", b"gzip"}:
                text = f"unknown grpc-encoding {encoding!r}"
                self._endpoint.abort_stream(self, RpcError(StatusCode.INTERNAL, text))
                return
            self._gzip = encoding == b"gzip"
            self._wake_headers()
        elif not end:
            return
        if end:
            self._trailing = md.from_headers(headers)
            self._finish(_status_of(fields))

    def _finish(self, error: RpcError | None) -> None:
        self._end(error)
        stream = self._stream
        if stream is not None and not stream.local_closed and not stream.end_queued:
            # The call is over for the peer; what we still had to say is of no use to it.
            self._endpoint.h2.reset(stream, ErrorCode.NO_ERROR)
            self._endpoint.flush_soon()

    def _end(self, error: RpcError | None) -> None:
        self._final = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        super()._end(error)
        self._wake_headers()
        waiter = self._drain_waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _wake_headers(self) -> None:
        waiter = self._headers_waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


def _status_of(fields: dict[bytes, bytes]) -> RpcError | None:
    raw = fields.get(b"grpc-status")
    if raw is None:
        return RpcError(StatusCode.UNKNOWN, "the answer carries no grpc-status")
    try:
        code = StatusCode(int(raw))
    except ValueError:
        code = StatusCode.UNKNOWN
    if code is StatusCode.OK:
        return None
    message = md.decode_message(fields.get(b"grpc-message", b""))
    packed = fields.get(b"grpc-status-details-bin")
    if packed:
        try:
            status = status_pb2.Status.FromString(md.decode_bin(packed))
        except (DecodeError, InvalidInputError):
            return RpcError(code, message)
        error = from_pb(status)
        if error is not None and error.status is code:
            return error
    return RpcError(code, message)


class ClientEndpoint(Endpoint):
    """A connection's end that opens calls; beyond the peer's limit they wait their turn."""

    is_client = True

    def __init__(
        self, transport: ByteStream, limits: Http2Limits, max_message: int, authority: str
    ) -> None:
        super().__init__(transport, limits, max_message)
        self._authority = authority.encode()
        self._scheme = b"https" if transport.peer.kind == "tls" else b"http"
        self._waiting: deque[asyncio.Future[None]] = deque()

    def request_headers(self, path: str, timeout_s: float | None) -> list[tuple[bytes, bytes]]:
        """Return the headers of a call without its metadata."""
        headers = [
            (b":method", b"POST"),
            (b":scheme", self._scheme),
            (b":path", path.encode()),
            (b":authority", self._authority),
            (b"content-type", b"application/grpc"),
            (b"user-agent", _USER_AGENT),
            (b"te", b"trailers"),
        ]
        if timeout_s is not None:
            headers.append((b"grpc-timeout", md.encode_timeout(timeout_s)))
        return headers

    async def open_call(
        self, call: ClientStream[Any, Any], headers: list[tuple[bytes, bytes]]
    ) -> None:
        """Start the HTTP/2 stream of ``call``; may wait for a free one."""
        while not self.h2.can_open() or self._waiting:
            self._check_usable(call)
            turn = self._loop.create_future()
            self._waiting.append(turn)
            try:
                await turn
            finally:
                if turn in self._waiting:
                    self._waiting.remove(turn)
            if self.h2.can_open():
                break
        self._check_usable(call)
        stream = self.h2.open_stream(headers, end=False)
        stream.owner = call
        call._stream = stream  # noqa: SLF001
        self.flush_soon()

    def _check_usable(self, call: ClientStream[Any, Any]) -> None:
        if call._error is not None:  # noqa: SLF001
            raise call._ended_error()  # noqa: SLF001
        if self.closed.done():
            raise self._failure or RpcError(StatusCode.UNAVAILABLE, "connection is closed")
        if self._closing or self.h2.peer_goaway is not None:
            raise RpcError(StatusCode.UNAVAILABLE, "the connection is going away")

    def _after_flush(self) -> None:
        if self._waiting and (self.h2.can_open() or self.h2.peer_goaway is not None):
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
        if not self.h2.streams and self.h2.peer_goaway is not None and not self._closing:
            self.shut(RpcError(StatusCode.UNAVAILABLE, "the connection went away"))

    def shut(self, error: RpcError) -> None:
        """Say goodbye, close, and fail the calls in progress with ``error``."""
        self._closing = True
        self.h2.goaway()
        self._fail(error)

    def _end(self, error: RpcError) -> None:
        super()._end(error)
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)

    def on_headers(self, stream: Stream, headers: Headers, *, end: bool) -> None:
        """Response headers or trailers."""
        if isinstance(stream.owner, ClientStream):
            stream.owner._on_headers(headers, end=end)  # noqa: SLF001

    def _remote_ended(self, rpc: RpcStream) -> None:
        text = "the peer closed the stream without trailers"
        self.abort_stream(rpc, RpcError(StatusCode.INTERNAL, text))
