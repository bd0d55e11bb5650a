"""The serving side: handlers by path, over sockets or any byte stream.

Example::

    server = Server()
    server.add(methods.CONTROL_INFO, info)      # async def info(request, ctx) -> response
    server.add(methods.CONTROL_SESSION, serve)  # async def serve(stream, ctx) -> None
    await server.listen("unix:///run/boxwright.sock", mode=0o660)
    ...
    await server.shutdown(grace_s=5.0)
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from google.protobuf.empty_pb2 import Empty

from boxwright.errors import InvalidInputError
from boxwright.wire import metadata as md
from boxwright.wire.bytestream import ByteStream, SocketStream
from boxwright.wire.frames import ErrorCode, Http2Limits
from boxwright.wire.http2send import Headers, Stream
from boxwright.wire.listen import ListenError, bind_unix, unlink_own
from boxwright.wire.methods import Method
from boxwright.wire.rpc import (
    MAX_MESSAGE,
    TRUSTED_MAX_MESSAGE,
    Endpoint,
    RpcStream,
    parse_message,
)
from boxwright.wire.serverstream import Context, ServerStream
from boxwright.wire.status import RpcError, StatusCode, to_rpc_error
from boxwright.wire.tls import ServerTls, TlsOptions

_log = logging.getLogger(__name__)

_BACKLOG: Final = 512
_PREFACE_TIMEOUT_S: Final = 20.0

__all__ = [
    "Authorize",
    "Context",
    "Handler",
    "ListenError",
    "Server",
    "ServerStream",
    "StreamHandler",
    "UnaryHandler",
]

UnaryHandler = Callable[[Any, "Context"], Awaitable[Any]]
StreamHandler = Callable[["ServerStream", "Context"], Awaitable[None]]
Handler = tuple[Method[Any, Any], UnaryHandler | StreamHandler]
Authorize = Callable[[Method[Any, Any], "Context"], Awaitable[None] | None]


class _ServerEndpoint(Endpoint):
    is_client = False

    def __init__(
        self, server: Server, transport: ByteStream, limits: Http2Limits, max_message: int
    ) -> None:
        super().__init__(transport, limits, max_message)
        self._server = server
        self.tasks: set[asyncio.Task[None]] = set()
        self._draining = False
        self._stopping = False

    def on_headers(self, stream: Stream, headers: Headers, *, end: bool) -> None:
        if stream.owner is not None:  # trailers of a request: nothing in them for us
            if end and isinstance(stream.owner, ServerStream):
                stream.owner._end(None)  # noqa: SLF001
            return
        fields = {bytes(name): bytes(value) for name, value in headers}
        content_type = fields.get(b"content-type", b"")
        if fields.get(b":method") != b"POST" or not content_type.startswith(b"application/grpc"):
            status = b"405" if fields.get(b":method") != b"POST" else b"415"
            self.h2.send_headers(stream, [(b":status", status)], end=True)
            if not stream.remote_closed:
                self.h2.reset(stream, ErrorCode.NO_ERROR)
            return
        path = fields.get(b":path", b"").decode("latin-1")
        handler = self._server.handlers.get(path)
        encoding = fields.get(b"grpc-encoding", b"identity")
        method = handler[0] if handler is not None else Method(path, Empty, Empty)
        deadline: float | None = None
        refusal: RpcError | None = None
        try:
            if b"grpc-timeout" in fields:
                timeout_s = md.decode_timeout(fields[b"grpc-timeout"])
                deadline = self._loop.time() + timeout_s
        except InvalidInputError as exc:
            refusal = RpcError(StatusCode.INTERNAL, str(exc))
        if handler is None:
            refusal = RpcError(StatusCode.UNIMPLEMENTED, f"unknown method {path[:200]}")
        elif encoding not in {b"identity", b"gzip"}:
            text = f"unknown grpc-encoding {encoding.decode('latin-1')[:40]}"
            refusal = RpcError(StatusCode.UNIMPLEMENTED, text)
        context = Context(method, md.from_headers(headers), self.peer, deadline)
        call = ServerStream(self, context)
        call._stream = stream  # noqa: SLF001
        call._gzip = encoding == b"gzip"  # noqa: SLF001
        stream.owner = call
        if refusal is not None or handler is None:
            call._finish(refusal)  # noqa: SLF001
            return
        if end:
            call._end(None)  # noqa: SLF001
        task = self._loop.create_task(self._run(call, handler), name=path)
        call._task = task  # noqa: SLF001
        self.tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("call task failed", exc_info=task.exception())
        if self._draining:
            self.flush_soon()
        if self.closed.done() and not self.tasks:
            self._server.forget(self)

    def _after_flush(self) -> None:
        if self._draining and not self.tasks:
            streams = self.h2.streams.values()
            if not any(stream.queued or stream.end_queued for stream in streams):
                self.transport.close()

    async def _run(self, call: ServerStream, handler: Handler) -> None:
        error: RpcError | None = None
        method, function = handler
        context = call.context
        try:
            async with asyncio.timeout_at(context.deadline):
                decision = self._server.authorize(method, context)
                if inspect.isawaitable(decision):
                    await decision
                if method.client_streaming or method.server_streaming:
                    await function(call, context)
                else:
                    await self._unary(call, method, function)
        except TimeoutError as exc:
            if context.deadline is not None and self._loop.time() >= context.deadline:
                text = "the deadline of the call has passed"
                error = RpcError(StatusCode.DEADLINE_EXCEEDED, text)
            else:
                error = to_rpc_error(exc)
        except asyncio.CancelledError as exc:
            if call._was_reset or self.closed.done():  # noqa: SLF001
                return
            error = to_rpc_error(exc)
            if self._stopping:
                error = RpcError(StatusCode.UNAVAILABLE, "the server is shutting down")
        except Exception as exc:  # noqa: BLE001 - the one place where calls end
            error = to_rpc_error(exc)
        call._finish(error)  # noqa: SLF001

    async def _unary(
        self, call: ServerStream, method: Method[Any, Any], function: UnaryHandler | StreamHandler
    ) -> None:
        payload = await call.recv_bytes()
        if payload is None or await call.recv_bytes() is not None:
            raise RpcError(StatusCode.INTERNAL, "a unary call needs exactly one message")
        response = await function(parse_message(method.request, payload), call.context)
        if response is None:
            raise RpcError(StatusCode.INTERNAL, f"{method.path} answered nothing")
        call.write(response.SerializeToString())

    def _stream_failed(self, rpc: RpcStream, error: RpcError) -> None:
        rpc._end(error)  # noqa: SLF001
        if isinstance(rpc, ServerStream):
            rpc._was_reset = True  # noqa: SLF001
            if rpc._task is not None:  # noqa: SLF001
                rpc._task.cancel()  # noqa: SLF001

    def abort_stream(self, rpc: RpcStream, error: RpcError) -> None:
        """End a call whose input is unacceptable, with a status instead of a bare reset."""
        rpc._end(error)  # noqa: SLF001
        if isinstance(rpc, ServerStream):
            rpc._was_reset = True  # noqa: SLF001
            if rpc._task is not None:  # noqa: SLF001
                rpc._task.cancel()  # noqa: SLF001
            rpc._finish(error)  # noqa: SLF001

    def expect_started(self) -> None:
        """Drop a peer that has connected and said nothing: it would hold a descriptor."""
        if not self.h2.is_started and not self.closed.done():
            self.transport.abort()

    def drain(self) -> None:
        """Take no further calls; close when the last has ended."""
        if self.closed.done() or self._draining:
            return
        self._draining = True
        self.h2.goaway()
        self.flush_soon()

    async def stop(self) -> None:
        """Cancel all calls, wait for their handlers, close."""
        self._stopping = True
        for task in list(self.tasks):
            if not task.cancelling():  # else it is cleaning up: not to be disturbed
                task.cancel()
        if self.tasks:
            await asyncio.wait(list(self.tasks))
        self.flush()
        if not self.closed.done():
            self.transport.close()


class Server:
    """Handlers by path; serves any number of listeners and byte streams.

    Args:
        handlers: path → (method, handler).
        authorize: called before every call; raises to refuse it.
        limits: HTTP/2 limits; default is small before and large after authentication.
        max_message_bytes: largest message; default 16 MiB, 128 MiB for authenticated peers.
    """

    def __init__(
        self,
        handlers: Mapping[str, Handler] | None = None,
        *,
        authorize: Authorize | None = None,
        limits: Http2Limits | None = None,
        max_message_bytes: int | None = None,
    ) -> None:
        self.handlers: dict[str, Handler] = dict(handlers or {})
        self.authorize: Authorize = authorize or _allow
        self._limits = limits
        self._max_message = max_message_bytes
        self._endpoints: set[_ServerEndpoint] = set()
        self._listeners: list[asyncio.Server] = []
        self._socket_files: list[tuple[str, int]] = []
        self.addresses: list[str] = []

    def add(self, method: Method[Any, Any], handler: UnaryHandler | StreamHandler) -> None:
        """Serve ``method``.

        Args:
            method: the method.
            handler: ``async (request, ctx) -> response`` if it is unary, else
                ``async (stream, ctx) -> None``.
        """
        self.handlers[method.path] = (method, handler)

    @property
    def connections(self) -> int:
        """How many connections are open, or have handlers that still clean up."""
        return len(self._endpoints)

    async def listen(
        self,
        address: str,
        *,
        tls: TlsOptions | None = None,
        mode: int = 0o660,
        uid: int = -1,
        gid: int = -1,
    ) -> str:
        """Listen on ``unix://PATH`` or ``tcp://HOST:PORT``; return the bound address.

        A stale socket file is replaced; one that something answers on is not. Mode and owner
        are set before the socket can be reached.

        Raises:
            ListenError: the address is in use, not permitted or not local.
            TlsConfigError: a certificate can't be used.
        """
        loop = asyncio.get_running_loop()
        parts = urlsplit(address)
        context = ServerTls(tls).context if tls is not None else None
        try:
            if parts.scheme == "unix":
                path = unquote(parts.netloc + parts.path)
                sock = bind_unix(path, mode, uid, gid)
                self._socket_files.append((path, os.stat(path).st_ino))
                listener = await loop.create_unix_server(
                    self._protocol, sock=sock, backlog=_BACKLOG, ssl=context
                )
                bound = f"unix://{path}"
            elif parts.scheme == "tcp":
                host, port = parts.hostname or None, parts.port or 0
                listener = await loop.create_server(
                    self._protocol, host, port, backlog=_BACKLOG, ssl=context
                )
                name = listener.sockets[0].getsockname()
                shown = f"[{name[0]}]" if ":" in name[0] else name[0]
                bound = f"tcp://{shown}:{name[1]}"
            else:
                raise InvalidInputError(
                    f"unusable listen address {address!r}",
                    hint="use unix:///path/to/socket or tcp://host:port",
                )
        except OSError as exc:
            reason = os.strerror(exc.errno) if exc.errno else str(exc)
            raise ListenError(address, reason) from exc
        self._listeners.append(listener)
        self.addresses.append(bound)
        return bound

    def _protocol(self) -> SocketStream:
        return SocketStream(self._accepted)

    def _accepted(self, stream: SocketStream) -> None:
        # No ALPN check: buildx's remote driver offers none, and stock buildkitd takes it. Who
        # speaks something else fails at the connection preface.
        self._serve(stream)

    async def serve_over(self, transport: ByteStream) -> None:
        """Serve one connection over ``transport`` until it ends; cancelling closes it."""
        endpoint = self._serve(transport)
        try:
            await asyncio.shield(endpoint.closed)
        finally:
            await endpoint.stop()

    def _serve(self, transport: ByteStream) -> _ServerEndpoint:
        trusted = transport.peer.is_authenticated or transport.peer.kind in {"tunnel", "memory"}
        limits = self._limits or Http2Limits(max_header_list=(1 << 20) if trusted else 256 << 10)
        max_message = self._max_message or (TRUSTED_MAX_MESSAGE if trusted else MAX_MESSAGE)
        endpoint = _ServerEndpoint(self, transport, limits, max_message)
        self._endpoints.add(endpoint)
        endpoint.start()
        timer = asyncio.get_running_loop().call_later(_PREFACE_TIMEOUT_S, endpoint.expect_started)

        def ended(_: asyncio.Future[None]) -> None:
            timer.cancel()
            if not endpoint.tasks:
                self.forget(endpoint)

        endpoint.closed.add_done_callback(ended)
        return endpoint

    def forget(self, endpoint: _ServerEndpoint) -> None:
        """A connection has ended and so have its handlers."""
        self._endpoints.discard(endpoint)

    async def shutdown(self, grace_s: float) -> None:
        """Stop listening, let calls finish for ``grace_s`` seconds, cancel the rest."""
        for listener in self._listeners:
            listener.close()
        for path, inode in self._socket_files:
            unlink_own(path, inode)
        self._listeners, self._socket_files = [], []
        endpoints = list(self._endpoints)
        for endpoint in endpoints:
            endpoint.drain()
        if endpoints and grace_s > 0:
            await asyncio.wait([endpoint.closed for endpoint in endpoints], timeout=grace_s)
        await asyncio.gather(*(endpoint.stop() for endpoint in endpoints))


def _allow(method: Method[Any, Any], context: Context) -> None:
    """The default policy: the listener's own access control is enough."""
    del method, context
