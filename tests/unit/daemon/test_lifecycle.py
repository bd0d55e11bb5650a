"""The daemon as a process of its own: start, calls, signals, clean end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys

import pytest

from boxwright.daemon.bridge import BUILD_ID_KEY
from boxwright.wire import methods as m
from boxwright.wire.client import Connection
from boxwright.wire.pb import control_pb2, gateway_pb2
from boxwright.wire.status import RpcError, StatusCode

pytestmark = pytest.mark.root

PROGRAM = """
import asyncio, sys
from boxwright.engine.process import enter
enter()
from pathlib import Path
from boxwright.daemon.service import Listener, serve
from boxwright.engine.settings import EngineSettings
def ready(addresses):
    print(*addresses, flush=True)
asyncio.run(serve(EngineSettings(root=Path(sys.argv[1])), [Listener(a) for a in sys.argv[2:]],
                  on_ready=ready))
"""


@contextlib.asynccontextmanager
async def daemon(root, *addresses):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, root, *addresses, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        yield process, line.split()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 120))


def test_serves_on_all_addresses_and_ends_cleanly(tmp_path):
    async def main():
        root = tmp_path / "root"
        socket = tmp_path / "d.sock"
        async with daemon(root, f"unix://{socket}", "tcp://127.0.0.1:0") as (process, addresses):
            for address in [*addresses, f"unix://{root}/engine.sock"]:
                connection = await Connection.open(address)
                answer = await connection.unary(
                    m.CONTROL_LIST_WORKERS, control_pb2.ListWorkersRequest()
                )
                assert len(answer.record) == 1
                await connection.close()
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0

    run(main())
    assert not (tmp_path / "d.sock").exists()
    assert not (tmp_path / "root" / "engine.sock").exists()


def test_frontend_calls_need_a_build(tmp_path):
    async def main():
        async with daemon(tmp_path / "root", f"unix://{tmp_path}/d.sock") as (_, addresses):
            connection = await Connection.open(addresses[0])
            ping = gateway_pb2.PingRequest()
            with pytest.raises(RpcError) as caught:
                await connection.unary(m.BRIDGE_PING, ping)
            assert caught.value.status is StatusCode.INVALID_ARGUMENT
            with pytest.raises(RpcError) as caught:
                await connection.unary(m.BRIDGE_PING, ping, metadata=[(BUILD_ID_KEY, "none")])
            assert caught.value.status is StatusCode.NOT_FOUND
            await connection.close()

    run(main())


def test_killed_daemon_leaves_nothing_in_the_way(tmp_path):
    async def main():
        root, address = tmp_path / "root", f"unix://{tmp_path}/d.sock"
        async with daemon(root, address) as (process, _):
            process.kill()
            await process.wait()
        async with daemon(root, address) as (process, addresses):
            connection = await Connection.open(addresses[0])
            await connection.unary(m.CONTROL_INFO, control_pb2.InfoRequest())
            await connection.close()
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 0

    run(main())


def test_waiting_call_ends_with_the_daemon(tmp_path):
    async def main():
        async with daemon(tmp_path / "root", f"unix://{tmp_path}/d.sock") as (process, addresses):
            connection = await Connection.open(addresses[0])
            async with connection.stream(m.CONTROL_LISTEN_BUILD_HISTORY) as call:
                await call.send(control_pb2.BuildHistoryRequest())
                await call.close_send()
                await call.initial_metadata()
                process.send_signal(signal.SIGTERM)
                with pytest.raises(RpcError) as caught:
                    await call.recv()
                assert caught.value.status is StatusCode.UNAVAILABLE
            assert await process.wait() == 0
            await connection.close()

    run(main())
