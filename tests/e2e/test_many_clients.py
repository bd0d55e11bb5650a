"""Many clients, slow ones, hostile ones and such that leave: what the daemon does with them."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import socket
import tarfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import pytest
from leftovers import Process, assert_recovers, children_of
from programs import PROGRAM, TIMEOUT_S, Cli, Context, Daemon, wait_until

from boxwright import llb
from boxwright.client import BuildRequest, Client, Export, connect
from boxwright.linux import unixpath
from boxwright.progress.events import Event
from boxwright.wire.pb import control_pb2, ops_pb2

pytestmark = [pytest.mark.root, pytest.mark.peer("crun")]

CLIENTS = 50
MEMORY_LIMIT_KIB = 512 << 10


class Resources:
    """What the daemon holds: counted from outside."""

    def __init__(self, daemon: Daemon) -> None:
        assert daemon.process is not None
        self.pid = daemon.process.pid
        self.root = daemon.root

    def counts(self) -> dict[str, int]:
        """Return descriptors, mounts below the state folder and processes of the daemon."""
        table = Path(f"/proc/{self.pid}/mountinfo").read_text()
        return {
            "descriptors": len(os.listdir(f"/proc/{self.pid}/fd")),
            "mounts": table.count(f" {self.root}/"),
            "processes": len(children_of(self.pid)),
        }

    def peak_kib(self) -> int:
        """Return the most memory that the daemon ever had."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

    def assert_back_at(self, before: dict[str, int]) -> None:
        """Wait until nothing more is held than before."""

        def is_back() -> bool:
            return all(count <= before[name] for name, count in self.counts().items())

        try:
            wait_until(is_back, "the daemon lets go")
        except AssertionError as error:
            raise AssertionError(f"before {before}, now {self.counts()}") from error


@pytest.fixture
def base(context: Context) -> Path:
    """A folder with a busybox."""
    context.dockerfile("", base=True)
    return context.path / ".base"


def graph(number: int, script: str) -> ops_pb2.Definition:
    """A command over a busybox and a folder of the client's own."""
    shell = llb.scratch().copy(llb.local("base"), "/", "/", llb.CopyOptions(contents_only=True))
    step = shell.add_env("PATH", "/bin").run(
        ["/bin/sh", "-c", script],
        env={"NUMBER": str(number)},
        mounts=[llb.bind("/data", llb.local("data")), llb.bind("/out", shell, readonly=False)],
    )
    return step.mount("/out").marshal()


def in_loop(use: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(280):
            await use()

    asyncio.run(main())


async def ask(
    client: Client, number: int, base: Path, folder: Path, script: str
) -> dict[str, str]:
    """Build and return the files of the result's /answer folder."""
    data = folder / f"data{number}"
    data.mkdir(exist_ok=True)
    (data / "name").write_text(f"client {number}")
    archive = io.BytesIO()
    request = BuildRequest(
        definition=graph(number, script),
        locals={"base": base, "data": data},
        exports=(Export("tar", stream=archive),),
    )
    await client.build(request)
    archive.seek(0)
    with tarfile.open(fileobj=archive) as tar:
        found = tar.extractfile("answer")
        assert found is not None
        return {"answer": found.read().decode()}


ANSWER = '(cat /data/name; echo " $NUMBER") > /out/answer'


def test_fifty_clients_at_once(daemon: Daemon, base: Path, tmp_path: Path) -> None:
    held = Resources(daemon)

    async def one(number: int) -> None:
        # Two at a time want the same: their steps are shared.
        async with connect(daemon.address) as client:
            answer = await ask(client, number // 2, base, tmp_path, ANSWER)
        assert answer == {"answer": f"client {number // 2} {number // 2}\n"}

    async def all_of_them() -> None:
        await one(2 * CLIENTS)
        before = held.counts()
        async with asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(one(number))
        await asyncio.to_thread(held.assert_back_at, before)

    in_loop(all_of_them)
    assert held.peak_kib() < MEMORY_LIMIT_KIB
    daemon.stop()
    assert_recovers(daemon.root)


def test_a_stopped_client_holds_nobody_up(
    daemon: Daemon, context: Context, cli: Cli, tmp_path: Path
) -> None:
    context.dockerfile("FROM base\nRUN echo begun-$((1+1)); while :; do echo much of it; done\n")
    argv = [PROGRAM, "build", "--progress", "plain", "--addr", daemon.address, context.path]
    stopped = Process([str(arg) for arg in argv], tmp_path / "log", cli.env)
    try:
        stopped.wait_for_text("begun-2")
        os.kill(stopped.pid, signal.SIGSTOP)
        other = tmp_path / "other"
        other.mkdir()
        Context(other).dockerfile("FROM base\nRUN echo the other one\n")
        done = cli("--addr", daemon.address, "build", "--progress", "plain", str(other)).ok()
        assert "the other one" in done.text
        assert Resources(daemon).peak_kib() < MEMORY_LIMIT_KIB
        os.kill(stopped.pid, signal.SIGCONT)
        assert stopped.end(signal.SIGINT) != 0
    finally:
        stopped.close()
    daemon.stop()
    assert_recovers(daemon.root)


def test_leaving_at_any_moment_leaves_nothing(daemon: Daemon, base: Path, tmp_path: Path) -> None:
    held = Resources(daemon)
    script = f"{ANSWER}; cat /dev/urandom | head -c 3000000 > /out/more; sleep 0.3"

    async def leave_after(events: int) -> None:
        seen = 0
        data = tmp_path / "data"
        data.mkdir(exist_ok=True)
        (data / "name").write_text(f"left after {events}")

        def count(batch: list[Event]) -> None:
            nonlocal seen
            seen += len(batch)
            if seen >= events and building is not None:
                building.cancel()

        request = BuildRequest(
            definition=graph(events, script),
            locals={"base": base, "data": data},
            exports=(Export("tar", stream=io.BytesIO()),),
        )
        building: asyncio.Task[object] | None = None
        async with connect(daemon.address) as client:
            building = asyncio.ensure_future(client.build(request, count))
            await asyncio.wait([building])

    async def use() -> None:
        async with connect(daemon.address) as client:
            await ask(client, 1, base, tmp_path, ANSWER)
        before = held.counts()
        for events in range(1, 25, 2):
            await leave_after(events)
        await asyncio.to_thread(held.assert_back_at, before)

    in_loop(use)
    daemon.stop()
    assert_recovers(daemon.root)


SOLVE = "/moby.buildkit.v1.Control/Solve"

MALFORMED = {
    "noise": b"\xff" * 64,
    "cut off": control_pb2.SolveRequest(Ref="r" * 40).SerializeToString()[:-5],
    "an op that is none": control_pb2.SolveRequest(
        Ref="a", Session="s", Definition=ops_pb2.Definition(**{"def": [b"\xff\xff"]})
    ).SerializeToString(),
    "an input that is not there": control_pb2.SolveRequest(
        Ref="b",
        Definition=ops_pb2.Definition(
            **{
                "def": [
                    ops_pb2.Op(
                        inputs=[ops_pb2.Input(digest="sha256:" + "0" * 64)]
                    ).SerializeToString()
                ]
            }
        ),
    ).SerializeToString(),
    "an unknown frontend": control_pb2.SolveRequest(
        Ref="c", Frontend="nothing.v9"
    ).SerializeToString(),
    "an unknown exporter": control_pb2.SolveRequest(
        Ref="d", Exporters=[control_pb2.Exporter(Type="nothing")]
    ).SerializeToString(),
}


@pytest.mark.parametrize("name", list(MALFORMED))
def test_a_malformed_request_is_an_error_to_its_sender(daemon: Daemon, name: str) -> None:
    with grpc.insecure_channel(daemon.address.replace("unix://", "unix:")) as channel:
        solve = channel.unary_unary(SOLVE)
        with pytest.raises(grpc.RpcError) as caught:
            solve(MALFORMED[name], timeout=TIMEOUT_S)
        assert caught.value.code() not in {  # type: ignore[attr-defined]
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.DEADLINE_EXCEEDED,
        }
        info = channel.unary_unary("/moby.buildkit.v1.Control/Info")
        answer = control_pb2.InfoResponse.FromString(info(b"", timeout=TIMEOUT_S))
        assert answer.buildkitVersion.version
    assert "Traceback" not in daemon.log.read_text()


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\4\0\0\0\0\0"

NOISE = {
    "nothing": b"",
    "text": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "noise": bytes(range(256)) * 64,
    "a frame that is too long": PREFACE + SETTINGS + b"\xff\xff\xff\0\0\0\0\0\1",
    "headers that are none": PREFACE + SETTINGS + b"\0\0\4\1\4\0\0\0\1\xff\xff\xff\xff",
    "data of no stream": PREFACE + SETTINGS + b"\0\0\1\0\1\0\0\0\7x",
    "a header block without end": PREFACE + SETTINGS + b"\0\0\1\1\0\0\0\0\1\x82" * 4096,
}


@pytest.mark.parametrize("name", list(NOISE))
def test_noise_on_the_socket_hurts_nobody_else(daemon: Daemon, cli: Cli, name: str) -> None:
    held = Resources(daemon)
    # The sandbox's two processes are started in the background.
    wait_until(lambda: held.counts()["processes"] == 2, what="the daemon is ready")
    before = held.counts()
    with socket.socket(socket.AF_UNIX) as noisy:
        with unixpath.usable(daemon.address.removeprefix("unix://")) as path:
            noisy.connect(path)
        noisy.settimeout(TIMEOUT_S)
        try:
            noisy.sendall(NOISE[name])
        except OSError:
            pass  # refused before all of it was sent
        cli("--addr", daemon.address, "du").ok()
    held.assert_back_at(before)
    assert "Traceback" not in daemon.log.read_text()
