# ruff: noqa: PT012, SIM117 - the calls under test need their connection around them
"""Our client and our server with grpcio (C core) as the peer, in both roles."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent import futures

import grpc
import pytest

from boxwright.wire import methods as m
from boxwright.wire.client import Connection
from boxwright.wire.pb import control_pb2
from boxwright.wire.server import Server
from boxwright.wire.status import RpcError, StatusCode

BYTES = control_pb2.BytesMessage
BIG = 9 << 20
OPTIONS = [
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
]


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 200))


# --- grpcio calls us -------------------------------------------------------------------------


async def info(request, ctx):
    assert ctx.metadata.get("x-text") == "hello"
    assert ctx.metadata.get_bytes("x-raw-bin") == bytes(range(256))
    ctx.set_initial_metadata([("x-first-bin", b"\xff\x00")])
    ctx.set_trailing_metadata([("x-last", "bye")])
    answer = control_pb2.InfoResponse()
    answer.buildkitVersion.version = "v9"
    return answer


async def echo(stream, ctx):
    async for message in stream:
        await stream.send(message)


async def fail(request, ctx):
    raise RpcError(StatusCode.ABORTED, "50% of it\nfailed: ü")


async def hang(request, ctx):
    await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def our_server(**extra):
    server = Server()
    server.add(m.CONTROL_INFO, info)
    server.add(m.CONTROL_SESSION, echo)
    server.add(m.CONTROL_SOLVE, fail)
    server.add(m.CONTROL_DISK_USAGE, hang)
    for method, handler in extra.values():
        server.add(method, handler)
    address = await server.listen("tcp://127.0.0.1:0")
    try:
        yield address.removeprefix("tcp://")
    finally:
        await server.shutdown(0)


def unary_stub(channel, method):
    return channel.unary_unary(
        method.path, method.request.SerializeToString, method.response.FromString
    )


def stream_stub(channel, method):
    return channel.stream_stream(
        method.path, method.request.SerializeToString, method.response.FromString
    )


def drive(work, **extra):
    """Run ``work(channel)`` in a thread against our server."""

    async def main():
        async with our_server(**extra) as target:

            def in_thread():
                with grpc.insecure_channel(target, OPTIONS) as channel:
                    return work(channel)

            return await asyncio.to_thread(in_thread)

    return run(main())


def test_grpcio_unary_call_with_metadata():
    def work(channel):
        metadata = [("x-text", "hello"), ("x-raw-bin", bytes(range(256)))]
        answer, call = unary_stub(channel, m.CONTROL_INFO).with_call(
            control_pb2.InfoRequest(), metadata=metadata, timeout=120
        )
        assert answer.buildkitVersion.version == "v9"
        assert dict(call.initial_metadata())["x-first-bin"] == b"\xff\x00"
        assert dict(call.trailing_metadata())["x-last"] == "bye"
        assert call.code() == grpc.StatusCode.OK

    drive(work)


def test_grpcio_streams_large_messages_both_ways():
    def work(channel):
        sizes = [0, 1, 100_000, BIG]
        requests = (BYTES(data=b"x" * size) for size in sizes)
        answers = stream_stub(channel, m.CONTROL_SESSION)(requests, timeout=120)
        assert [len(answer.data) for answer in answers] == sizes

    drive(work)


def test_grpcio_gzip_is_accepted():
    def work(channel):
        answers = stream_stub(channel, m.CONTROL_SESSION)(
            iter([BYTES(data=b"z" * 200_000)]), timeout=120, compression=grpc.Compression.Gzip
        )
        assert [answer.data for answer in answers] == [b"z" * 200_000]

    drive(work)


def test_grpcio_reads_trailers_only_errors():
    def work(channel):
        with pytest.raises(grpc.RpcError) as caught:
            unary_stub(channel, m.CONTROL_SOLVE)(control_pb2.SolveRequest(), timeout=120)
        assert caught.value.code() == grpc.StatusCode.ABORTED
        assert caught.value.details() == "50% of it\nfailed: ü"
        with pytest.raises(grpc.RpcError) as caught:
            unary_stub(channel, m.CONTROL_LIST_WORKERS)(
                control_pb2.ListWorkersRequest(), timeout=120
            )
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED

    drive(work)


def test_grpcio_deadline_and_cancel_reach_the_handler():
    cancelled = threading.Event()

    async def wait(stream, ctx):
        stream.send_headers()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    def work(channel):
        with pytest.raises(grpc.RpcError) as caught:
            unary_stub(channel, m.CONTROL_DISK_USAGE)(control_pb2.DiskUsageRequest(), timeout=0.2)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        more = threading.Event()

        def requests():
            more.wait(120)
            yield from ()

        call = stream_stub(channel, m.UPLOAD_PULL)(requests(), timeout=120)
        call.initial_metadata()
        call.cancel()
        assert cancelled.wait(120)
        more.set()

    drive(work, wait=(m.UPLOAD_PULL, wait))


# --- we call grpcio --------------------------------------------------------------------------


def g_info(request, context):
    got = dict(context.invocation_metadata())
    assert got["x-text"] == "hello"
    assert got["x-raw-bin"] == bytes(range(256))
    context.send_initial_metadata([("x-first-bin", b"\xff\x00")])
    context.set_trailing_metadata([("x-last", "bye")])
    answer = control_pb2.InfoResponse()
    answer.buildkitVersion.version = "v9"
    return answer


def g_echo(requests, context):
    yield from requests


def g_fail(request, context):
    context.abort(grpc.StatusCode.ABORTED, "50% of it\nfailed: ü")


def g_hang(request, context):
    gone = threading.Event()
    context.add_callback(gone.set)
    gone.wait(120)
    return control_pb2.DiskUsageResponse()


def g_disk(request, context):
    for index in range(3):
        yield control_pb2.UsageRecord(ID=str(index))
    context.abort(grpc.StatusCode.DATA_LOSS, "torn")


@contextlib.asynccontextmanager
async def grpcio_server():
    server = grpc.server(futures.ThreadPoolExecutor(8), options=OPTIONS)
    makers = {
        m.CONTROL_INFO: (grpc.unary_unary_rpc_method_handler, g_info),
        m.CONTROL_SESSION: (grpc.stream_stream_rpc_method_handler, g_echo),
        m.CONTROL_SOLVE: (grpc.unary_unary_rpc_method_handler, g_fail),
        m.CONTROL_DISK_USAGE: (grpc.unary_unary_rpc_method_handler, g_hang),
        m.CONTROL_PRUNE: (grpc.unary_stream_rpc_method_handler, g_disk),
    }
    handlers = {
        method.path.rsplit("/", 1)[1]: make(
            function, method.request.FromString, method.response.SerializeToString
        )
        for method, (make, function) in makers.items()
    }
    generic = grpc.method_handlers_generic_handler("moby.buildkit.v1.Control", handlers)
    server.add_generic_rpc_handlers((generic,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    connection = await Connection.open(f"tcp://127.0.0.1:{port}")
    try:
        yield connection
    finally:
        await connection.close()
        await asyncio.to_thread(server.stop(0).wait)


def test_we_call_grpcio_unary_with_metadata():
    async def main():
        async with grpcio_server() as connection:
            metadata = [("x-text", "hello"), ("x-raw-bin", bytes(range(256)))]
            async with connection.stream(m.CONTROL_INFO, metadata=metadata) as call:
                await call.send(control_pb2.InfoRequest())
                await call.close_send()
                assert (await call.initial_metadata()).get_bytes("x-first-bin") == b"\xff\x00"
                answer = await call.recv()
                assert answer is not None
                assert answer.buildkitVersion.version == "v9"
                assert await call.recv() is None
                assert call.trailing_metadata().get("x-last") == "bye"

    run(main())


def test_we_stream_large_messages_to_grpcio_and_back():
    async def main():
        async with grpcio_server() as connection:
            async with connection.stream(m.CONTROL_SESSION) as call:
                sizes = [0, 1, 100_000, BIG]
                async with asyncio.TaskGroup() as group:

                    async def send():
                        for size in sizes:
                            await call.send(BYTES(data=b"x" * size))
                        await call.close_send()

                    group.create_task(send())
                    got = [len(message.data) async for message in call]
                assert got == sizes

    run(main())


def test_we_read_grpcio_errors():
    async def main():
        async with grpcio_server() as connection:
            with pytest.raises(RpcError) as caught:
                await connection.unary(m.CONTROL_SOLVE, control_pb2.SolveRequest())
            assert caught.value.status is StatusCode.ABORTED
            assert caught.value.message == "50% of it\nfailed: ü"
            with pytest.raises(RpcError) as caught:
                await connection.unary(m.HEALTH_CHECK, m.HEALTH_CHECK.request())
            assert caught.value.status is StatusCode.UNIMPLEMENTED
            ids = []
            with pytest.raises(RpcError) as caught:
                async with connection.stream(m.CONTROL_PRUNE) as call:
                    await call.send(control_pb2.PruneRequest())
                    await call.close_send()
                    async for record in call:
                        ids.append(record.ID)
            assert ids == ["0", "1", "2"]
            assert caught.value.status is StatusCode.DATA_LOSS

    run(main())


def test_our_deadline_ends_a_call_to_grpcio():
    async def main():
        async with grpcio_server() as connection:
            with pytest.raises(RpcError) as caught:
                await connection.unary(
                    m.CONTROL_DISK_USAGE, control_pb2.DiskUsageRequest(), timeout_s=0.2
                )
            assert caught.value.status is StatusCode.DEADLINE_EXCEEDED
            # The connection is still good.
            with pytest.raises(RpcError) as caught:
                await connection.unary(m.CONTROL_SOLVE, control_pb2.SolveRequest())
            assert caught.value.status is StatusCode.ABORTED

    run(main())
