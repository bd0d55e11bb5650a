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
from typing import Final
from urllib.parse import unquote, urlsplit

from boxwright.errors import BoxwrightError, Code, InvalidInputError
from boxwright.linux import unixpath
from boxwright.wire.bytestream import ByteStream, SocketStream
from boxwright.wire.clientcall import ClientEndpoint, ClientStream
from boxwright.wire.frames import Http2Limits
from boxwright.wire.metadata import MetadataItems
from boxwright.wire.methods import Method, Request, Response
from boxwright.wire.rpc import TRUSTED_MAX_MESSAGE
from boxwright.wire.status import RpcError, StatusCode
from boxwright.wire.tls import TlsOptions, client_context

__all__ = ["ClientStream", "ConnectError", "Connection"]

# A daemon's error trailers carry whole Dockerfiles. The client at the other end of a session
# has no reason to send much, and decoding a megabyte of header takes 0.3 s of the loop.
_LIMITS: Final = Http2Limits(max_header_list=16 << 20)
_SESSION_LIMITS: Final = Http2Limits(max_header_list=1 << 20)


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


class Connection:
    """One connection to a daemon, or to the client at the other end of a session.

    Attributes:
        closed: done when the connection has ended, for whatever reason.
    """

    def __init__(self, endpoint: ClientEndpoint) -> None:
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
        limits: Http2Limits | None = None,
        max_message_bytes: int = TRUSTED_MAX_MESSAGE,
    ) -> Connection:
        """Speak over ``transport``, which the connection owns from now on."""
        if limits is None:
            limits = _SESSION_LIMITS if transport.peer.kind == "tunnel" else _LIMITS
        endpoint = ClientEndpoint(transport, limits, max_message_bytes, authority)
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
                with unixpath.usable(path) as name:
                    _, stream = await loop.create_unix_connection(SocketStream, name)
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
