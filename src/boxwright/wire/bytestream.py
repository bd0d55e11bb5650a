"""Where the bytes of a connection go: sockets, memory pipes, tunnels.

A :class:`ByteStream` pushes what it receives into a :class:`ByteSink` and takes lists of
buffers to write, so that no layer waits in a coroutine for bytes.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol, cast

from boxwright.core.dataclass import dataclass

Buffer = bytes | bytearray | memoryview

_JOIN_BELOW: Final = 64 << 10
_HIGH_WATER: Final = 1 << 20
_UCRED: Final = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end, as far as the transport itself proves it.

    Attributes:
        kind: ``unix``, ``tcp``, ``tls``, ``tunnel`` or ``memory``.
        address: printable address, for logs.
        pid: process id on this host (unix sockets).
        uid: user id (unix sockets).
        gid: group id (unix sockets).
        tls_subject: the verified client certificate's common name.
        tls_organizational_units: its OU values.
        tls_names: its DNS, URI and e-mail alternative names.
    """

    kind: str
    address: str = ""
    pid: int | None = None
    uid: int | None = None
    gid: int | None = None
    tls_subject: str | None = None
    tls_organizational_units: tuple[str, ...] = ()
    tls_names: tuple[str, ...] = ()

    @property
    def is_authenticated(self) -> bool:
        """Whether the kernel or a verified certificate vouches for the peer."""
        return self.uid is not None or self.tls_subject is not None


class ByteSink(Protocol):
    """The receiving end; called from the event loop only."""

    def bytes_received(self, data: bytes | memoryview) -> None:
        """Take ``data``: immutable bytes, or a view that is valid during the call.

        A view of immutable bytes (``readonly``) may be kept.
        """

    def bytes_ended(self, error: Exception | None) -> None:
        """No further bytes in either direction; called exactly once."""

    def pause_writing(self) -> None:
        """The other side does not keep up; write little until resumed."""

    def resume_writing(self) -> None:
        """Writing is possible again."""


class ByteStream(Protocol):
    """A duplex byte transport owned by the connection that it was given to."""

    @property
    def peer(self) -> Peer:
        """The other end."""

    def start(self, sink: ByteSink) -> None:
        """Begin to deliver to ``sink``."""

    def write(self, buffers: list[Buffer]) -> None:
        """Queue ``buffers``; never blocks, see ``pause_writing``."""

    def close(self) -> None:
        """Write what is queued, then close; ``bytes_ended`` follows."""

    def abort(self) -> None:
        """Close at once and drop what is queued."""


class SocketStream(asyncio.Protocol):
    """A :class:`ByteStream` over an asyncio transport (unix, tcp or TLS).

    Args:
        on_connected: called when the transport is ready, before any byte.
    """

    def __init__(self, on_connected: Callable[[SocketStream], None] | None = None) -> None:
        self._on_connected = on_connected
        self._transport: asyncio.Transport | None = None
        self._sink: ByteSink | None = None
        self._early: list[bytes] = []
        self._ended = False
        self._error: Exception | None = None
        self._peer = Peer("tcp")

    @property
    def peer(self) -> Peer:
        """The other end."""
        return self._peer

    @property
    def transport(self) -> asyncio.Transport:
        """The asyncio transport below."""
        assert self._transport is not None
        return self._transport

    def start(self, sink: ByteSink) -> None:
        """Begin to deliver to ``sink``."""
        self._sink = sink
        for data in self._early:
            sink.bytes_received(data)
        self._early = []
        if self._ended:
            sink.bytes_ended(self._error)

    def write(self, buffers: list[Buffer]) -> None:
        """Queue ``buffers``."""
        transport = self._transport
        if transport is None or self._ended or transport.is_closing():
            return
        if len(buffers) == 1:
            transport.write(buffers[0])
        elif sum(map(len, buffers)) < _JOIN_BELOW:
            transport.write(b"".join(buffers))
        else:
            transport.writelines(buffers)

    def close(self) -> None:
        """Write what is queued, then close."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        # uvloop's transports are asyncio.Transport in all but inheritance.
        self._transport = asyncio_transport = cast("asyncio.Transport", transport)
        asyncio_transport.set_write_buffer_limits(high=_HIGH_WATER)
        self._peer = peer_of(transport)
        if self._on_connected is not None:
            self._on_connected(self)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        if self._sink is None:
            self._early.append(data)
        else:
            self._sink.bytes_received(data)

    def eof_received(self) -> bool | None:
        """Called by asyncio; an HTTP/2 connection has no half-closed state."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        self._ended = True
        self._error = exc
        if self._sink is not None:
            self._sink.bytes_ended(exc)

    def pause_writing(self) -> None:
        """Called by asyncio."""
        if self._sink is not None:
            self._sink.pause_writing()

    def resume_writing(self) -> None:
        """Called by asyncio."""
        if self._sink is not None:
            self._sink.resume_writing()


def peer_of(transport: asyncio.BaseTransport) -> Peer:
    """Read the peer's identity from the kernel (SO_PEERCRED) or its certificate."""
    sock = transport.get_extra_info("socket")
    certificate = transport.get_extra_info("peercert")
    is_tls = transport.get_extra_info("ssl_object") is not None
    address = transport.get_extra_info("peername")
    if sock is not None and sock.family == socket.AF_UNIX:
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        pid, uid, gid = _UCRED.unpack(raw)
        return Peer("unix", f"pid {pid}", pid=pid, uid=uid, gid=gid)
    text = f"{address[0]}:{address[1]}" if isinstance(address, tuple) else str(address or "")
    if not is_tls:
        return Peer("tcp", text)
    subject: str | None = None
    units: list[str] = []
    names: tuple[str, ...] = ()
    if certificate:
        subject = ""
        for group in certificate.get("subject", ()):
            for key, value in group:
                if key == "commonName":
                    subject = value
                elif key == "organizationalUnitName":
                    units.append(value)
        names = tuple(value for _, value in certificate.get("subjectAltName", ()))
    return Peer(
        "tls",
        text,
        tls_subject=subject,
        tls_organizational_units=tuple(units),
        tls_names=names,
    )


class _Half:
    """One direction of a memory pipe."""

    def __init__(self, high_water: int) -> None:
        self.queue: deque[bytes] = deque()
        self.size = 0
        self.high_water = high_water
        self.reader: ByteSink | None = None
        self.writer: ByteSink | None = None
        self.writer_paused = False
        self.ended = False
        self.delivered_end = False
        self.scheduled = False

    def put(self, buffers: list[Buffer]) -> None:
        if self.ended:
            return
        data = b"".join(buffers)
        self.queue.append(data)
        self.size += len(data)
        if self.size > self.high_water and not self.writer_paused:
            self.writer_paused = True
            if self.writer is not None:
                self.writer.pause_writing()
        self.schedule()

    def end(self, *, drop: bool) -> None:
        self.ended = True
        if drop:
            self.queue.clear()
        self.schedule()

    def schedule(self) -> None:
        if not self.scheduled and self.reader is not None:
            self.scheduled = True
            asyncio.get_running_loop().call_soon(self.deliver)

    def deliver(self) -> None:
        self.scheduled = False
        if self.reader is None or self.delivered_end:
            return
        while self.queue:
            data = self.queue.popleft()
            self.size -= len(data)
            self.reader.bytes_received(data)
        if self.writer_paused:
            self.writer_paused = False
            if self.writer is not None:
                self.writer.resume_writing()
        if self.ended and not self.delivered_end:
            self.delivered_end = True
            self.reader.bytes_ended(None)


class MemoryStream:
    """One end of :func:`memory_pipe`; delivery is asynchronous, as with a socket."""

    def __init__(self, incoming: _Half, outgoing: _Half) -> None:
        self.peer = Peer("memory")
        self._incoming = incoming
        self._outgoing = outgoing

    def start(self, sink: ByteSink) -> None:
        """Begin to deliver to ``sink``."""
        self._incoming.reader = sink
        self._outgoing.writer = sink
        self._incoming.schedule()

    def write(self, buffers: list[Buffer]) -> None:
        """Queue ``buffers`` for the other end."""
        self._outgoing.put(buffers)

    def close(self) -> None:
        """End both directions after what is queued."""
        self._outgoing.end(drop=False)
        self._incoming.end(drop=False)

    def abort(self) -> None:
        """End both directions at once."""
        self._outgoing.end(drop=True)
        self._incoming.end(drop=True)


def memory_pipe(*, high_water: int = _HIGH_WATER) -> tuple[MemoryStream, MemoryStream]:
    """Return two connected byte streams inside this process."""
    there, back = _Half(high_water), _Half(high_water)
    return MemoryStream(there, back), MemoryStream(back, there)
