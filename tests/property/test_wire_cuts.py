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
FRAMES = st.lists(st.integers(1, 20_000), min_size=1, max_size=10)

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


def conversation(sizes, frame_sizes):
    bodies = [bytes([65 + index]) * size for index, size in enumerate(sizes)]
    packed = [control_pb2.BytesMessage(data=body).SerializeToString() for body in bodies]
    stream = b"".join(b"\0" + len(item).to_bytes(4, "big") + item for item in packed)
    out = [f.PREFACE, f.settings_frame([]), f.header_frames(1, REQUEST, 16384, end_stream=False)]
    for piece in pieces(stream, frame_sizes):
        out += [f.frame_header(len(piece), f.DATA, 0, 1), piece]
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


@settings(deadline=None, max_examples=40)
@given(SIZES, FRAMES, CUTS)
def test_messages_arrive_whole_and_in_order(sizes, frame_sizes, cuts):
    bodies, data = conversation(sizes, frame_sizes)

    async def main():
        done = asyncio.get_running_loop().create_future()

        async def handler(stream, ctx):
            done.set_result([message.data async for message in stream])

        stream, serving = await deliver(data, cuts, handler)
        assert await asyncio.wait_for(done, 10) == bodies
        stream.close()
        await serving

    asyncio.run(main())


@settings(deadline=None, max_examples=40)
@given(SIZES, FRAMES, CUTS)
def test_tunnelled_bytes_arrive_complete(sizes, frame_sizes, cuts):
    bodies, data = conversation(sizes, frame_sizes)

    async def main():
        collector = Collector()
        ended = asyncio.Event()

        async def handler(stream, ctx):
            tunnel = MessageTunnel(stream)
            tunnel.start(collector)
            await tunnel.wait_closed()
            ended.set()

        stream, serving = await deliver(data, cuts, handler)
        await asyncio.wait_for(ended.wait(), 10)
        assert collector.data == b"".join(bodies)
        stream.close()
        await serving

    asyncio.run(main())
