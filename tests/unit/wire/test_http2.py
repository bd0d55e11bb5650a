# ruff: noqa: PT012 - floods are loops
"""The HTTP/2 state machine against well-behaved and hostile peers, without I/O."""

from __future__ import annotations

import struct

import hpack
import pytest

from boxwright.wire import frames as f
from boxwright.wire.frames import ErrorCode, Http2Limits
from boxwright.wire.http2 import Http2
from boxwright.wire.http2send import Http2Error, Stream

REQUEST = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/a.B/C"),
    (b":authority", b"x"),
    (b"content-type", b"application/grpc"),
]


class Recorder:
    def __init__(self):
        self.headers, self.data, self.resets, self.ends = [], {}, [], []
        self.drained, self.goaways, self.acks = [], [], []
        self.streams = {}

    def on_headers(self, stream, headers, *, end):
        self.streams[stream.id] = stream
        self.headers.append((stream.id, [(bytes(n), bytes(v)) for n, v in headers]))
        if end:
            self.ends.append(stream.id)

    def on_data(self, stream, data, *, end):
        self.data[stream.id] = self.data.get(stream.id, b"") + bytes(data)
        if end:
            self.ends.append(stream.id)

    def on_reset(self, stream, error_code):
        self.resets.append((stream.id, error_code))

    def on_drained(self, stream):
        self.drained.append(stream.id)

    def on_goaway(self, last_stream_id, error_code, debug):
        self.goaways.append((last_stream_id, error_code, debug))

    def on_ping_ack(self, payload):
        self.acks.append(payload)


def output(h2: Http2) -> bytes:
    h2.pump(1 << 30)
    return b"".join(h2.take_output())


def frames_of(data: bytes) -> list[tuple[int, int, int, bytes]]:
    out = []
    while data:
        size = int.from_bytes(data[:3], "big")
        out.append((data[3], data[4], int.from_bytes(data[5:9], "big"), data[9 : 9 + size]))
        data = data[9 + size :]
    return out


def server(limits: Http2Limits | None = None, now=lambda: 0.0) -> tuple[Http2, Recorder]:
    events = Recorder()
    h2 = Http2(events, is_client=False, limits=limits, clock=now)
    h2.start()
    h2.take_output()
    h2.receive(f.PREFACE + f.settings_frame([]))
    h2.take_output()
    return h2, events


def pair() -> tuple[Http2, Recorder, Http2, Recorder]:
    client_events, server_events = Recorder(), Recorder()
    client = Http2(client_events, is_client=True)
    peer = Http2(server_events, is_client=False)
    client.start()
    peer.start()
    exchange(client, peer)
    return client, client_events, peer, server_events


def exchange(left: Http2, right: Http2) -> None:
    while True:
        there, back = output(left), output(right)
        if not there and not back:
            return
        if there:
            right.receive(there)
        if back:
            left.receive(back)


def request_frame(stream_id: int, *, end: bool = False) -> bytes:
    return f.header_frames(stream_id, f.encode_headers(REQUEST), 16384, end_stream=end)


def data_frame(stream_id: int, data: bytes, flags: int = 0) -> bytes:
    return f.frame_header(len(data), f.DATA, flags, stream_id) + data


def expect_connection_error(h2: Http2, data: bytes, code: ErrorCode) -> None:
    with pytest.raises(Http2Error) as caught:
        h2.receive(data)
    assert caught.value.error_code is code
    kind, _, _, payload = frames_of(b"".join(h2.take_output()))[-1]
    assert kind == f.GOAWAY
    assert int.from_bytes(payload[4:8], "big") == code


def test_request_and_response_pass_both_ways():
    client, client_events, peer, server_events = pair()
    stream = client.open_stream(REQUEST, end=False)
    client.send_data(stream, b"hello")
    client.end_stream(stream, None)
    exchange(client, peer)
    assert server_events.headers == [(1, REQUEST)]
    assert server_events.data == {1: b"hello"}
    assert server_events.ends == [1]
    answer = server_events.streams[1]
    peer.send_headers(answer, [(b":status", b"200")], end=False)
    peer.send_data(answer, b"world")
    peer.end_stream(answer, [(b"grpc-status", b"0")])
    exchange(client, peer)
    assert client_events.data == {1: b"world"}
    assert client_events.headers[-1] == (1, [(b"grpc-status", b"0")])
    assert not client.streams
    assert not peer.streams


def test_input_may_be_cut_anywhere():
    whole = f.PREFACE + f.settings_frame([(4, 70000)]) + request_frame(1) + data_frame(1, b"abc")
    events = Recorder()
    h2 = Http2(events, is_client=False)
    for index in range(len(whole)):
        h2.receive(whole[index : index + 1])
    assert events.headers == [(1, REQUEST)]
    assert events.data == {1: b"abc"}


def test_large_header_block_travels_in_continuations():
    client, _, peer, events = pair()
    big = (b"x-big", b"v" * 100_000)
    client.open_stream([*REQUEST, big], end=True)
    exchange(client, peer)
    assert events.headers[0][1][-1] == big


def test_peers_dynamic_table_and_huffman_are_understood():
    h2, events = server()
    encoder = hpack.Encoder()
    for stream_id in (1, 3, 5):
        block = encoder.encode(REQUEST, huffman=True)
        h2.receive(f.header_frames(stream_id, block, 16384, end_stream=True))
    assert [headers for _, headers in events.headers] == [REQUEST] * 3


def test_sender_respects_stream_and_connection_windows():
    client, _, peer, events = pair()
    peer_stream_window = peer.limits.stream_window
    stream = client.open_stream(REQUEST, end=False)
    client.send_data(stream, b"x" * (peer_stream_window + 1))
    exchange(client, peer)
    assert len(events.data[1]) == peer_stream_window
    assert stream.queued == 1
    peer.consumed(events.streams[1], peer_stream_window)
    exchange(client, peer)
    assert len(events.data[1]) == peer_stream_window + 1


def test_stuck_stream_does_not_stop_another():
    client, _, peer, events = pair()
    stuck = client.open_stream(REQUEST, end=False)
    client.send_data(stuck, b"x" * (peer.limits.stream_window * 2))
    exchange(client, peer)
    other = client.open_stream(REQUEST, end=False)
    client.send_data(other, b"y" * 1000)
    exchange(client, peer)
    assert events.data[other.id] == b"y" * 1000


def test_streams_take_turns():
    client, _, _, _ = pair()
    first = client.open_stream(REQUEST, end=False)
    second = client.open_stream(REQUEST, end=False)
    client.send_data(first, b"x" * 1_000_000)
    client.send_data(second, b"y" * 10)
    client.take_output()
    client.pump(600_000)
    order = [s for kind, _, s, _ in frames_of(b"".join(client.take_output())) if kind == f.DATA]
    assert order.index(second.id) == 1


def test_message_larger_than_window_gets_credit():
    client, _, peer, events = pair()
    stream = client.open_stream(REQUEST, end=False)
    size = peer.limits.stream_window * 3
    client.send_data(stream, b"x" * size)
    exchange(client, peer)
    peer.expect(events.streams[1], size - len(events.data[1]))
    exchange(client, peer)
    assert len(events.data[1]) == size
    peer.consumed(events.streams[1], size)
    exchange(client, peer)
    assert events.streams[1].recv_window <= peer.limits.stream_window


def test_trailers_wait_for_queued_data_but_need_no_window():
    client, client_events, peer, events = pair()
    client.open_stream(REQUEST, end=True)
    exchange(client, peer)
    stream = events.streams[1]
    peer._send_window = 0  # the connection window is used up
    peer.end_stream(stream, [(b"grpc-status", b"0")])
    exchange(client, peer)
    assert client_events.ends == [1]


def test_drained_is_told_once():
    client, client_events, peer, _ = pair()
    stream = client.open_stream(REQUEST, end=False)
    client.send_data(stream, b"x" * 500_000)
    stream.low_water = 1000
    exchange(client, peer)
    assert client_events.drained == [1]


def test_initial_window_change_moves_open_streams():
    client, _, peer, events = pair()
    stream = client.open_stream(REQUEST, end=False)
    client.receive(f.settings_frame([(f.SETTING_INITIAL_WINDOW_SIZE, 10)]))
    client.send_data(stream, b"x" * 20)
    exchange(client, peer)
    assert len(events.data[1]) == 10
    client.receive(f.settings_frame([(f.SETTING_INITIAL_WINDOW_SIZE, 20)]))
    exchange(client, peer)
    assert len(events.data[1]) == 20


def test_ping_is_answered_with_its_payload():
    h2, _ = server()
    h2.receive(f.ping_frame(b"12345678", ack=False))
    assert frames_of(output(h2)) == [(f.PING, f.FLAG_ACK, 0, b"12345678")]


def test_padding_is_removed_and_credited():
    h2, events = server()
    payload = bytes([3]) + b"data" + b"\0\0\0"
    h2.receive(request_frame(1) + data_frame(1, payload, f.FLAG_PADDED))
    assert events.data == {1: b"data"}
    assert events.streams[1].recv_unacked == 4


def test_frames_of_a_stream_reset_here_are_ignored_but_counted():
    h2, events = server()
    h2.receive(request_frame(1))
    h2.reset(events.streams[1], ErrorCode.CANCEL)
    before = h2._recv_window
    h2.receive(data_frame(1, b"late"))
    assert events.data == {}
    assert h2._recv_window == before - 4


def test_too_many_streams_are_refused_and_headers_stay_in_step():
    h2, events = server(Http2Limits(max_streams=1))
    encoder = hpack.Encoder()
    h2.receive(f.header_frames(1, encoder.encode(REQUEST), 16384, end_stream=False))
    h2.receive(f.header_frames(3, encoder.encode(REQUEST), 16384, end_stream=False))
    kind, _, stream_id, payload = frames_of(output(h2))[-1]
    assert (kind, stream_id) == (f.RST_STREAM, 3)
    assert int.from_bytes(payload, "big") == ErrorCode.REFUSED_STREAM
    h2.receive(f.rst_stream(1, ErrorCode.CANCEL))
    h2.receive(f.header_frames(5, encoder.encode(REQUEST), 16384, end_stream=False))
    assert events.headers[-1] == (5, REQUEST)


def test_goaway_is_reported_and_stops_new_streams():
    client, events, peer, _ = pair()
    client.open_stream(REQUEST, end=True)
    exchange(client, peer)
    peer.goaway(debug=b"bye")
    exchange(client, peer)
    assert events.goaways == [(1, 0, b"bye")]
    assert not client.can_open()


def test_unknown_frame_types_are_ignored():
    h2, events = server()
    h2.receive(f.frame_header(3, 200, 0xFF, 0) + b"abc" + request_frame(1))
    assert len(events.headers) == 1


CONNECTION_ERRORS = {
    "http1": (b"GET / HTTP/1.1\r\n", None),
    "oversized": (f.frame_header(1 << 20, f.DATA, 0, 1), ErrorCode.FRAME_SIZE_ERROR),
    "data-idle": (data_frame(1, b"x"), ErrorCode.PROTOCOL_ERROR),
    "data-zero": (data_frame(0, b"x"), ErrorCode.PROTOCOL_ERROR),
    "headers-zero": (request_frame(0), ErrorCode.PROTOCOL_ERROR),
    "headers-even": (request_frame(2), ErrorCode.PROTOCOL_ERROR),
    "rst-idle": (f.rst_stream(7, 0), ErrorCode.PROTOCOL_ERROR),
    "rst-size": (f.frame_header(3, f.RST_STREAM, 0, 1) + b"abc", ErrorCode.FRAME_SIZE_ERROR),
    "settings-stream": (f.frame_header(0, f.SETTINGS, 0, 1), ErrorCode.PROTOCOL_ERROR),
    "settings-size": (f.frame_header(5, f.SETTINGS, 0, 0) + b"12345", ErrorCode.FRAME_SIZE_ERROR),
    "settings-ack-size": (
        f.frame_header(6, f.SETTINGS, f.FLAG_ACK, 0) + b"123456",
        ErrorCode.FRAME_SIZE_ERROR,
    ),
    "settings-window": (f.settings_frame([(4, 1 << 31)]), ErrorCode.FLOW_CONTROL_ERROR),
    "settings-frame": (f.settings_frame([(5, 100)]), ErrorCode.PROTOCOL_ERROR),
    "ping-size": (f.frame_header(7, f.PING, 0, 0) + b"1234567", ErrorCode.FRAME_SIZE_ERROR),
    "ping-stream": (f.frame_header(8, f.PING, 0, 1) + b"12345678", ErrorCode.PROTOCOL_ERROR),
    "push": (f.frame_header(4, f.PUSH_PROMISE, 4, 1) + b"\0\0\0\2", ErrorCode.PROTOCOL_ERROR),
    "goaway-short": (f.frame_header(4, f.GOAWAY, 0, 0) + b"abcd", ErrorCode.PROTOCOL_ERROR),
    "window-size": (f.frame_header(3, f.WINDOW_UPDATE, 0, 0) + b"abc", ErrorCode.FRAME_SIZE_ERROR),
    "window-zero": (f.window_update(0, 0), ErrorCode.FLOW_CONTROL_ERROR),
    "window-overflow": (f.window_update(0, f.MAX_WINDOW), ErrorCode.FLOW_CONTROL_ERROR),
    "window-idle": (f.window_update(9, 1), ErrorCode.PROTOCOL_ERROR),
    "continuation": (
        f.frame_header(1, f.CONTINUATION, 4, 1) + b"\x88",
        ErrorCode.PROTOCOL_ERROR,
    ),
    "interrupted-block": (
        f.frame_header(1, f.HEADERS, 0, 1) + b"\x83" + f.ping_frame(b"12345678", ack=False),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "hpack": (
        f.frame_header(2, f.HEADERS, 4, 1) + b"\xff\xff",
        ErrorCode.COMPRESSION_ERROR,
    ),
    "padding": (
        request_frame(1) + data_frame(1, b"\x09abc", f.FLAG_PADDED),
        ErrorCode.PROTOCOL_ERROR,
    ),
}


@pytest.mark.parametrize("case", [name for name in CONNECTION_ERRORS if name != "http1"])
def test_protocol_violations_end_the_connection(case):
    data, code = CONNECTION_ERRORS[case]
    h2, _ = server()
    expect_connection_error(h2, data, code)


def test_http1_is_refused():
    h2 = Http2(Recorder(), is_client=False)
    expect_connection_error(h2, b"GET / HTTP/1.1\r\n", ErrorCode.PROTOCOL_ERROR)


def test_first_frame_must_be_settings():
    h2 = Http2(Recorder(), is_client=False)
    expect_connection_error(
        h2, f.PREFACE + f.ping_frame(b"12345678", ack=False), ErrorCode.PROTOCOL_ERROR
    )


def test_data_after_end_resets_the_stream_only():
    h2, events = server()
    h2.receive(request_frame(1, end=True) + data_frame(1, b"x"))
    assert events.resets == [(1, ErrorCode.STREAM_CLOSED)]
    h2.receive(request_frame(3, end=True))
    assert events.headers[-1][0] == 3


def test_stream_window_overrun_resets_the_stream():
    h2, events = server(Http2Limits(stream_window=10))
    h2.receive(request_frame(1) + data_frame(1, b"x" * 11))
    assert events.resets == [(1, ErrorCode.FLOW_CONTROL_ERROR)]


def test_connection_window_overrun_ends_the_connection():
    limits = Http2Limits(stream_window=1 << 20, connection_window=70_000, max_frame=80_000)
    h2, _ = server(limits)
    h2.receive(request_frame(1))
    expect_connection_error(h2, data_frame(1, b"x" * 70_001), ErrorCode.FLOW_CONTROL_ERROR)


@pytest.mark.parametrize(
    "flood",
    [
        f.settings_frame([]),
        f.frame_header(0, f.SETTINGS, f.FLAG_ACK, 0),
        f.ping_frame(b"12345678", ack=False),
        f.frame_header(5, f.PRIORITY, 0, 1) + b"12345",
        f.frame_header(0, 77, 0, 0),
        f.window_update(0, 1),
        f.goaway_frame(0, 0),
    ],
    ids=["settings", "settings-ack", "ping", "priority", "unknown", "window", "goaway"],
)
def test_floods_end_the_connection(flood):
    h2, _ = server()
    with pytest.raises(Http2Error) as caught:
        for _ in range(30_000):
            h2.receive(flood)
            h2.take_output()
    assert caught.value.error_code is ErrorCode.ENHANCE_YOUR_CALM


def test_rapid_reset_ends_the_connection():
    h2, events = server()
    with pytest.raises(Http2Error) as caught:
        for stream_id in range(1, 40_000, 2):
            h2.receive(request_frame(stream_id) + f.rst_stream(stream_id, ErrorCode.CANCEL))
            h2.take_output()
    assert caught.value.error_code is ErrorCode.ENHANCE_YOUR_CALM
    assert len(events.resets) <= 1001


def test_empty_data_frames_are_a_flood_too():
    h2, _ = server()
    h2.receive(request_frame(1))
    with pytest.raises(Http2Error):
        for _ in range(30_000):
            h2.receive(data_frame(1, b""))


def test_flood_budget_comes_back_with_time():
    now = [0.0]
    h2, _ = server(now=lambda: now[0])
    for _ in range(50_000):
        now[0] += 0.001
        h2.receive(f.ping_frame(b"12345678", ack=False))
        h2.take_output()


def test_unread_answers_end_the_connection():
    h2, _ = server(Http2Limits(max_unsent_control=1000))
    with pytest.raises(Http2Error):
        for _ in range(100):
            h2.receive(f.ping_frame(b"12345678", ack=False))


def test_continuation_flood_ends_the_connection():
    h2, _ = server()
    h2.receive(f.frame_header(1, f.HEADERS, 0, 1) + b"\x83")
    with pytest.raises(Http2Error) as caught:
        for _ in range(30_000):
            h2.receive(f.frame_header(1, f.CONTINUATION, 0, 1) + b"\x83")
    assert caught.value.error_code is ErrorCode.ENHANCE_YOUR_CALM


def test_huge_header_block_ends_the_connection():
    h2, _ = server(Http2Limits(max_header_list=20_000))
    frame = f.frame_header(16_000, f.CONTINUATION, 0, 1) + b"\0" * 16_000
    h2.receive(f.frame_header(1, f.HEADERS, 0, 1) + b"\x83")
    with pytest.raises(Http2Error):
        for _ in range(3):
            h2.receive(frame)


def test_header_bomb_ends_the_connection():
    """Few bytes that index one large dynamic-table entry many times."""
    h2, _ = server(Http2Limits(max_header_list=100_000))
    entry = b"\x40" + bytes([1]) + b"a" + b"\x7f" + b"\x81\x1e" + b"v" * 4000
    with pytest.raises(Http2Error) as caught:
        block = entry + b"\xbe" * 1000
        h2.receive(f.frame_header(len(block), f.HEADERS, 4, 1) + block)
    assert caught.value.error_code in {
        ErrorCode.ENHANCE_YOUR_CALM,
        ErrorCode.COMPRESSION_ERROR,
    }


def test_stream_object_is_forgotten_after_reset():
    h2, events = server()
    h2.receive(request_frame(1))
    stream = events.streams[1]
    assert isinstance(stream, Stream)
    h2.send_data(stream, b"x" * 100)
    h2.reset(stream, ErrorCode.CANCEL)
    output(h2)
    assert stream.queued == 0
    assert not h2.has_sendable()
    assert struct.calcsize(">HBBBI") == f.FRAME_HEADER_BYTES
