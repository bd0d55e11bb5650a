"""Upstream's own client and daemon as peers of our server and client.

Run by ``make test-reference``, which names the programs in ``BUILDCTL`` and ``BUILDKITD``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os

import pytest

from boxwright.wire import methods as m
from boxwright.wire.client import Connection
from boxwright.wire.errdetails import pack
from boxwright.wire.pb import (
    control_pb2,
    errdefs_pb2,
    fsutil_pb2,
    health_pb2,
    ops_pb2,
    stack_pb2,
    worker_pb2,
)
from boxwright.wire.server import Server
from boxwright.wire.status import RpcError, StatusCode
from boxwright.wire.tunnel import MessageTunnel

pytestmark = pytest.mark.reference

BUILDCTL = os.environ.get("BUILDCTL", "")
BUILDKITD = os.environ.get("BUILDKITD", "")
needs_buildctl = pytest.mark.skipif(not BUILDCTL, reason="BUILDCTL names no program")
needs_buildkitd = pytest.mark.skipif(not BUILDKITD, reason="BUILDKITD names no program")

PACKET = fsutil_pb2.Packet
REGULAR = 0x8F280000  # Go's mode bits of which a regular file has none


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 200))


async def execute(*argv):
    process = await asyncio.create_subprocess_exec(
        *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    assert process.stdout is not None
    output = (await process.stdout.read()).decode()
    return await process.wait(), output


async def receive_folder(connection, name):
    """Act as fsutil's receiver: list all, request all, return path → content."""
    paths, content, wanted, listed = [], {}, set(), False
    async with connection.stream(m.FILESYNC_DIFFCOPY, metadata=[("dir-name", name)]) as call:
        async for packet in call:
            if packet.type == PACKET.PACKET_STAT and packet.HasField("stat"):
                if packet.stat.mode & REGULAR == 0:
                    wanted.add(len(paths))
                    await call.send(PACKET(type=PACKET.PACKET_REQ, ID=len(paths)))
                paths.append(packet.stat.path)
            elif packet.type == PACKET.PACKET_STAT:
                listed = True
            elif packet.type == PACKET.PACKET_DATA and packet.data:
                content[paths[packet.ID]] = content.get(paths[packet.ID], b"") + packet.data
            elif packet.type == PACKET.PACKET_DATA:
                wanted.discard(packet.ID)
            if listed and not wanted:
                listed = False
                await call.send(PACKET(type=PACKET.PACKET_FIN))
                await call.close_send()
    return paths, content


class TinyDaemon:
    """As much of a daemon as ``buildctl build`` needs to send its context and fail."""

    def __init__(self):
        self.sessions: dict[str, asyncio.Future[Connection]] = {}
        self.exposed: list[str] = []
        self.received = None
        self.health = None

    def session_of(self, ref):
        loop = asyncio.get_running_loop()
        return self.sessions.setdefault(ref, loop.create_future())

    async def info(self, request, ctx):
        return control_pb2.InfoResponse(
            buildkitVersion=worker_pb2.BuildkitVersion(package="tiny", version="v0.20.0")
        )

    async def workers(self, request, ctx):
        platform = ops_pb2.Platform(OS="linux", Architecture="amd64")
        record = worker_pb2.WorkerRecord(ID="worker-one", platforms=[platform])
        return control_pb2.ListWorkersResponse(record=[record])

    async def session(self, stream, ctx):
        tunnel = MessageTunnel(stream)
        self.exposed = ctx.metadata.get_all("x-docker-expose-session-grpc-method")
        self.session_of(ctx.metadata.get("x-docker-expose-session-uuid")).set_result(
            Connection.over(tunnel)
        )
        await tunnel.wait_closed()

    async def solve(self, request, ctx):
        connection = await self.session_of(request.Session)
        check = health_pb2.HealthCheckRequest()
        self.health = (await connection.unary(m.HEALTH_CHECK, check)).status
        self.received = await receive_folder(connection, "context")
        source = errdefs_pb2.Source(
            info=ops_pb2.SourceInfo(
                filename="Dockerfile", data=b"FROM scratch\nRUN nothing\n" + b"# pad\n" * 40_000
            ),
            ranges=[ops_pb2.Range(start=ops_pb2.Position(line=2), end=ops_pb2.Position(line=2))],
        )
        raise RpcError(StatusCode.UNKNOWN, "not built here", [pack(source)])

    async def status(self, stream, ctx):
        await stream.recv()

    def server(self):
        server = Server()
        server.add(m.CONTROL_INFO, self.info)
        server.add(m.CONTROL_LIST_WORKERS, self.workers)
        server.add(m.CONTROL_SESSION, self.session)
        server.add(m.CONTROL_SOLVE, self.solve)
        server.add(m.CONTROL_STATUS, self.status)
        return server


@needs_buildctl
def test_stock_buildctl_lists_our_workers(tmp_path):
    async def main():
        server = TinyDaemon().server()
        address = await server.listen(f"unix://{tmp_path}/d.sock")
        code, output = await execute(BUILDCTL, "--addr", address, "debug", "workers")
        assert code == 0, output
        assert "worker-one" in output
        code, output = await execute(BUILDCTL, "--addr", address, "debug", "info")
        assert "tiny v0.20.0" in output
        await server.shutdown(1)

    run(main())


@needs_buildctl
def test_stock_buildctl_serves_its_context_through_the_tunnel(tmp_path):
    async def main():
        folder = tmp_path / "context"
        folder.mkdir()
        files = {f"f{index:03}": os.urandom(index * 500) for index in range(300)}
        files["large"] = os.urandom(3_000_000)
        for name, data in files.items():
            (folder / name).write_bytes(data)
        daemon = TinyDaemon()
        server = daemon.server()
        address = await server.listen(f"unix://{tmp_path}/d.sock")
        code, output = await execute(
            BUILDCTL, "--addr", address, "build", "--frontend", "dockerfile.v0",
            "--local", f"context={folder}", "--local", f"dockerfile={folder}",
        )  # fmt: skip
        assert code != 0
        assert "not built here" in output
        assert ">>> RUN nothing" in output  # a large trailer arrived whole
        assert daemon.health == health_pb2.HealthCheckResponse.SERVING
        assert m.FILESYNC_DIFFCOPY.path in daemon.exposed
        paths, content = daemon.received
        assert sorted(paths) == sorted(files)
        assert content == {name: data for name, data in files.items() if data}
        await server.shutdown(1)

    run(main())


@contextlib.asynccontextmanager
async def stock_daemon(folder):
    address = f"unix://{folder}/buildkitd.sock"
    log = (folder / "log").open("wb")
    process = await asyncio.create_subprocess_exec(
        BUILDKITD, "--root", folder / "root", "--addr", address,
        "--otel-socket-path", folder / "otel.sock", "--oci-worker-net", "host",
        stdout=log, stderr=log,
    )  # fmt: skip
    try:
        while b"running server on" not in (folder / "log").read_bytes():
            assert process.returncode is None, (folder / "log").read_text()
            await asyncio.sleep(0.05)  # its log is all that tells when it listens
        connection = await Connection.open(address)
        try:
            yield connection
        finally:
            await connection.close()
    finally:
        process.terminate()
        await process.wait()
        log.close()


@needs_buildkitd
@pytest.mark.root
def test_our_client_drives_stock_buildkitd(tmp_path):
    async def main():
        async with stock_daemon(tmp_path) as connection:
            info = await connection.unary(m.CONTROL_INFO, control_pb2.InfoRequest())
            assert info.buildkitVersion.package == "github.com/moby/buildkit"
            request = control_pb2.ListWorkersRequest()
            assert len((await connection.unary(m.CONTROL_LIST_WORKERS, request)).record) == 1
            with pytest.raises(RpcError) as caught:
                await connection.unary(
                    m.CONTROL_SOLVE, control_pb2.SolveRequest(Ref="r", Frontend="none")
                )
            assert caught.value.message == "invalid frontend: none"
            assert any(
                isinstance(detail, stack_pb2.Stack) for detail in caught.value.detail_messages()
            )
            async with connection.stream(m.CONTROL_PRUNE) as call:
                await call.send(control_pb2.PruneRequest())
                await call.close_send()
                assert [record async for record in call] == []
            assert await connection.ping() < 120

    run(main())
