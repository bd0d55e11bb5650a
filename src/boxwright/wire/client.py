"""The calling side: one connection, unary calls and streams.

Example::

    conn = await Connection.open("unix:///run/buildkit/buildkitd.sock")
    info = await conn.unary(methods.CONTROL_INFO, control_pb2.InfoRequest())
    await conn.close()
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections import deque
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Final, Generic, Self
from urllib.parse import unquote, urlsplit

from google.protobuf.message import DecodeError

from boxwright._version import __version__
from boxwright.errors import BoxwrightError, Code, InvalidInputError
from boxwright.wire import metadata as md
from boxwright.wire.bytestream import ByteStream, SocketStream
from boxwright.wire.frames import ErrorCode, Http2Limits
from boxwright.wire.http2 import Headers, Stream
from boxwright.wire.metadata import Metadata, MetadataItems
from boxwright.wire.methods import Method, Request, Response
from boxwright.wire.pb import status_pb2
from boxwright.wire.rpc import TRUSTED_MAX_MESSAGE, Endpoint, RpcStream, iterate, parse_message
from boxwright.wire.status import RpcError, StatusCode, from_pb
from boxwright.wire.tls import TlsOptions, client_context

_USER_AGENT: Final = f"boxwright/{__version__}".encode()
_LIMITS: Final = Http2Limits(max_header_list=16 << 20)
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


class ConnectError(BoxwrightError):
    """No connection to a daemon.

    Args:
        address: the address that was tried.
        reason: what the system said.
    """

    code = Code.UNAVAILABLE
    retryable = True

    def __init__(self, address: str, reason: str, *, hint: str = "") -> None:
        super().__init__(f"can't connect to {address}", detail=reason, hint=hint)
        self.address = address


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
        endpoint: _ClientEndpoint,
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
        assert isinstance(endpoint, _ClientEndpoint)
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


class _ClientEndpoint(Endpoint):
    is_client = True

    def __init__(
        self, transport: ByteStream, limits: Http2Limits, max_message: int, authority: str
    ) -> None:
        super().__init__(transport, limits, max_message)
        self._authority = authority.encode()
        self._scheme = b"https" if transport.peer.kind == "tls" else b"http"
        self._waiting: deque[asyncio.Future[None]] = deque()

    def request_headers(self, path: str, timeout_s: float | None) -> list[tuple[bytes, bytes]]:
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
        if isinstance(stream.owner, ClientStream):
            stream.owner._on_headers(headers, end=end)  # noqa: SLF001

    def _remote_ended(self, rpc: RpcStream) -> None:
        text = "the peer closed the stream without trailers"
        self.abort_stream(rpc, RpcError(StatusCode.INTERNAL, text))


class Connection:
    """One connection to a daemon, or to the client at the other end of a session.

    Attributes:
        closed: done when the connection has ended, for whatever reason.
    """

    def __init__(self, endpoint: _ClientEndpoint) -> None:
        self._endpoint = endpoint
        self.closed = endpoint.closed

    @classmethod
    async def open(
        cls,
        address: str,
        *,
        tls: TlsOptions | None = None,
        timeout_s: float | None = 10.0,
        max_message_bytes: int = TRUSTED_MAX_MESSAGE,
    ) -> Connection:
        """Connect to ``unix://PATH`` or ``tcp://HOST:PORT``.

        Raises:
            ConnectError: refused, not found, timed out, or the certificate is not accepted.
            InvalidInputError: another scheme.
        """
        stream, authority = await _connect(address, tls, timeout_s)
        return cls.over(stream, authority=authority, max_message_bytes=max_message_bytes)

    @classmethod
    def over(
        cls,
        transport: ByteStream,
        *,
        authority: str = "localhost",
        limits: Http2Limits = _LIMITS,
        max_message_bytes: int = TRUSTED_MAX_MESSAGE,
    ) -> Connection:
        """Speak over ``transport``, which the connection owns from now on."""
        endpoint = _ClientEndpoint(transport, limits, max_message_bytes, authority)
        endpoint.start()
        return cls(endpoint)

    async def unary(
        self,
        method: Method[Request, Response],
        request: Request,
        *,
        metadata: MetadataItems = (),
        timeout_s: float | None = None,
    ) -> Response:
        """Call ``method`` with one message and return the one that is answered.

        Raises:
            RpcError: the call failed.
        """
        async with self.stream(method, metadata=metadata, timeout_s=timeout_s) as call:
            call.write(request.SerializeToString())
            await call.close_send()
            answer = await call.recv()
            if answer is None or await call.recv_bytes() is not None:
                text = f"{method.path} did not answer exactly one message"
                raise RpcError(StatusCode.INTERNAL, text)
            return answer

    def stream(
        self,
        method: Method[Request, Response],
        *,
        metadata: MetadataItems = (),
        timeout_s: float | None = None,
    ) -> ClientStream[Request, Response]:
        """Return a call to be opened with ``async with``."""
        return ClientStream(self._endpoint, method, metadata, timeout_s)

    async def ping(self) -> float:
        """Return the round-trip time in seconds."""
        return await self._endpoint.ping()

    async def close(self) -> None:
        """End the connection; calls in progress fail with CANCELLED."""
        if not self.closed.done():
            self._endpoint.shut(RpcError(StatusCode.CANCELLED, "the connection was closed"))
        await asyncio.shield(self.closed)


async def _connect(
    address: str, tls: TlsOptions | None, timeout_s: float | None
) -> tuple[SocketStream, str]:
    loop = asyncio.get_running_loop()
    parts = urlsplit(address)
    try:
        async with asyncio.timeout(timeout_s):
            if parts.scheme == "unix":
                path = unquote(parts.netloc + parts.path)
                _, stream = await loop.create_unix_connection(SocketStream, path)
                return stream, "localhost"
            if parts.scheme != "tcp" or parts.hostname is None or parts.port is None:
                raise InvalidInputError(
                    f"unusable address {address!r}",
                    hint="use unix:///path/to/socket or tcp://host:port",
                )
            context = client_context(tls) if tls is not None else None
            server_name = (tls.server_name or parts.hostname) if tls is not None else None
            transport, stream = await loop.create_connection(
                SocketStream,
                parts.hostname,
                parts.port,
                ssl=context,
                server_hostname=server_name,
            )
    except TimeoutError:
        raise ConnectError(address, f"no connection within {timeout_s} s") from None
    except ssl.SSLError as exc:
        reason = getattr(exc, "verify_message", "") or exc.reason or str(exc)
        raise ConnectError(
            address, f"TLS: {reason}", hint="check the CA, the certificate and the server name"
        ) from exc
    except OSError as exc:
        reason = os.strerror(exc.errno) if exc.errno else str(exc)
        raise ConnectError(address, reason, hint="check that the daemon runs") from exc
    if context is not None:
        chosen = transport.get_extra_info("ssl_object").selected_alpn_protocol()
        if chosen != "h2":
            transport.abort()
            raise ConnectError(address, "the server does not offer HTTP/2 (ALPN h2)")
    return stream, parts.netloc
