"""The sending half of an HTTP/2 connection: streams, queues, windows, fairness (no I/O).

Control frames are queued at once; DATA waits in its stream's queue and is moved to ``out`` by
:meth:`SendSide.pump` in turns, as windows allow, so a large transfer on one stream never
delays another by more than one frame.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, Protocol

from boxwright.errors import BoxwrightError, Code
from boxwright.wire import frames as f
from boxwright.wire.frames import ErrorCode, Http2Limits

Buffer = bytes | bytearray | memoryview
Headers = list[tuple[bytes, bytes]]

DATA_REFUND: Final = 2
MAX_STREAMS_UNKNOWN: Final = 100  # until the peer's SETTINGS arrive
_REFUND_SHIFT: Final = 9  # one more for every 512 bytes that were sent
_JOIN_BELOW: Final = 4096


class Http2Error(BoxwrightError):
    """The peer broke the protocol, or a limit; the whole connection ends.

    Args:
        error_code: what the GOAWAY frame carries.
        reason: short English text, also sent as the frame's debug data.
    """

    code = Code.UNAVAILABLE

    def __init__(self, error_code: ErrorCode, reason: str) -> None:
        super().__init__(f"HTTP/2 connection failed: {reason}", detail=error_code.name)
        self.error_code = error_code
        self.reason = reason


class Http2Events(Protocol):
    """What the owner of a connection is told. Called from inside receive() and pump()."""

    def on_headers(self, stream: Stream, headers: Headers, *, end: bool) -> None:
        """A request, response or trailers; ``end`` closes the peer's side."""

    def on_data(self, stream: Stream, data: bytes | memoryview, *, end: bool) -> None:
        """Bytes of a stream: part of a frame, or several small ones; ``end`` with the last."""

    def on_reset(self, stream: Stream, error_code: int) -> None:
        """The peer, or a stream error seen here, ended the stream at once."""

    def on_drained(self, stream: Stream) -> None:
        """The send queue of a stream fell below its low-water mark."""

    def on_goaway(self, last_stream_id: int, error_code: int, debug: bytes) -> None:
        """The peer takes no streams above ``last_stream_id``."""

    def on_ping_ack(self, payload: bytes) -> None:
        """The answer to a ping of ours."""


class Stream:
    """State of one HTTP/2 stream; ``owner`` belongs to the layer above."""

    __slots__ = (
        "end_queued",
        "id",
        "in_ready",
        "local_closed",
        "low_water",
        "owner",
        "prepaid",
        "queue",
        "queued",
        "recv_unacked",
        "recv_window",
        "remote_closed",
        "send_window",
        "trailers",
    )

    def __init__(self, stream_id: int, send_window: int, recv_window: int) -> None:
        self.id = stream_id
        self.send_window = send_window
        self.recv_window = recv_window
        self.recv_unacked = 0
        self.prepaid = 0  # credit given before its bytes were taken, see expect()
        self.queue: deque[Buffer] = deque()
        self.queued = 0
        self.low_water = 0
        self.end_queued = False
        self.trailers: bytes | None = None
        self.in_ready = False
        self.local_closed = False
        self.remote_closed = False
        self.owner: object = None


class SendSide:
    """What a connection sends, and the streams that it sends on."""

    def __init__(self, events: Http2Events, limits: Http2Limits, *, is_client: bool) -> None:
        self.events = events
        self.is_client = is_client
        self.limits = limits
        self.out: list[Buffer] = []
        self.streams: dict[int, Stream] = {}
        self.peer_max_streams = MAX_STREAMS_UNKNOWN
        self.peer_max_header_list = 1 << 24
        self.peer_goaway: int | None = None
        self._next_id = 1 if is_client else 2
        self._last_remote_id = 0
        self._send_window = f.DEFAULT_WINDOW
        self._peer_initial_window = f.DEFAULT_WINDOW
        self._peer_max_frame = f.MIN_MAX_FRAME
        self._ready: deque[Stream] = deque()
        self._credit_stream_at = max(1, limits.stream_window // 2)
        self._budget = self._budget_limit = float(limits.flood_budget)
        self._sent_goaway = False
        self._unsent_control = 0

    def start(self) -> None:
        """Queue the preface (client) and our SETTINGS."""
        limits = self.limits
        values = [
            (f.SETTING_INITIAL_WINDOW_SIZE, limits.stream_window),
            (f.SETTING_MAX_FRAME_SIZE, limits.max_frame),
            (f.SETTING_MAX_HEADER_LIST_SIZE, limits.max_header_list),
        ]
        if self.is_client:
            self.out.append(f.PREFACE)
            values.append((f.SETTING_ENABLE_PUSH, 0))
        else:
            values.append((f.SETTING_MAX_CONCURRENT_STREAMS, limits.max_streams))
        self.out.append(f.settings_frame(values))
        extra = limits.connection_window - f.DEFAULT_WINDOW
        if extra > 0:
            self.out.append(f.window_update(0, extra))

    def take_output(self) -> list[Buffer]:
        """Return what must be written, in order, and forget it."""
        out, self.out = self.out, []
        self._unsent_control = 0
        return out

    def open_stream(self, headers: Sequence[tuple[bytes, bytes]], *, end: bool) -> Stream:
        """Start a request (client role)."""
        stream = Stream(self._next_id, self._peer_initial_window, self.limits.stream_window)
        self._next_id += 2
        self.streams[stream.id] = stream
        self.send_headers(stream, headers, end=end)
        return stream

    def can_open(self) -> bool:
        """Whether the peer's limits and GOAWAY allow one more stream of ours."""
        return (
            self.peer_goaway is None
            and not self._sent_goaway
            and len(self.streams) < self.peer_max_streams
            and self._next_id < f.MAX_WINDOW
        )

    def send_headers(
        self, stream: Stream, headers: Sequence[tuple[bytes, bytes]], *, end: bool
    ) -> None:
        """Queue a header block before any DATA of the stream."""
        self.send_block(stream, f.encode_headers(headers), end=end)

    def send_block(self, stream: Stream, block: bytes, *, end: bool) -> None:
        """Queue an encoded header block; ``end`` closes our side."""
        if stream.local_closed:
            return
        self.out.append(f.header_frames(stream.id, block, self._peer_max_frame, end_stream=end))
        if end:
            self._close_local(stream)

    def send_data(self, stream: Stream, data: Buffer) -> None:
        """Queue bytes; :meth:`pump` sends them as windows allow. Empty data is dropped."""
        size = len(data)
        if size == 0 or stream.local_closed or stream.end_queued:
            return
        stream.queue.append(data)
        stream.queued += size
        if not stream.in_ready:
            stream.in_ready = True
            self._ready.append(stream)

    def end_stream(self, stream: Stream, trailers: Sequence[tuple[bytes, bytes]] | None) -> None:
        """Close our side after what is queued, with trailers if given."""
        if stream.local_closed or stream.end_queued:
            return
        stream.end_queued = True
        stream.trailers = None if trailers is None else f.encode_headers(trailers)
        if not stream.in_ready:
            stream.in_ready = True
            self._ready.append(stream)

    def reset(self, stream: Stream, error_code: int) -> None:
        """End a stream at once in both directions and forget it."""
        if self.streams.get(stream.id) is not stream:
            return
        self.out.append(f.rst_stream(stream.id, error_code))
        self._forget(stream)

    def consumed(self, stream: Stream, size: int) -> None:
        """Give the peer credit for bytes that the application took from ``stream``."""
        if stream.prepaid:
            paid = min(stream.prepaid, size)
            stream.prepaid -= paid
            size -= paid
        stream.recv_unacked += size
        if stream.recv_unacked >= self._credit_stream_at and not stream.remote_closed:
            self._credit(stream, stream.recv_unacked)
            stream.recv_unacked = 0

    def expect(self, stream: Stream, size: int) -> None:
        """Make sure that ``size`` further bytes of one message can arrive.

        A message larger than the window would wait for ever: the application takes it, and
        so gives credit, only when it is whole.
        """
        missing = size - stream.recv_window
        if missing > 0 and not stream.remote_closed:
            stream.prepaid += missing
            self._credit(stream, missing)

    def ping(self, payload: bytes) -> None:
        """Queue a PING; the answer is :meth:`Http2Events.on_ping_ack`."""
        self.out.append(f.ping_frame(payload, ack=False))

    def goaway(self, error_code: ErrorCode = ErrorCode.NO_ERROR, debug: bytes = b"") -> None:
        """Tell the peer that no further streams are taken."""
        self._sent_goaway = True
        self.out.append(f.goaway_frame(self._last_remote_id, error_code, debug[:512]))

    def pump(self, budget: int) -> None:
        """Move up to about ``budget`` bytes of queued DATA to ``out``, streams in turns."""
        ready = self._ready
        for _ in range(len(ready)):  # streams that could only end don't wait for the window
            if self._send_window > 0 and budget > 0:
                break
            stream = ready.popleft()
            if stream.queued == 0:
                self._finish(stream)
            else:
                ready.append(stream)
        while ready and budget > 0 and self._send_window > 0:
            stream = ready.popleft()
            size = min(stream.queued, stream.send_window, self._send_window, self._peer_max_frame)
            if size > 0:
                budget -= size
                self._data_frame(stream, size)
            if stream.queued == 0:
                self._finish(stream)
            elif stream.send_window > 0:
                ready.append(stream)
            else:
                stream.in_ready = False
            if stream.low_water and stream.queued < stream.low_water:
                stream.low_water = 0
                self.events.on_drained(stream)

    def has_sendable(self) -> bool:
        """Whether another :meth:`pump` would make progress."""
        return bool(self._ready) and (
            self._send_window > 0 or any(stream.queued == 0 for stream in self._ready)
        )

    def _data_frame(self, stream: Stream, size: int) -> None:
        queue = stream.queue
        parts: list[Buffer] = []
        left = size
        while left:
            head = queue[0]
            length = len(head)
            if length <= left:
                parts.append(queue.popleft())
                left -= length
            else:
                view = memoryview(head)
                parts.append(view[:left])
                queue[0] = view[left:]
                left = 0
        stream.queued -= size
        stream.send_window -= size
        self._send_window -= size
        end = stream.end_queued and stream.queued == 0 and stream.trailers is None
        header = f.frame_header(size, f.DATA, f.FLAG_END_STREAM if end else 0, stream.id)
        if len(parts) > 2 or size < _JOIN_BELOW:
            self.out.append(b"".join((header, *parts)))
        else:
            self.out.append(header)
            self.out += parts
        # Peers answer data with window updates, some with two for every few KiB that they read
        # (Go's own server does): what we send pays for them.
        if self._budget < self._budget_limit:
            self._budget += DATA_REFUND * 2 + (size >> _REFUND_SHIFT)
        if end:
            stream.end_queued = False
            self._close_local(stream)

    def _finish(self, stream: Stream) -> None:
        stream.in_ready = False
        if not stream.end_queued or stream.local_closed:
            return
        stream.end_queued = False
        if stream.trailers is not None:
            self.send_block(stream, stream.trailers, end=True)
        else:
            self.out.append(f.frame_header(0, f.DATA, f.FLAG_END_STREAM, stream.id))
            self._close_local(stream)

    def _control(self, frame: bytes) -> None:
        """Queue a frame that the peer provoked; refuse a peer that never reads them."""
        self.out.append(frame)
        self._unsent_control += len(frame)
        if self._unsent_control > self.limits.max_unsent_control:
            raise self._fail(ErrorCode.ENHANCE_YOUR_CALM, "answers are not being read")

    def _credit(self, stream: Stream, size: int) -> None:
        stream.recv_window += size
        self.out.append(f.window_update(stream.id, size))

    def _close_local(self, stream: Stream) -> None:
        stream.local_closed = True
        if stream.remote_closed:
            self._forget(stream)

    def _close_remote(self, stream: Stream) -> None:
        stream.remote_closed = True
        if stream.local_closed:
            self._forget(stream)

    def _forget(self, stream: Stream) -> None:
        self.streams.pop(stream.id, None)
        stream.local_closed = stream.remote_closed = True
        stream.queue.clear()
        stream.queued = 0
        stream.end_queued = False

    def _fail(self, error_code: ErrorCode, reason: str) -> Http2Error:
        self.goaway(error_code, reason.encode())
        return Http2Error(error_code, reason)
