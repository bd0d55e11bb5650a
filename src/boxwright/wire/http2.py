"""One HTTP/2 connection without I/O (RFC 9113): what is received, and what is refused.

Bytes go in through :meth:`Http2.receive`, events come out through ``Http2Events``, and what
must be written gathers in ``out`` (:mod:`boxwright.wire.http2send`).

Invariants: the header decoder sees every header block, also of refused streams; after
:class:`Http2Error` the connection is dead and ``out`` ends with the GOAWAY that says why.
"""

from __future__ import annotations

import logging
import struct
import time
from collections.abc import Callable
from typing import Final, cast

from boxwright.wire import frames as f
from boxwright.wire.frames import ErrorCode, Http2Limits
from boxwright.wire.http2send import (
    DATA_REFUND,
    Buffer,
    Headers,
    Http2Events,
    SendSide,
    Stream,
)

# hpack logs every header value at debug level: credentials would reach the daemon's log.
logging.getLogger("hpack").setLevel(logging.INFO)

_COST_RESET: Final = 20
_COST_SETTINGS: Final = 20
_PARTIAL_FROM: Final = 2048
_SHORT_CONTINUATION: Final = 4096
_JOIN_BELOW: Final = 4096
_UNPACK: Final = struct.Struct(">IBI").unpack_from  # length and type, flags, stream


class Http2(SendSide):
    """The state machine of one connection, for either role."""

    def __init__(
        self,
        events: Http2Events,
        *,
        is_client: bool,
        limits: Http2Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(events, limits or Http2Limits(), is_client=is_client)
        self._clock = clock
        self._rest: list[Buffer] = []
        self._rest_size = 0
        self._rest_need = 0
        self._body_left = 0
        self._body_flags = 0
        self._body_stream: Stream | None = None
        self._preface_left = b"" if is_client else f.PREFACE
        self._saw_settings = False
        self._recv_window = self.limits.connection_window
        self._recv_unacked = 0
        self._credit_connection_at = max(1, self.limits.connection_window // 2)
        import hpack  # its tables are large, and an embedded engine has no connection

        self._decoder = hpack.Decoder(max_header_list_size=self.limits.max_header_list)
        self._block: list[bytes] = []
        self._block_size = 0
        self._block_stream = 0
        self._block_end = False
        self._budget_at = clock()
        self._handlers: tuple[Callable[[int, int, memoryview], None], ...] = (
            self._on_data,
            self._on_headers,
            self._on_priority,
            self._on_rst,
            self._on_settings,
            self._on_push,
            self._on_ping,
            self._on_goaway,
            self._on_window_update,
            self._on_continuation,
        )

    @property
    def is_started(self) -> bool:
        """Whether the peer's SETTINGS have arrived."""
        return self._saw_settings

    def receive(self, data: bytes | memoryview) -> None:
        """Take bytes from the peer; only views of immutable bytes are kept after the call.

        Raises:
            Http2Error: the connection must be closed after writing ``out``.
        """
        if self._body_left:
            data = self._more_body(memoryview(data))
        if self._rest:
            self._rest.append(bytes(data))
            self._rest_size += len(data)
            if self._rest_size < self._rest_need:
                return
            data = b"".join(self._rest)
            self._rest = []
        if self._preface_left:
            data = self._take_preface(data)
        self._receive_frames(data)

    def _receive_frames(self, data: bytes | memoryview) -> None:
        size = len(data)
        view = memoryview(data)
        offset = 0
        max_frame = self.limits.max_frame
        run: list[Buffer] = []  # small DATA frames of one stream, one behind the other
        run_id = 0
        while size - offset >= 9:  # f.FRAME_HEADER_BYTES
            head, flags, stream_id = _UNPACK(data, offset)
            length = head >> 8
            if length > max_frame:
                raise self._fail(ErrorCode.FRAME_SIZE_ERROR, "frame is too large")
            end = offset + 9 + length
            if end > size:
                break
            if not (head & 0xFF or flags) and 0 < length < _JOIN_BELOW:  # type 0 is DATA
                if stream_id != run_id:
                    if run:
                        self._on_data_run(run_id, run)
                        run = []
                    run_id = stream_id
                run.append(data[offset + 9 : end])  # of bytes cheaper than a view on them
                offset = end
                continue
            if run:
                self._on_data_run(run_id, run)
                run = []
            self._on_frame(head & 0xFF, flags, stream_id & f.MAX_WINDOW, view[offset + 9 : end])
            offset = end
        if run:
            self._on_data_run(run_id, run)
        if offset < size:
            self._keep_rest(view[offset:])

    def _on_frame(self, kind: int, flags: int, stream_id: int, payload: memoryview) -> None:
        if self._block_stream and kind != f.CONTINUATION:
            raise self._fail(ErrorCode.PROTOCOL_ERROR, "header block was interrupted")
        if not self._saw_settings and kind != f.SETTINGS:
            raise self._fail(ErrorCode.PROTOCOL_ERROR, "first frame is not SETTINGS")
        if kind < len(self._handlers):
            self._handlers[kind](flags, stream_id, payload)
        else:
            self._spend(1)  # unknown types are ignored (RFC 9113, section 5.5)

    def _keep_rest(self, rest: memoryview) -> None:
        """Keep the beginning of a frame, or begin to deliver it if it is much DATA."""
        size = len(rest)
        need = f.FRAME_HEADER_BYTES
        if size >= f.FRAME_HEADER_BYTES:
            head, flags, stream_id = _UNPACK(rest, 0)
            length = head >> 8
            need += length
            if head & 0xFF == f.DATA and size >= _PARTIAL_FROM and not self._block_stream:
                stream = self.streams.get(stream_id & f.MAX_WINDOW)
                if stream is not None and not flags & f.FLAG_PADDED:
                    self._begin_body(stream, flags, length)
                    self._more_body(rest[f.FRAME_HEADER_BYTES :])
                    return
        self._rest = [bytes(rest)]
        self._rest_size = size
        self._rest_need = need

    def _take_preface(self, data: bytes | memoryview) -> bytes | memoryview:
        want = self._preface_left
        got = bytes(data[: len(want)])
        if not want.startswith(got):
            raise self._fail(ErrorCode.PROTOCOL_ERROR, "not an HTTP/2 connection")
        self._preface_left = want[len(got) :]
        return data[len(got) :]

    def _spend(self, cost: int) -> None:
        """Charge a frame that costs the peer nothing and us something."""
        self._budget -= cost
        if self._budget < 0:
            now = self._clock()
            refill = (now - self._budget_at) * self.limits.flood_refill_per_s
            self._budget = min(self._budget + refill, self._budget_limit)
            self._budget_at = now
            if self._budget < 0:
                raise self._fail(ErrorCode.ENHANCE_YOUR_CALM, "too many control frames")

    def _stream_error(self, stream: Stream, error_code: ErrorCode) -> None:
        self._control(f.rst_stream(stream.id, error_code))
        self._forget(stream)
        self.events.on_reset(stream, error_code)

    def _is_idle(self, stream_id: int) -> bool:
        ours = bool(stream_id & 1) == self.is_client
        return stream_id >= self._next_id if ours else stream_id > self._last_remote_id

    def _unpad(self, flags: int, payload: memoryview) -> memoryview:
        if not flags & f.FLAG_PADDED:
            return payload
        if len(payload) < 1 or payload[0] > len(payload) - 1:
            raise self._fail(ErrorCode.PROTOCOL_ERROR, "padding is longer than the frame")
        return payload[1 : len(payload) - payload[0]]

    def _on_data(self, flags: int, stream_id: int, payload: bytes | memoryview) -> None:
        """The hot path of every transfer: few calls, few attribute reads."""
        size = len(payload)
        window = self._recv_window - size
        if window < 0:
            raise self._fail(ErrorCode.FLOW_CONTROL_ERROR, "connection window was overrun")
        unacked = self._recv_unacked + size
        if unacked >= self._credit_connection_at:
            window += unacked
            self.out.append(f.window_update(0, unacked))
            unacked = 0
        self._recv_window = window
        self._recv_unacked = unacked
        stream = self.streams.get(stream_id)
        data = self._unpad(flags, memoryview(payload)) if flags & f.FLAG_PADDED else payload
        if stream is None or stream.remote_closed:
            self._data_after_end(stream, stream_id)
            return
        stream.recv_window -= size
        if stream.recv_window < 0:
            self._stream_error(stream, ErrorCode.FLOW_CONTROL_ERROR)
            return
        if data is not payload:
            self.consumed(stream, size - len(data))
        end = flags & f.FLAG_END_STREAM != 0
        if data:
            if self._budget < self._budget_limit:
                self._budget += DATA_REFUND
        elif not end:
            self._spend(1)
        if end:
            self._close_remote(stream)
        self.events.on_data(stream, data, end=end)

    def _on_data_run(self, stream_id: int, run: list[Buffer]) -> None:
        """Take DATA frames without flags as if they were one.

        Peers that send a tree of small files send a frame per file and less; what a frame costs
        here is paid once per read instead. No credit is given in between, so an overrun window
        is an overrun window all the same.
        """
        if self._budget < self._budget_limit:
            self._budget += DATA_REFUND * (len(run) - 1)
        if self._block_stream or not self._saw_settings:
            self._on_frame(f.DATA, 0, stream_id & f.MAX_WINDOW, memoryview(b""))  # refuses it
        self._on_data(0, stream_id & f.MAX_WINDOW, b"".join(run))

    def _begin_body(self, stream: Stream, flags: int, length: int) -> None:
        """Account for a whole DATA frame of which only the beginning is here.

        Its bytes are passed on as they come: putting frames together would copy every byte of
        a transfer whose frames are larger than what one read returns.
        """
        self._body_left = length
        self._body_stream = stream
        self._body_flags = flags
        self._recv_window -= length
        if self._recv_window < 0:
            raise self._fail(ErrorCode.FLOW_CONTROL_ERROR, "connection window was overrun")
        self._recv_unacked += length
        if stream.remote_closed:
            self._stream_error(stream, ErrorCode.STREAM_CLOSED)
            return
        stream.recv_window -= length
        if stream.recv_window < 0:
            self._stream_error(stream, ErrorCode.FLOW_CONTROL_ERROR)

    def _more_body(self, data: memoryview) -> memoryview:
        """Deliver bytes of the DATA frame in progress; return what follows it."""
        piece = data[: self._body_left]
        self._body_left -= len(piece)
        stream = self._body_stream
        if stream is not None and self.streams.get(stream.id) is stream:
            end = self._body_left == 0 and self._body_flags & f.FLAG_END_STREAM != 0
            if self._budget < self._budget_limit:
                self._budget += DATA_REFUND
            if end:
                self._close_remote(stream)
            self.events.on_data(stream, piece, end=end)
        if self._body_left == 0:
            self._body_stream = None
            if self._recv_unacked >= self._credit_connection_at:
                self._recv_window += self._recv_unacked
                self.out.append(f.window_update(0, self._recv_unacked))
                self._recv_unacked = 0
        return data[len(piece) :]

    def _data_after_end(self, stream: Stream | None, stream_id: int) -> None:
        if stream is not None:
            self._stream_error(stream, ErrorCode.STREAM_CLOSED)
            return
        if stream_id == 0 or self._is_idle(stream_id):
            raise self._fail(ErrorCode.PROTOCOL_ERROR, "DATA on an idle stream")
        self._spend(1)

    def _on_headers(self, flags: int, stream_id: int, payload: memoryview) -> None:
        if stream_id == 0:
            raise self._fail(ErrorCode.PROTOCOL_ERROR, "HEADERS on stream 0")
        payload = self._unpad(flags, payload)
        if flags & f.FLAG_PRIORITY:
            if len(payload) < 5:
                raise self._fail(ErrorCode.FRAME_SIZE_ERROR, "HEADERS is too short")
            payload = payload[5:]
        self._block = [bytes(payload)]
        self._block_size = len(payload)
        self._block_stream = stream_id
        self._block_end = bool(flags & f.FLAG_END_STREAM)
        if flags & f.FLAG_END_HEADERS:
            self._end_block()
        elif self._block_size == 0:
            self._spend(1)

    def _on_continuation(self, flags: int, stream_id: int, payload: memoryview) -> None:
        if stream_id == 0 or stream_id != self._block_stream:
            raise self._fail(ErrorCode.PROTOCOL_ERROR, "unexpected CONTINUATION")
        self._spend(1 if len(payload) > _SHORT_CONTINUATION else _COST_RESET)
        self._block.append(bytes(payload))
        self._block_size += len(payload)
        # Compression only shrinks, so a block over the limit of the list is over it too.
        if self._block_size > self.limits.max_header_list:
            raise self._fail(ErrorCode.ENHANCE_YOUR_CALM, "header block is too large")
        if flags & f.FLAG_END_HEADERS:
            self._end_block()

    def _end_block(self) -> None:
        import hpack

        block = self._block[0] if len(self._block) == 1 else b"".join(self._block)
        stream_id, self._block_stream, self._block = self._block_stream, 0, []
        try:
            headers = cast("Headers", self._decoder.decode(block, raw=True))
        except hpack.OversizedHeaderListError:
            raise self._fail(ErrorCode.ENHANCE_YOUR_CALM, "header list is too large") from None
        except hpack.HPACKError:
            raise self._fail(ErrorCode.COMPRESSION_ERROR, "malformed header block") from None
        end = self._block_end
        stream = self.streams.get(stream_id)
        if stream is None:
            stream = self._accept_stream(stream_id)
            if stream is None:
                return
        elif stream.remote_closed:
            self._stream_error(stream, ErrorCode.STREAM_CLOSED)
            return
        elif not self.is_client and not end:
            self._stream_error(stream, ErrorCode.PROTOCOL_ERROR)
            return
        if end:
            self._close_remote(stream)
        self.events.on_headers(stream, headers, end=end)

    def _accept_stream(self, stream_id: int) -> Stream | None:
        if self.is_client or stream_id % 2 == 0:
            if self._is_idle(stream_id):
                raise self._fail(ErrorCode.PROTOCOL_ERROR, "the peer can't open this stream")
            self._spend(1)
            return None
        if stream_id <= self._last_remote_id:
            self._spend(1)
            return None
        self._last_remote_id = stream_id
        if self._sent_goaway or len(self.streams) >= self.limits.max_streams:
            self._spend(_COST_RESET)
            self._control(f.rst_stream(stream_id, ErrorCode.REFUSED_STREAM))
            return None
        stream = Stream(stream_id, self._peer_initial_window, self.limits.stream_window)
        self.streams[stream_id] = stream
        return stream

    def _on_priority(self, flags: int, stream_id: int, payload: memoryview) -> None:
        del flags, stream_id, payload
        self._spend(1)

    def _on_push(self, flags: int, stream_id: int, payload: memoryview) -> None:
        del flags, stream_id, payload
        raise self._fail(ErrorCode.PROTOCOL_ERROR, "push is disabled")

    def _on_rst(self, flags: int, stream_id: int, payload: memoryview) -> None:
        del flags
        if len(payload) != 4:
            raise self._fail(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM is not 4 bytes")
        if stream_id == 0 or self._is_idle(stream_id):
            raise self._fail(ErrorCode.PROTOCOL_ERROR, "RST_STREAM on an idle stream")
        self._spend(_COST_RESET)
        stream = self.streams.get(stream_id)
        if stream is not None:
            self._forget(stream)
            self.events.on_reset(stream, int.from_bytes(payload, "big"))

    def _on_settings(self, flags: int, stream_id: int, payload: memoryview) -> None:
        if stream_id:
            raise self._fail(ErrorCode.PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & f.FLAG_ACK:
            if len(payload):
                raise self._fail(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS ACK has a payload")
            self._spend(1)
            return
        if len(payload) % 6:
            raise self._fail(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS is not a multiple of 6")
        self._saw_settings = True
        self._spend(_COST_SETTINGS + len(payload) // 60)
        for key, value in struct.iter_unpack(">HI", payload):
            self._apply_setting(key, value)
        self._control(f.frame_header(0, f.SETTINGS, f.FLAG_ACK, 0))

    def _apply_setting(self, key: int, value: int) -> None:
        if key == f.SETTING_INITIAL_WINDOW_SIZE:
            if value > f.MAX_WINDOW:
                raise self._fail(ErrorCode.FLOW_CONTROL_ERROR, "initial window is too large")
            delta = value - self._peer_initial_window
            self._peer_initial_window = value
            for stream in self.streams.values():
                self._widen(stream, delta)
        elif key == f.SETTING_MAX_FRAME_SIZE:
            if not f.MIN_MAX_FRAME <= value <= f.MAX_MAX_FRAME:
                raise self._fail(ErrorCode.PROTOCOL_ERROR, "bad maximum frame size")
            self._peer_max_frame = value
        elif key == f.SETTING_MAX_CONCURRENT_STREAMS:
            self.peer_max_streams = value
        elif key == f.SETTING_MAX_HEADER_LIST_SIZE:
            self.peer_max_header_list = value

    def _widen(self, stream: Stream, delta: int) -> None:
        stream.send_window += delta
        if stream.send_window > f.MAX_WINDOW:
            raise self._fail(ErrorCode.FLOW_CONTROL_ERROR, "stream window overflows")
        if stream.queued and stream.send_window > 0 and not stream.in_ready:
            stream.in_ready = True
            self._ready.append(stream)

    def _on_ping(self, flags: int, stream_id: int, payload: memoryview) -> None:
        if stream_id:
            raise self._fail(ErrorCode.PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != 8:
            raise self._fail(ErrorCode.FRAME_SIZE_ERROR, "PING is not 8 bytes")
        self._spend(1)
        if flags & f.FLAG_ACK:
            self.events.on_ping_ack(bytes(payload))
        else:
            self._control(f.ping_frame(bytes(payload), ack=True))

    def _on_goaway(self, flags: int, stream_id: int, payload: memoryview) -> None:
        del flags
        if stream_id or len(payload) < 8:
            raise self._fail(ErrorCode.PROTOCOL_ERROR, "malformed GOAWAY")
        self._spend(_COST_SETTINGS)
        last, error_code = struct.unpack_from(">II", payload)
        self.peer_goaway = last & f.MAX_WINDOW
        self.events.on_goaway(self.peer_goaway, error_code, bytes(payload[8:1032]))

    def _on_window_update(self, flags: int, stream_id: int, payload: memoryview) -> None:
        del flags
        if len(payload) != 4:
            raise self._fail(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE is not 4 bytes")
        increment = int.from_bytes(payload, "big") & f.MAX_WINDOW
        self._spend(1)
        if stream_id == 0:
            self._send_window += increment
            if not increment or self._send_window > f.MAX_WINDOW:
                raise self._fail(ErrorCode.FLOW_CONTROL_ERROR, "bad connection window")
            return
        stream = self.streams.get(stream_id)
        if stream is None:
            if self._is_idle(stream_id):
                raise self._fail(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE on an idle stream")
            return
        if not increment:
            self._stream_error(stream, ErrorCode.PROTOCOL_ERROR)
            return
        self._widen(stream, increment)
