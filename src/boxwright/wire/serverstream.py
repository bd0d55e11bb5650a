"""The server's view of one call: context, stream, status."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from boxwright.core.dataclass import dataclass
from boxwright.wire import metadata as md
from boxwright.wire.bytestream import Peer
from boxwright.wire.frames import ErrorCode
from boxwright.wire.metadata import Metadata, MetadataItems
from boxwright.wire.methods import Method
from boxwright.wire.rpc import Endpoint, RpcStream, iterate, parse_message
from boxwright.wire.status import RpcError, to_pb

_TRAILER_BYTES: Final = 1 << 20
_TRAILER_SLACK: Final = 1024
_MESSAGE_BYTES: Final = 64 << 10
_OK: Final = ((b"grpc-status", b"0"),)
RESPONSE_HEADERS: Final = ((b":status", b"200"), (b"content-type", b"application/grpc"))


@dataclass(slots=True)
class Context:
    """What a handler knows about its call.

    Attributes:
        method: the method called.
        metadata: the request's metadata.
        peer: the other end, as the transport proves it.
        deadline: loop time at which the caller stops waiting, None without a deadline.
    """

    method: Method[Any, Any]
    metadata: Metadata
    peer: Peer
    deadline: float | None
    _initial: MetadataItems = ()
    _trailing: MetadataItems = ()

    def set_initial_metadata(self, items: MetadataItems) -> None:
        """Metadata of the response headers; effective until the first message is sent."""
        md.to_headers(items)
        self._initial = items

    def set_trailing_metadata(self, items: MetadataItems) -> None:
        """Metadata of the trailers."""
        md.to_headers(items)
        self._trailing = items

    def remaining_s(self) -> float | None:
        """Seconds until the deadline, not below 0; None without one."""
        if self.deadline is None:
            return None
        return max(0.0, self.deadline - asyncio.get_running_loop().time())


class ServerStream(RpcStream):
    """The server's view of one call; ends when its handler returns or raises."""

    __slots__ = ("_context", "_headers_sent", "_task", "_was_reset")

    def __init__(self, endpoint: Endpoint, context: Context) -> None:
        super().__init__(endpoint)
        self._context = context
        self._headers_sent = False
        self._task: asyncio.Task[None] | None = None
        self._was_reset = False

    @property
    def context(self) -> Context:
        """Metadata, peer and deadline."""
        return self._context

    async def recv(self) -> Any:  # noqa: ANN401 - the handler knows its method's type
        """Return the next message, or None when the client has half-closed.

        Raises:
            RpcError: the call failed.
        """
        payload = await self.recv_bytes()
        return None if payload is None else parse_message(self._context.method.request, payload)

    def __aiter__(self) -> AsyncIterator[Any]:
        return iterate(self, self._context.method.request)

    def write(self, *parts: bytes | bytearray | memoryview) -> None:
        """Queue one message; the response headers go first."""
        self.send_headers()
        super().write(*parts)

    async def send_batch(self, payloads: Sequence[bytes]) -> None:
        """Send several small messages, already serialised, as one piece of the stream."""
        self.send_headers()
        await super().send_batch(payloads)

    def send_headers(self) -> None:
        """Send the response headers now, once."""
        if self._headers_sent or self._stream is None:
            return
        self._headers_sent = True
        headers = [*RESPONSE_HEADERS, *md.to_headers(self._context._initial)]  # noqa: SLF001
        self._endpoint.h2.send_headers(self._stream, headers, end=False)
        self._endpoint.flush_soon()

    def _finish(self, error: RpcError | None) -> None:
        """Send the status; trailers-only if nothing was sent before."""
        stream = self._stream
        if stream is None or stream.local_closed:
            return
        trailing = md.to_headers(self._context._trailing)  # noqa: SLF001
        limit = min(self._endpoint.h2.peer_max_header_list, _TRAILER_BYTES) - _TRAILER_SLACK
        trailers = [*(_OK if error is None else status_headers(error, limit)), *trailing]
        h2 = self._endpoint.h2
        if self._headers_sent:
            h2.end_stream(stream, trailers)
        elif error is None:
            self.send_headers()
            h2.end_stream(stream, trailers)
        else:
            h2.send_headers(stream, [*RESPONSE_HEADERS, *trailers], end=True)
        self._endpoint.flush()
        if stream.id in h2.streams and stream.queued == 0:
            h2.reset(stream, ErrorCode.NO_ERROR)  # the client need not send the rest
            self._endpoint.flush_soon()


def status_headers(error: RpcError, limit: int) -> list[tuple[bytes, bytes]]:
    """Return the trailers for ``error`` in at most about ``limit`` bytes.

    The largest details go first, then the end of the message.
    """
    message = error.message
    if len(message) * 3 > min(_MESSAGE_BYTES * 3, limit // 2):
        message = message[: min(_MESSAGE_BYTES, limit // 6)] + " [truncated]"
    text = md.encode_message(message)
    headers = [(b"grpc-status", b"%d" % error.status), (b"grpc-message", text)]
    details = list(error.details)
    while details:
        packed = md.encode_bin(to_pb(RpcError(error.status, message, details)).SerializeToString())
        if len(packed) + len(text) <= limit:
            headers.append((b"grpc-status-details-bin", packed))
            break
        details.remove(max(details, key=lambda detail: len(detail.value)))
    return headers
