"""However the bytes of a connection are cut on their way, the same messages arrive."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from boxwright.wire import frames as f
from boxwright.wire import methods as m
from boxwright.wire.bytestream import Peer
from boxwright.wire.pb import control_pb2
from boxwright.wire.server import Server
from boxwright.wire.tunnel import MessageTunnel

SIZES = st.lists(
    st.one_of(st.integers(0, 40), st.integers(2000, 3000), st.integers(0, 60_000)), max_size=8
)
CUTS = st.lists(st.integers(1, 50_000), min_size=1, max_size=30)
FRAMES = st.lists(st.integers(1, 20_000) | st.integers(1, 200), min_size=1, max_size=10)
SMALL_SIZES = st.lists(st.integers(0, 300), max_size=60)
PINGS = st.lists(st.booleans(), min_size=1, max_size=4)
FORMS = st.lists(
    st.sampled_from(
        ("plain", "unknown field before", "unknown field behind", "length with leading zero")
    ),
    min_size=1,
    max_size=4,
)

REQUEST = f.encode_headers(
    [
        (b":method", b"POST"),
        (b":path", m.CONTROL_SESSION.path.encode()),
        (b":scheme", b"http"),
        (b"content-type", b"application/grpc"),
    ]
)


class FedStream:
    """A byte stream that a test feeds; what is written goes nowhere."""

    peer = Peer("memory")

    def start(self, sink):
        self.sink = sink

    def write(self, buffers):
        pass

    def close(self):
        self.sink.bytes_ended(None)

    abort = close


class Collector:
    """The inner end of a tunnel: keeps the bytes."""

    def __init__(self):
        self.data = b""

    def bytes_received(self, data):
        self.data += bytes(data)

    def bytes_ended(self, error):
        pass

    def pause_writing(self):
        pass

    def resume_writing(self):
        pass


def pieces(data, sizes):
    """Cut ``data`` into pieces of ``sizes``, over and over."""
    offset = index = 0
    while offset < len(data):
        size = sizes[index % len(sizes)]
        yield data[offset : offset + size]
        offset += size
        index += 1


def encoded(body, form):
    """Encode a BytesMessage in one of the forms that mean the same."""
    plain = control_pb2.BytesMessage(data=body).SerializeToString()
    if form == "unknown field before":
        return b"\x50\x01" + plain
    if form == "unknown field behind":
        return plain + b"\x50\x01"
    if form == "length with leading zero" and 0 < len(body) < 128:
        return bytes((0x0A, len(body) | 0x80, 0)) + body
    return plain


def conversation(sizes, frame_sizes, *, forms=("plain",), pings=(True,)):
    bodies = [bytes([65 + index % 150]) * size for index, size in enumerate(sizes)]
    packed = [encoded(body, forms[index % len(forms)]) for index, body in enumerate(bodies)]
    stream = b"".join(b"\0" + len(item).to_bytes(4, "big") + item for item in packed)
    out = [f.PREFACE, f.settings_frame([]), f.header_frames(1, REQUEST, 16384, end_stream=False)]
    for index, piece in enumerate(pieces(stream, frame_sizes)):
        out += [f.frame_header(len(piece), f.DATA, 0, 1), piece]
        if pings[index % len(pings)]:
            out.append(f.ping_frame(b"12345678", ack=False))
    out.append(f.frame_header(0, f.DATA, f.FLAG_END_STREAM, 1))
    return bodies, b"".join(out)


async def deliver(data, cuts, handler):
    server = Server()
    server.add(m.CONTROL_SESSION, handler)
    stream = FedStream()
    serving = asyncio.ensure_future(server.serve_over(stream))
    await asyncio.sleep(0)
    for piece in pieces(data, cuts):
        stream.sink.bytes_received(piece)
        await asyncio.sleep(0)
    return stream, serving


@settings(deadline=None, max_examples=60)
@given(SMALL_SIZES | SIZES, FRAMES, CUTS, PINGS)
def test_messages_arrive_whole_and_in_order(sizes, frame_sizes, cuts, pings):
    bodies, data = conversation(sizes, frame_sizes, pings=pings)

    async def main():
        done = asyncio.get_running_loop().create_future()

        async def handler(stream, ctx):
            done.set_result([message.data async for message in stream])

        stream, serving = await deliver(data, cuts, handler)
        assert await asyncio.wait_for(done, 120) == bodies
        stream.close()
        await serving

    asyncio.run(main())


@settings(deadline=None, max_examples=60)
@given(SMALL_SIZES | SIZES, FRAMES, CUTS, FORMS, PINGS)
def test_tunnelled_bytes_arrive_complete(sizes, frame_sizes, cuts, forms, pings):
    bodies, data = conversation(sizes, frame_sizes, forms=forms, pings=pings)

    async def main():
        collector = Collector()
        ended = asyncio.Event()

        async def handler(stream, ctx):
            tunnel = MessageTunnel(stream)
            tunnel.start(collector)
            await tunnel.wait_closed()
            ended.set()

        stream, serving = await deliver(data, cuts, handler)
        await asyncio.wait_for(ended.wait(), 120)
        assert collector.data == b"".join(bodies)
        stream.close()
        await serving

    asyncio.run(main())
