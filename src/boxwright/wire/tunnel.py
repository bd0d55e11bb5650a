"""A byte transport inside a stream of ``BytesMessage``, as the Session method carries it.

The inner connection has the roles reversed: the daemon calls, the client serves. Received
bytes go to the inner connection synchronously and credit goes back at once, so the outer
stream never stops; the inner windows alone bound what a stuck inner stream can hold, and the
session's health check passes beside it.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Final

from google.protobuf.message import DecodeError

from boxwright.wire.bytestream import Buffer, ByteSink, Peer
from boxwright.wire.client import ClientStream
from boxwright.wire.pb import control_pb2
from boxwright.wire.rpc import RpcStream
from boxwright.wire.server import ServerStream
from boxwright.wire.status import RpcError, StatusCode

_CHUNK: Final = 64 << 10
_HIGH_WATER: Final = 512 << 10
_JOIN_BELOW: Final = 4096
_DATA_TAG: Final = 0x0A
# A message's prefix (flag, length), then tag and length of its field in one or two bytes.
_UNPACK_PLAIN: Final = struct.Struct(">BIBBB").unpack_from
_PLAIN_BYTES: Final = 8


class MessageTunnel:
    """A :class:`~boxwright.wire.bytestream.ByteStream` over one call.

    Works on the daemon's side (:class:`ServerStream`) and on the client's
    (:class:`ClientStream`). The call stays the caller's: on the daemon's side the handler
    awaits :meth:`wait_closed` and returns, on the client's the ``async with`` block ends.
    """

    def __init__(self, stream: RpcStream) -> None:
        self._stream = stream
        address = ""
        if isinstance(stream, ServerStream):
            address = stream.context.peer.address
        self.peer = Peer("tunnel", address)
        self._sink: ByteSink | None = None
        self._paused = False
        self._odd: list[bytes] | None = None  # a message that is not plainly one field 1
        self._small: list[Buffer] = []  # pieces that arrived together
        self._closed = asyncio.get_running_loop().create_future()

    def start(self, sink: ByteSink) -> None:
        """Begin to deliver to ``sink``."""
        self._sink = sink
        if isinstance(self._stream, ServerStream):
            self._stream.send_headers()  # some clients wait for them before they send
        self._stream.set_sink(
            self._on_piece, self._on_end, self._on_drained, self._pass_on, self._on_run
        )

    def write(self, buffers: list[Buffer]) -> None:
        """Queue ``buffers`` as messages of about 64 KiB."""
        if self._closed.done():
            return
        group: list[Buffer] = []
        size = 0
        try:
            for buffer in buffers:
                group.append(buffer)
                size += len(buffer)
                if size >= _CHUNK:
                    self._stream.write(_field_header(size), *group)
                    group, size = [], 0
            if group:
                self._stream.write(_field_header(size), *group)
        except RpcError as exc:
            self._on_end(exc)
            return
        if self._stream.pending_bytes > _HIGH_WATER and not self._paused:
            self._paused = True
            self._stream.notify_drained()
            if self._sink is not None:
                self._sink.pause_writing()

    def close(self) -> None:
        """End the tunnel after what is queued."""
        self._on_end(None)

    def abort(self) -> None:
        """End the tunnel at once."""
        if isinstance(self._stream, ClientStream):
            self._stream.cancel()
        self._on_end(None)

    async def wait_closed(self) -> None:
        """Wait until either end has closed the tunnel."""
        await asyncio.shield(self._closed)

    def _on_piece(self, view: memoryview, offset: int, total: int) -> None:
        """Pass on what lies inside of field 1, without waiting for the end of the message."""
        sink = self._sink
        if sink is None or total == 0 or self._closed.done():
            return
        if offset == 0:
            start = _field_start(view, total)
            if start is None:
                self._odd = []
            else:
                view = view[start:]
        if self._odd is not None:
            self._odd.append(bytes(view))
            if offset + len(view) < total:
                return
            whole, self._odd = b"".join(self._odd), None
            try:
                view = memoryview(control_pb2.BytesMessage.FromString(whole).data)
            except DecodeError:
                self.abort()
                return
        if len(view) < _JOIN_BELOW:
            self._small.append(view)
            return
        if self._small:
            self._pass_on()
        sink.bytes_received(view)

    def _on_run(self, data: bytes, offset: int) -> int:
        """Gather messages that are plainly one short field 1, as nearly all of them are."""
        size = len(data)
        small = self._small
        while size - offset >= _PLAIN_BYTES:
            flag, length, tag, low, high = _UNPACK_PLAIN(data, offset)
            end = offset + 5 + length
            if end > size or flag or tag != _DATA_TAG:
                break
            if low == length - 2 and low < 0x80:
                small.append(data[offset + 7 : end])
            elif low & 0x7F | high << 7 == length - 3 and low >= 0x80 > high:
                small.append(data[offset + 8 : end])
            else:
                break
            offset = end
        return offset

    def _pass_on(self) -> None:
        """Deliver what was gathered: peers send a message for every small frame."""
        small, self._small = self._small, []
        if not small or self._sink is None or self._closed.done():
            return
        self._sink.bytes_received(b"".join(small))

    def _on_end(self, error: RpcError | None) -> None:
        if self._closed.done():
            return
        self._closed.set_result(None)
        if self._sink is not None:
            gone = error is not None and error.status is not StatusCode.CANCELLED
            self._sink.bytes_ended(error if gone else None)

    def _on_drained(self) -> None:
        if self._paused:
            self._paused = False
            if self._sink is not None:
                self._sink.resume_writing()


def _field_header(size: int) -> bytes:
    """Return tag and length of field 1 of a BytesMessage with ``size`` bytes."""
    out = bytearray((_DATA_TAG,))
    while size >= 0x80:
        out.append(0x80 | (size & 0x7F))
        size >>= 7
    out.append(size)
    return bytes(out)


def _field_start(view: memoryview, total: int) -> int | None:
    """Return where the data begins in a message of ``total`` bytes that is one field 1."""
    if view[0] != _DATA_TAG:
        return None
    size = shift = 0
    for offset in range(1, min(len(view), 6)):
        byte = view[offset]
        size |= (byte & 0x7F) << shift
        if byte < 0x80:
            return offset + 1 if offset + 1 + size == total else None
        shift += 7
    return None
