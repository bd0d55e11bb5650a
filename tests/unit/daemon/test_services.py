# ruff: noqa: SIM117 - a call inside its connection reads better nested
"""Servicers that need no running build: content, health, traces."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from boxwright.core.digest import Digest
from boxwright.daemon.content import ContentService
from boxwright.daemon.health import HealthService
from boxwright.store.store import Store
from boxwright.wire import methods as m
from boxwright.wire.bytestream import memory_pipe
from boxwright.wire.client import Connection
from boxwright.wire.pb import content_pb2, health_pb2
from boxwright.wire.server import Server
from boxwright.wire.status import RpcError, StatusCode


@contextlib.asynccontextmanager
async def serving(*services):
    server = Server()
    for service in services:
        service.register(server)
    near, far = memory_pipe()
    task = asyncio.ensure_future(server.serve_over(far))
    connection = Connection.over(near)
    try:
        yield connection
    finally:
        await connection.close()
        await task


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 120))


@pytest.fixture
def store(tmp_path):
    opened = Store.open(tmp_path / "root")
    yield opened
    opened.close()


async def read(connection, digest, offset=0, size=0):
    request = content_pb2.ReadContentRequest(digest=digest, offset=offset, size=size)
    async with connection.stream(m.CONTENT_READ) as call:
        await call.send(request)
        await call.close_send()
        return b"".join([message.data async for message in call])


def test_blobs_are_described_and_read_in_ranges(store):
    data = bytes(range(256)) * 10_000
    digest = store.blobs.put(data, {"containerd.io/x": "y"})

    async def main():
        async with serving(ContentService(store.blobs)) as connection:
            request = content_pb2.InfoRequest(digest=digest)
            info = (await connection.unary(m.CONTENT_INFO, request)).info
            assert (info.digest, info.size) == (digest, len(data))
            assert info.labels["containerd.io/x"] == "y"
            assert info.created_at.ToNanoseconds() > 0
            assert await read(connection, digest) == data
            assert await read(connection, digest, 5, 7) == data[5:12]
            assert await read(connection, digest, len(data) - 3) == data[-3:]

    run(main())


@pytest.mark.parametrize(
    ("digest", "offset", "size", "status"),
    [
        (Digest.of(b"none"), 0, 0, StatusCode.NOT_FOUND),
        ("sha256:../../etc/passwd", 0, 0, StatusCode.INVALID_ARGUMENT),
        (None, 10, 0, StatusCode.INVALID_ARGUMENT),
        (None, -1, 1, StatusCode.INVALID_ARGUMENT),
        (None, 0, 10, StatusCode.INVALID_ARGUMENT),
    ],
)
def test_bad_reads_are_refused(store, digest, offset, size, status):
    wanted = digest or store.blobs.put(b"12345")

    async def main():
        async with serving(ContentService(store.blobs)) as connection:
            with pytest.raises(RpcError) as caught:
                await read(connection, wanted, offset, size)
            assert caught.value.status is status
            assert not caught.value.details  # an unknown one makes containerd's client complain

    run(main())


def test_documents_of_records_are_read_like_blobs(store):
    data = b"{}"
    digest = Digest.of(data)

    async def main():
        service = ContentService(store.blobs, {digest: data}.get)
        async with serving(service) as connection:
            request = content_pb2.InfoRequest(digest=digest)
            assert (await connection.unary(m.CONTENT_INFO, request)).info.size == 2
            assert await read(connection, digest) == data
            assert await read(connection, digest, 1, 1) == b"}"
            with pytest.raises(RpcError) as caught:
                await connection.unary(
                    m.CONTENT_INFO, content_pb2.InfoRequest(digest=Digest.of(b"none"))
                )
            assert caught.value.status is StatusCode.NOT_FOUND

    run(main())


def test_content_is_listed_and_read_only(store):
    digests = {store.blobs.put(b"%d" % index) for index in range(150)}

    async def main():
        log = store.blobs.put(b"of a build that is over")
        async with serving(ContentService(store.blobs, unlisted=lambda: {log})) as connection:
            assert await read(connection, log) == b"of a build that is over"
            async with connection.stream(m.CONTENT_LIST) as call:
                await call.send(content_pb2.ListContentRequest())
                await call.close_send()
                listed = {info.digest async for message in call for info in message.info}
            assert listed == digests
            for method in (m.CONTENT_DELETE, m.CONTENT_UPDATE, m.CONTENT_ABORT):
                with pytest.raises(RpcError) as caught:
                    await connection.unary(method, method.request())
                assert caught.value.status is StatusCode.PERMISSION_DENIED

    run(main())


def test_health_follows_the_end_of_service():
    async def main():
        health = HealthService()
        async with serving(health) as connection:
            request = health_pb2.HealthCheckRequest()
            answer = await connection.unary(m.HEALTH_CHECK, request)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            async with connection.stream(m.HEALTH_WATCH) as watch:
                await watch.send(request)
                first = await watch.recv()
                health.stop_serving()
                second = await watch.recv()
            assert first is not None
            assert second is not None
            assert first.status == health_pb2.HealthCheckResponse.SERVING
            assert second.status == health_pb2.HealthCheckResponse.NOT_SERVING
            answer = await connection.unary(m.HEALTH_CHECK, request)
            assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
            with pytest.raises(RpcError) as caught:
                await connection.unary(
                    m.HEALTH_CHECK, health_pb2.HealthCheckRequest(service="other")
                )
            assert caught.value.status is StatusCode.NOT_FOUND

    run(main())


def test_spans_of_any_content_are_accepted():
    async def main():
        async with serving(HealthService()) as connection:
            async with connection.stream(m.TRACE_EXPORT) as call:
                await call.send_bytes(b"\x0a\x04spam")
                await call.close_send()
                assert await call.recv() is not None
                assert await call.recv() is None

    run(main())
