# ruff: noqa: PT012, SIM117 - the calls under test need their connection around them
"""Calls between our client and our server: kinds, limits, deadlines, cancellation, tunnels."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import os
import stat

import pytest

from boxwright.errors import Code, NotFoundError
from boxwright.wire import methods as m
from boxwright.wire.bytestream import memory_pipe
from boxwright.wire.client import ConnectError, Connection
from boxwright.wire.frames import ErrorCode, Http2Limits
from boxwright.wire.pb import control_pb2, health_pb2
from boxwright.wire.server import ListenError, Server
from boxwright.wire.status import RpcError, StatusCode, from_rpc_error
from boxwright.wire.tunnel import MessageTunnel

BYTES = control_pb2.BytesMessage


async def echo(stream, ctx):
    async for message in stream:
        await stream.send(message)


@contextlib.asynccontextmanager
async def connected(*handlers, limits=None, max_message=1 << 20, **options):
    server = Server(limits=limits, max_message_bytes=max_message, **options)
    for method, handler in handlers:
        server.add(method, handler)
    near, far = memory_pipe()
    serving = asyncio.ensure_future(server.serve_over(far))
    connection = Connection.over(near, max_message_bytes=max_message)
    try:
        yield connection
    finally:
        await connection.close()
        await serving


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 120))


def test_unary_carries_messages_and_metadata():
    async def info(request, ctx):
        assert ctx.metadata.get("x-one") == "1"
        assert ctx.metadata.get_bytes("x-raw-bin") == b"\x00\xff"
        ctx.set_initial_metadata([("x-first", "a")])
        ctx.set_trailing_metadata([("x-last", "z")])
        response = control_pb2.InfoResponse()
        response.buildkitVersion.version = "v1"
        return response

    async def main():
        async with connected((m.CONTROL_INFO, info)) as connection:
            metadata = [("x-one", "1"), ("x-raw-bin", b"\x00\xff")]
            answer = await connection.unary(
                m.CONTROL_INFO, control_pb2.InfoRequest(), metadata=metadata
            )
            assert answer.buildkitVersion.version == "v1"
            async with connection.stream(m.CONTROL_INFO, metadata=metadata) as call:
                await call.send(control_pb2.InfoRequest())
                await call.close_send()
                assert (await call.initial_metadata()).get("x-first") == "a"
                assert await call.recv() is not None
                assert await call.recv() is None
                assert call.trailing_metadata().get("x-last") == "z"

    run(main())


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 100_000, 900_000])
def test_messages_of_all_sizes_come_back(size):
    async def main():
        async with connected((m.CONTROL_SESSION, echo)) as connection:
            async with connection.stream(m.CONTROL_SESSION) as call:
                for _ in range(3):
                    await call.send(BYTES(data=b"x" * size))
                    answer = await call.recv()
                    assert len(answer.data) == size
                await call.close_send()
                assert await call.recv() is None

    run(main())


def test_message_larger_than_the_stream_window_passes():
    async def main():
        limits = Http2Limits(stream_window=70_000)
        async with connected((m.CONTROL_SESSION, echo), limits=limits) as connection:
            async with connection.stream(m.CONTROL_SESSION) as call:
                await call.send(BYTES(data=b"x" * 800_000))
                assert len((await call.recv()).data) == 800_000

    run(main())


def test_message_over_the_limit_fails_that_call_only():
    async def main():
        async with connected((m.CONTROL_SESSION, echo), max_message=100_000) as connection:
            with pytest.raises(RpcError) as caught:
                async with connection.stream(m.CONTROL_SESSION) as call:
                    await call.send(BYTES(data=b"x" * 200_000))
                    await call.recv()
            assert caught.value.status is StatusCode.RESOURCE_EXHAUSTED
            async with connection.stream(m.CONTROL_SESSION) as call:
                await call.send(BYTES(data=b"ok"))
                assert (await call.recv()).data == b"ok"

    run(main())


def test_typed_errors_come_back_typed():
    async def solve(request, ctx):
        raise NotFoundError("no such thing", detail="x: 100% gone\nü", hint="look elsewhere")

    async def main():
        async with connected((m.CONTROL_SOLVE, solve)) as connection:
            with pytest.raises(RpcError) as caught:
                await connection.unary(m.CONTROL_SOLVE, control_pb2.SolveRequest())
            assert caught.value.status is StatusCode.NOT_FOUND
            assert caught.value.message == "no such thing: x: 100% gone\nü"
            error = from_rpc_error(caught.value)
            assert (error.code, error.brief) == (Code.NOT_FOUND, "no such thing")
            assert (error.detail, error.hint) == ("x: 100% gone\nü", "look elsewhere")

    run(main())


def test_bugs_are_internal_and_do_not_leak_their_text(caplog):
    async def solve(request, ctx):
        raise RuntimeError("password is hunter2")

    async def main():
        async with connected((m.CONTROL_SOLVE, solve)) as connection:
            with pytest.raises(RpcError) as caught:
                await connection.unary(m.CONTROL_SOLVE, control_pb2.SolveRequest())
            assert caught.value.status is StatusCode.INTERNAL
            assert "hunter2" not in caught.value.message

    run(main())
    assert "hunter2" in caplog.text


def test_unknown_method_is_unimplemented():
    async def main():
        async with connected() as connection:
            with pytest.raises(RpcError) as caught:
                await connection.unary(m.CONTROL_INFO, control_pb2.InfoRequest())
            assert caught.value.status is StatusCode.UNIMPLEMENTED

    run(main())


def test_authorize_is_asked_for_every_call():
    async def info(request, ctx):
        return control_pb2.InfoResponse()

    def refuse(method, ctx):
        if method is m.CONTROL_INFO:
            raise RpcError(StatusCode.PERMISSION_DENIED, "not you")

    async def main():
        handlers = (m.CONTROL_INFO, info), (m.CONTROL_SESSION, echo)
        async with connected(*handlers, authorize=refuse) as connection:
            with pytest.raises(RpcError) as caught:
                await connection.unary(m.CONTROL_INFO, control_pb2.InfoRequest())
            assert caught.value.status is StatusCode.PERMISSION_DENIED
            async with connection.stream(m.CONTROL_SESSION) as call:
                await call.send(BYTES(data=b"x"))
                assert (await call.recv()).data == b"x"

    run(main())


def test_error_after_messages_arrives_after_them():
    async def status(stream, ctx):
        await stream.recv()
        for index in range(3):
            await stream.send(control_pb2.StatusResponse(logs=[{"msg": b"%d" % index}]))
        raise RpcError(StatusCode.ABORTED, "enough")

    async def main():
        async with connected((m.CONTROL_STATUS, status)) as connection:
            async with connection.stream(m.CONTROL_STATUS) as call:
                await call.send(control_pb2.StatusRequest(Ref="r"))
                await call.close_send()
                got = []
                with pytest.raises(RpcError) as caught:
                    async for message in call:
                        got.append(message.logs[0].msg)
            assert got == [b"0", b"1", b"2"]
            assert caught.value.status is StatusCode.ABORTED

    run(main())


def test_leaving_the_call_cancels_the_handler():
    async def main():
        state = []
        cancelled = asyncio.Event()

        async def wait(stream, ctx):
            state.append("in")
            stream.send_headers()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise

        async with connected((m.CONTROL_SESSION, wait)) as connection:
            async with connection.stream(m.CONTROL_SESSION) as call:
                await call.initial_metadata()
            await cancelled.wait()
            assert state == ["in"]

    run(main())


def test_lost_connection_cancels_handlers_and_fails_calls():
    async def main():
        cancelled = asyncio.Event()

        async def wait(stream, ctx):
            stream.send_headers()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        server = Server()
        server.add(m.CONTROL_SESSION, wait)
        near, far = memory_pipe()
        serving = asyncio.ensure_future(server.serve_over(far))
        connection = Connection.over(near)
        with pytest.raises(RpcError) as caught:
            async with connection.stream(m.CONTROL_SESSION) as call:
                await call.initial_metadata()
                far.abort()
                await call.recv()
        assert caught.value.status is StatusCode.UNAVAILABLE
        await cancelled.wait()
        await serving
        assert connection.closed.done()
        with pytest.raises(RpcError):
            await connection.unary(m.CONTROL_INFO, control_pb2.InfoRequest())

    run(main())


def test_deadline_reaches_the_handler_and_the_caller():
    async def main():
        seen = []

        async def info(request, ctx):
            seen.append(ctx.remaining_s())
            await asyncio.Event().wait()

        async with connected((m.CONTROL_INFO, info)) as connection:
            timeout_s = 0.05
            while not any(seen):  # a machine may stand still before the handler is called
                timeout_s *= 2
                with pytest.raises(RpcError) as caught:
                    await connection.unary(
                        m.CONTROL_INFO, control_pb2.InfoRequest(), timeout_s=timeout_s
                    )
                assert caught.value.status is StatusCode.DEADLINE_EXCEEDED
            assert 0 < seen[-1] <= timeout_s

    run(main())


def test_server_enforces_the_deadline_itself():
    async def main():
        async def info(request, ctx):
            await asyncio.Event().wait()

        async with connected((m.CONTROL_INFO, info)) as connection:
            endpoint = connection._endpoint
            original = endpoint.request_headers
            # A caller that announces a deadline and does not act on it.
            endpoint.request_headers = lambda path, _: original(path, 0.02)
            with pytest.raises(RpcError) as caught:
                await connection.unary(m.CONTROL_INFO, control_pb2.InfoRequest())
            assert caught.value.status is StatusCode.DEADLINE_EXCEEDED

    run(main())


def test_timeout_error_of_the_handler_is_not_taken_for_the_deadline():
    async def info(request, ctx):
        raise TimeoutError

    async def main():
        async with connected((m.CONTROL_INFO, info)) as connection:
            with pytest.raises(RpcError) as caught:
                await connection.unary(m.CONTROL_INFO, control_pb2.InfoRequest(), timeout_s=119)
            assert caught.value.status is StatusCode.INTERNAL

    run(main())


def test_sender_waits_for_a_receiver_that_does_not_read():
    async def main():
        reading = asyncio.Event()

        async def slow(stream, ctx):
            await reading.wait()
            total = 0
            async for message in stream:
                total += len(message.data)
            await stream.send(BYTES(data=b"%d" % total))

        limits = Http2Limits(stream_window=70_000)
        handlers = (m.CONTROL_SESSION, slow), (m.UPLOAD_PULL, echo)
        async with connected(*handlers, limits=limits) as connection:
            async with connection.stream(m.CONTROL_SESSION) as call:
                sent = 0

                async def send():
                    nonlocal sent
                    for _ in range(40):
                        await call.send(BYTES(data=b"x" * 50_000))
                        sent += 1
                    await call.close_send()

                async with asyncio.TaskGroup() as group:
                    group.create_task(send())
                    # A second call passes while the first one is stuck.
                    async with connection.stream(m.UPLOAD_PULL) as other:
                        for _ in range(20):
                            await other.send(m.UPLOAD_PULL.request(data=b"y" * 50_000))
                            assert len((await other.recv()).data) == 50_000
                    assert sent < 20
                    reading.set()
                assert (await call.recv()).data == b"2000000"

    run(main())


def test_calls_over_the_stream_limit_wait_their_turn():
    async def main():
        running = most = 0

        async def info(request, ctx):
            nonlocal running, most
            running += 1
            most = max(most, running)
            for _ in range(5):
                await asyncio.sleep(0)
            running -= 1
            return control_pb2.InfoResponse()

        limits = Http2Limits(max_streams=3)
        async with connected((m.CONTROL_INFO, info), limits=limits) as connection:
            await connection.ping()  # the peer's limit is known now
            calls = [
                connection.unary(m.CONTROL_INFO, control_pb2.InfoRequest()) for _ in range(30)
            ]
            assert len(await asyncio.gather(*calls)) == 30
        assert most <= 3

    run(main())


def test_gzip_messages_are_accepted_and_bombs_are_not():
    async def main():
        async with connected((m.CONTROL_SESSION, echo), max_message=100_000) as connection:
            endpoint = connection._endpoint
            original = endpoint.request_headers
            endpoint.request_headers = lambda path, timeout: [
                *original(path, timeout),
                (b"grpc-encoding", b"gzip"),
            ]

            async def exchange(payload):
                async with connection.stream(m.CONTROL_SESSION) as call:
                    packed = gzip.compress(payload)
                    frame = b"\x01" + len(packed).to_bytes(4, "big") + packed
                    endpoint.h2.send_data(call._stream, frame)
                    endpoint.flush_soon()
                    return await call.recv()

            message = BYTES(data=b"zip").SerializeToString()
            assert (await exchange(message)).data == b"zip"
            with pytest.raises(RpcError) as caught:
                await exchange(b"\0" * 10_000_000)
            assert caught.value.status is StatusCode.RESOURCE_EXHAUSTED

    run(main())


def test_error_with_a_large_detail_is_cut_to_what_the_peer_takes():
    from boxwright.wire.errdetails import pack
    from boxwright.wire.pb import errdefs_pb2, ops_pb2
    from boxwright.wire.serverstream import status_headers

    source = errdefs_pb2.Source(info=ops_pb2.SourceInfo(filename="f", data=b"x" * 500_000))
    vertex = errdefs_pb2.Vertex(digest="sha256:1")
    error = RpcError(StatusCode.UNKNOWN, "m" * 300_000, [pack(source), pack(vertex)])
    whole = status_headers(error, 1 << 20)
    assert sum(len(value) for _, value in whole) < (1 << 20) + 1024
    small = dict(status_headers(error, 8192))
    assert sum(map(len, small.values())) < 8192 + 512
    assert b"grpc-status-details-bin" in small  # the vertex still fits


def test_shutdown_lets_running_calls_end_and_refuses_new_ones(tmp_path):
    async def main():
        release = asyncio.Event()
        entered = asyncio.Event()

        async def info(request, ctx):
            entered.set()
            await release.wait()
            return control_pb2.InfoResponse()

        server = Server()
        server.add(m.CONTROL_INFO, info)
        address = await server.listen(f"unix://{tmp_path}/s.sock")
        connection = await Connection.open(address)
        call = asyncio.ensure_future(connection.unary(m.CONTROL_INFO, control_pb2.InfoRequest()))
        await entered.wait()
        stopping = asyncio.ensure_future(server.shutdown(10))
        while connection._endpoint.h2.peer_goaway is None:
            await connection.ping()
        with pytest.raises(RpcError) as caught:
            await connection.unary(m.CONTROL_INFO, control_pb2.InfoRequest())
        assert caught.value.status is StatusCode.UNAVAILABLE
        release.set()
        await call
        await stopping
        await connection.closed
        assert not (tmp_path / "s.sock").exists()

    run(main())


def test_shutdown_without_grace_cancels(tmp_path):
    async def main():
        async def info(request, ctx):
            entered.set()
            await asyncio.Event().wait()

        entered = asyncio.Event()
        server = Server()
        server.add(m.CONTROL_INFO, info)
        connection = await Connection.open(await server.listen(f"unix://{tmp_path}/s.sock"))
        call = asyncio.ensure_future(connection.unary(m.CONTROL_INFO, control_pb2.InfoRequest()))
        await entered.wait()
        await server.shutdown(0)
        with pytest.raises(RpcError) as caught:
            await call
        assert caught.value.status in {StatusCode.CANCELLED, StatusCode.UNAVAILABLE}
        await connection.close()

    run(main())


def test_unix_socket_has_mode_and_tells_who_calls(tmp_path):
    async def main():
        async def info(request, ctx):
            peers.append(ctx.peer)
            return control_pb2.InfoResponse()

        peers = []
        server = Server()
        server.add(m.CONTROL_INFO, info)
        path = tmp_path / "s.sock"
        await server.listen(f"unix://{path}", mode=0o600)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        connection = await Connection.open(f"unix://{path}")
        await connection.unary(m.CONTROL_INFO, control_pb2.InfoRequest())
        assert (peers[0].pid, peers[0].uid) == (os.getpid(), os.getuid())
        assert peers[0].is_authenticated
        await connection.close()
        await server.shutdown(1)

    run(main())


def test_stale_socket_is_replaced_and_a_living_one_is_not(tmp_path):
    async def main():
        import socket

        path = tmp_path / "s.sock"
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        server = Server()
        await server.listen(f"unix://{path}")
        with pytest.raises(ListenError):
            await Server().listen(f"unix://{path}")
        await server.shutdown(0)

    run(main())


def test_connecting_to_nothing_says_so(tmp_path):
    async def main():
        with pytest.raises(ConnectError) as caught:
            await Connection.open(f"unix://{tmp_path}/none.sock")
        assert caught.value.code is Code.UNAVAILABLE
        assert "none.sock" in caught.value.brief

    run(main())


@contextlib.asynccontextmanager
async def tunnelled(*inner_handlers):
    """A daemon that calls back through the Session stream, as both sides of ours do it."""
    ready: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()

    async def session(stream, ctx):
        tunnel = MessageTunnel(stream)
        ready.set_result(Connection.over(tunnel))
        await tunnel.wait_closed()

    inner = Server()
    for method, handler in inner_handlers:
        inner.add(method, handler)
    async with connected((m.CONTROL_SESSION, session), max_message=16 << 20) as outer:
        async with outer.stream(m.CONTROL_SESSION) as call:
            tunnel = MessageTunnel(call)
            serving = asyncio.ensure_future(inner.serve_over(tunnel))
            back = await ready
            yield back
            await back.close()
            await serving


async def healthy(request, ctx):
    return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)


def test_tunnel_carries_calls_with_roles_reversed():
    async def main():
        async with tunnelled((m.HEALTH_CHECK, healthy), (m.UPLOAD_PULL, echo)) as back:
            answer = await back.unary(m.HEALTH_CHECK, health_pb2.HealthCheckRequest())
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            async with back.stream(m.UPLOAD_PULL) as call:
                for size in (0, 1, 70_000, 3_000_000):
                    await call.send(m.UPLOAD_PULL.request(data=b"z" * size))
                    assert len((await call.recv()).data) == size

    run(main())


def test_stuck_inner_stream_does_not_stop_the_health_check():
    async def main():
        async def flood(stream, ctx):
            while True:
                await stream.send(m.UPLOAD_PULL.response(data=b"x" * 100_000))

        async def swallow_nothing(stream, ctx):
            await asyncio.Event().wait()

        inner = (
            (m.HEALTH_CHECK, healthy),
            (m.UPLOAD_PULL, flood),
            (m.SSH_FORWARD_AGENT, swallow_nothing),
        )
        async with tunnelled(*inner) as back:
            async with back.stream(m.UPLOAD_PULL) as unread, back.stream(m.SSH_FORWARD_AGENT) as s:
                assert await unread.recv() is not None  # and nothing after it is read

                async def fill():
                    while True:
                        await s.send(m.SSH_FORWARD_AGENT.request(data=b"y" * 100_000))

                filling = asyncio.ensure_future(fill())
                for _ in range(20):
                    await back.unary(
                        m.HEALTH_CHECK, health_pb2.HealthCheckRequest(), timeout_s=100
                    )
                assert not filling.done()
                filling.cancel()

    run(main())


def test_tunnel_ends_when_the_outer_call_ends():
    async def main():
        ready = asyncio.get_running_loop().create_future()
        ended = asyncio.Event()

        async def session(stream, ctx):
            tunnel = MessageTunnel(stream)
            ready.set_result(Connection.over(tunnel))
            try:
                await tunnel.wait_closed()
            finally:
                ended.set()

        async with connected((m.CONTROL_SESSION, session)) as outer:
            async with outer.stream(m.CONTROL_SESSION):
                back = await ready
            await ended.wait()
            await back.closed
            with pytest.raises(RpcError):
                await back.unary(m.HEALTH_CHECK, health_pb2.HealthCheckRequest())

    run(main())


def test_reset_code_becomes_a_status():
    async def main():
        async with connected((m.CONTROL_SESSION, echo)) as connection:
            async with connection.stream(m.CONTROL_SESSION) as call:
                connection._endpoint.on_reset(call._stream, ErrorCode.REFUSED_STREAM)
                with pytest.raises(RpcError) as caught:
                    await call.recv()
                assert caught.value.status is StatusCode.UNAVAILABLE

    run(main())


def test_silent_peer_is_dropped(monkeypatch):
    from boxwright.wire import server as module

    async def main():
        monkeypatch.setattr(module, "_PREFACE_TIMEOUT_S", 0.01)
        near, far = memory_pipe()
        await Server().serve_over(far)  # returns only because the peer was dropped
        near.close()

    run(main())


def test_shutdown_waits_for_handlers_whose_client_has_gone(tmp_path):
    async def main():
        cleaning, release, cleaned = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def slow_to_end(stream, ctx):
            stream.send_headers()
            try:
                await asyncio.Event().wait()
            finally:
                cleaning.set()
                await release.wait()
                cleaned.set()

        server = Server()
        server.add(m.CONTROL_SESSION, slow_to_end)
        connection = await Connection.open(await server.listen(f"unix://{tmp_path}/s.sock"))
        call = connection.stream(m.CONTROL_SESSION)
        async with call:
            await call.initial_metadata()
            await connection.close()
        await cleaning.wait()
        assert server.connections == 1
        asyncio.get_running_loop().call_soon(release.set)
        await server.shutdown(0)
        assert cleaned.is_set()
        assert server.connections == 0

    run(main())


def test_bug_in_an_inner_connection_leaves_the_outer_one_alone(caplog):
    async def main():
        async with tunnelled((m.HEALTH_CHECK, healthy)) as back:
            outer_session = back._endpoint.transport._stream
            back._endpoint.on_headers = None  # whatever a bug may be
            with pytest.raises(RpcError) as caught:
                await back.unary(m.HEALTH_CHECK, health_pb2.HealthCheckRequest())
            assert caught.value.status is StatusCode.INTERNAL
            assert not outer_session._endpoint.closed.done()

    run(main())
    assert "closing connection" in caplog.text
