"""NewContainer and ExecProcess of the daemon, over the wire."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from programs import TIMEOUT_S, Daemon, wait_until

from boxwright.llb.build_ops import diff
from boxwright.llb.exec_op import Mount
from boxwright.llb.file_op import mkdir, mkfile
from boxwright.llb.state import State
from boxwright.wire import errdetails, methods
from boxwright.wire.client import Connection
from boxwright.wire.clientcall import ClientStream
from boxwright.wire.pb import control_pb2, errdefs_pb2, gateway_pb2, ops_pb2
from boxwright.wire.status import RpcError, StatusCode

pytestmark = [pytest.mark.root, pytest.mark.peer("crun")]

BUSYBOX = Path(shutil.which("busybox") or "/bin/busybox").read_bytes()
PATH = ("PATH=/bin",)


class Client:
    """A client that is its build's frontend."""

    def __init__(self, connection: Connection, build_id: str) -> None:
        self.connection = connection
        self.items = [("buildkit-controlapi-buildid", build_id)]

    async def call(self, method, request):
        return await self.connection.unary(method, request, metadata=self.items)

    async def tree(self) -> str:
        """Solve a tree with a shell and return its ref."""
        state = (
            State()
            .file(mkdir("/bin"))
            .file(mkfile("/bin/busybox", BUSYBOX, mode=0o755))
            .file(mkfile("/etc-release", b"tree\n"))
        )
        answer = await self.call(
            methods.BRIDGE_SOLVE,
            gateway_pb2.SolveRequest(
                Definition=state.marshal(), allowResultReturn=True, allowResultArrayRef=True
            ),
        )
        return answer.result.ref.id

    async def container(self, name: str = "c1", **fields: object) -> None:
        mount = ops_pb2.Mount(dest="/", resultID=await self.tree())
        request = gateway_pb2.NewContainerRequest(ContainerID=name, Mounts=[mount], **fields)
        await self.call(methods.BRIDGE_NEW_CONTAINER, request)

    def stream(self) -> ClientStream:
        return self.connection.stream(methods.BRIDGE_EXEC_PROCESS, metadata=self.items)


@contextlib.asynccontextmanager
async def client(daemon: Daemon) -> AsyncIterator[Client]:
    connection = await Connection.open(daemon.address)
    build_id = uuid.uuid4().hex
    solving = asyncio.ensure_future(
        connection.unary(methods.CONTROL_SOLVE, control_pb2.SolveRequest(Ref=build_id))
    )
    try:
        yield Client(connection, build_id)
    finally:
        solving.cancel()
        await asyncio.gather(solving, return_exceptions=True)
        await connection.close()


def init(script: str, *, tty: bool = False, container: str = "c1", **fields: object):
    """Return an Init message for a shell script."""
    return gateway_pb2.InitMessage(
        ContainerID=container,
        Meta=ops_pb2.Meta(args=["/bin/busybox", "sh", "-c", script], env=PATH, cwd="/"),
        Fds=[0, 1, 2],
        Tty=tty,
        **fields,
    )


def message(name: str, **field: object) -> gateway_pb2.ExecMessage:
    return gateway_pb2.ExecMessage(ProcessID=name, **field)


class Seen:
    """What came of one process."""

    def __init__(self) -> None:
        self.out: dict[int, bytes] = {1: b"", 2: b""}
        self.kinds: list[str] = []
        self.exit: gateway_pb2.ExitMessage | None = None

    @property
    def text(self) -> str:
        return self.out[1].decode()


async def collect(stream: ClientStream, *, until: str = "Done", text: bytes = b"") -> Seen:
    """Read messages until one of a kind, or until the output holds ``text``."""
    seen = Seen()
    async with asyncio.timeout(TIMEOUT_S):
        while (item := await stream.recv()) is not None:
            kind = item.WhichOneof("Input")
            seen.kinds.append(kind)
            if kind == "File" and not item.File.EOF:
                seen.out[item.File.Fd] += item.File.Data
                if text and text in seen.out[1]:
                    return seen
            if kind == "Exit":
                seen.exit = item.Exit
            if kind == until and not text:
                return seen
    raise AssertionError(f"the stream ended: {seen.kinds}")


def test_output_exit_code_and_input(daemon: Daemon) -> None:
    async def scenario() -> None:
        async with client(daemon) as made:
            await made.container(hostname="inside")
            async with made.stream() as stream:
                await stream.send(
                    message("p1", Init=init("busybox hostname; cat; echo bad >&2; exit 7"))
                )
                await stream.send(message("p1", File=gateway_pb2.FdMessage(Fd=0, Data=b"fed\n")))
                await stream.send(message("p1", File=gateway_pb2.FdMessage(Fd=0, EOF=True)))
                seen = await collect(stream)
            assert seen.kinds[0] == "Started"
            assert seen.out == {1: b"inside\nfed\n", 2: b"bad\n"}
            assert seen.exit is not None
            assert seen.exit.Code == 7
            assert "exit code: 7" in seen.exit.Error.message

    asyncio.run(scenario())


def test_a_second_process_runs_inside_the_first_ones_container(daemon: Daemon) -> None:
    async def scenario() -> None:
        async with client(daemon) as made:
            await made.container()
            async with made.stream() as stream:
                await stream.send(message("p1", Init=init("echo ready > /f; echo up; cat")))
                await collect(stream, text=b"up")
                await stream.send(message("p2", Init=init("cat /f; kill -0 1 && echo alive")))
                seen = await collect(stream)
                assert seen.text == "ready\nalive\n"
                assert seen.exit is not None
                assert seen.exit.Code == 0
                answer = await made.call(
                    methods.BRIDGE_READ_FILE_CONTAINER,
                    gateway_pb2.ReadFileRequest(Ref="c1", FilePath="/f"),
                )
                assert answer.Data == b"ready\n"
                await stream.send(message("p1", File=gateway_pb2.FdMessage(Fd=0, EOF=True)))
                assert (await collect(stream)).exit is not None

    asyncio.run(scenario())


def test_a_second_process_waits_until_the_container_is_up(daemon: Daemon) -> None:
    async def scenario() -> None:
        async with client(daemon) as made:
            await made.container()
            async with made.stream() as stream:
                await stream.send(message("p1", Init=init("exec busybox sleep 7779")))
                for name in ("p2", "p3"):
                    await stream.send(message(name, Init=init("echo inside", tty=name == "p3")))
                seen = [await collect(stream), await collect(stream)]
            assert sum(item.text.count("inside") for item in seen) == 2
            assert [item.exit.Code for item in seen if item.exit is not None] == [0, 0]

    asyncio.run(scenario())


def test_terminal_with_size_and_signals(daemon: Daemon) -> None:
    async def scenario() -> None:
        async with client(daemon) as made:
            await made.container()
            script = "echo started; read x; busybox stty size; read y; echo got $y; sleep 60"
            async with made.stream() as stream:
                await stream.send(message("p1", Init=init(script, tty=True)))
                await collect(stream, text=b"started")
                await stream.send(
                    message("p1", Resize=gateway_pb2.ResizeMessage(Rows=33, Cols=99))
                )
                await stream.send(message("p1", File=gateway_pb2.FdMessage(Fd=0, Data=b"\n")))
                await collect(stream, text=b"33 99")
                await stream.send(message("p1", File=gateway_pb2.FdMessage(Fd=0, Data=b"it\n")))
                await collect(stream, text=b"got it")
                await stream.send(message("p1", Signal=gateway_pb2.SignalMessage(Name="KILL")))
                seen = await collect(stream)
            assert seen.exit is not None
            assert seen.exit.Code == 137

    asyncio.run(scenario())


def test_a_stuck_client_makes_the_process_wait(daemon: Daemon) -> None:
    """Nobody reads: the daemon keeps a little, the process waits; another client goes on."""

    async def scenario() -> None:
        async with client(daemon) as stuck, client(daemon) as other:
            await stuck.container()
            async with stuck.stream() as stream:
                await stream.send(message("p1", Init=init("exec busybox yes")))
                await other.container()
                async with other.stream() as second:
                    await second.send(message("p1", Init=init("echo fine")))
                    assert (await collect(second)).text == "fine\n"
                stream.cancel()

    before = memory_kib(daemon)
    asyncio.run(scenario())
    assert memory_kib(daemon) - before < 64 << 10


def memory_kib(daemon: Daemon) -> int:
    assert daemon.process is not None
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


def test_everything_ends_with_the_build(daemon: Daemon) -> None:
    async def scenario() -> None:
        async with client(daemon) as made:
            await made.container()
            async with made.stream() as stream:
                await stream.send(message("p1", Init=init("echo up; exec busybox sleep 7777")))
                await collect(stream, text=b"up")
                wait_until(lambda: bool(sleepers()), "the process runs")
                stream.cancel()

    asyncio.run(scenario())
    wait_until(lambda: not sleepers(), "the process has ended")
    wait_until(lambda: not mounts(daemon), "its root is unmounted")


def mounts(daemon: Daemon) -> list[str]:
    assert daemon.process is not None
    lines = Path(f"/proc/{daemon.process.pid}/mountinfo").read_text().splitlines()
    return [line for line in lines if f"{daemon.root}/run/mnt" in line]


def sleepers() -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if b"sleep\x007777" in (entry / "cmdline").read_bytes():
                    found.append(entry.name)
    return found


def test_what_a_build_may_not_have_is_refused(daemon: Daemon) -> None:
    async def scenario() -> None:
        async with client(daemon) as made:
            await made.container("c0", Network=ops_pb2.NetMode.HOST)
            async with made.stream() as stream:
                await stream.send(message("p1", Init=init("true", container="c0")))
                ended = (await collect(stream)).exit
                assert ended is not None
                assert "network.host is not allowed" in ended.Error.message
            await made.container()
            async with made.stream() as stream:
                wanted = init("true", Security=ops_pb2.SecurityMode.INSECURE)
                await stream.send(message("p1", Init=wanted))
                ended = (await collect(stream)).exit
                assert ended is not None
                assert ended.Code == 255
                assert ended.Error.code == StatusCode.PERMISSION_DENIED
                assert "security.insecure" in ended.Error.message
            await made.container("c2")
            async with made.stream() as stream:
                wanted = init("true", container="c2")
                wanted.Security = 7  # type: ignore[assignment] - a mode that is none
                await stream.send(message("p1", Init=wanted))
                ended = (await collect(stream)).exit
                assert ended is not None
                assert "invalid security mode 7" in ended.Error.message
            async with made.stream() as stream:
                await stream.send(message("p1", Init=init("true", container="other")))
                with pytest.raises(RpcError) as missing:
                    await collect(stream)
            assert missing.value.status is StatusCode.NOT_FOUND
            for name in ("c0", "c1", "c2"):
                release = gateway_pb2.ReleaseContainerRequest(ContainerID=name)
                await made.call(methods.BRIDGE_RELEASE_CONTAINER, release)
            assert not mounts(daemon)

    asyncio.run(scenario())


def test_a_shell_opens_in_the_state_of_a_failed_command(daemon: Daemon) -> None:
    """The error names the trees that the command left; containers mount them."""

    async def scenario() -> None:
        async with client(daemon) as made:
            state = (
                State()
                .file(mkdir("/bin"))
                .file(mkfile("/bin/busybox", BUSYBOX, mode=0o755))
                .run(["/bin/busybox", "sh", "-c", "echo half > /half; exit 9"])
            )
            with pytest.raises(RpcError) as failed:
                await made.call(
                    methods.BRIDGE_SOLVE,
                    gateway_pb2.SolveRequest(
                        Definition=state.root.marshal(), allowResultReturn=True, Evaluate=True
                    ),
                )
            facts = [errdetails.unpack(detail) for detail in failed.value.details]
            fact = next(item for item in facts if isinstance(item, errdefs_pb2.Solve))
            assert fact.op.exec.meta.args[-1].startswith("echo half")
            request = gateway_pb2.NewContainerRequest(ContainerID="c1")
            request.Mounts.add(dest="/", resultID=fact.mountIDs[0])
            await made.call(methods.BRIDGE_NEW_CONTAINER, request)
            async with made.stream() as stream:
                await stream.send(message("p1", Init=init("busybox cat /half")))
                assert (await collect(stream)).text == "half\n"
            request = gateway_pb2.NewContainerRequest(ContainerID="c2")
            request.Mounts.add(dest="/", resultID=fact.inputIDs[0])
            await made.call(methods.BRIDGE_NEW_CONTAINER, request)
            async with made.stream() as stream:
                await stream.send(message("p1", Init=init("busybox ls /", container="c2")))
                assert "half" not in (await collect(stream)).text

    asyncio.run(scenario())
    wait_until(lambda: not mounts(daemon), "nothing stays mounted")


def test_a_failed_file_step_is_named_with_the_action_or_the_input(daemon: Daemon) -> None:
    """Debuggers stop at the step that failed, whatever it was."""

    async def failed(made: Client, state: State) -> errdefs_pb2.Solve:
        with pytest.raises(RpcError) as error:
            await made.call(
                methods.BRIDGE_SOLVE,
                gateway_pb2.SolveRequest(
                    Definition=state.marshal(), allowResultReturn=True, Evaluate=True
                ),
            )
        facts = [errdetails.unpack(detail) for detail in error.value.details]
        (fact,) = (item for item in facts if isinstance(item, errdefs_pb2.Solve))
        return fact

    async def scenario() -> None:
        async with client(daemon) as made:
            tree = State().file(mkdir("/folder")).file(mkfile("/file", b""))
            action = await failed(made, tree.file(mkdir("/there")).file(mkdir("/file/below")))
            assert action.op.file.actions[-1].mkdir.path == "/file/below"
            assert action.WhichOneof("subject") == "file"
            content = await failed(made, State().copy(tree, "/absent", "/"))
            assert content.op.file.actions[0].copy.src == "/absent"
            assert content.WhichOneof("subject") == "cache"
            request = gateway_pb2.NewContainerRequest(ContainerID="c1")
            request.Mounts.add(dest="/", resultID=content.inputIDs[0])
            await made.call(methods.BRIDGE_NEW_CONTAINER, request)

    asyncio.run(scenario())
    wait_until(lambda: not mounts(daemon), "nothing stays mounted")


def test_a_container_with_running_processes_is_released(daemon: Daemon) -> None:
    """They end as cancelled ones, and whoever released them is told."""

    async def scenario() -> None:
        async with client(daemon) as made:
            await made.container()
            async with made.stream() as stream:
                await stream.send(message("p1", Init=init("echo up; exec busybox sleep 7780")))
                await collect(stream, text=b"up")
                release = gateway_pb2.ReleaseContainerRequest(ContainerID="c1")
                with pytest.raises(RpcError) as released:
                    await made.call(methods.BRIDGE_RELEASE_CONTAINER, release)
                assert released.value.status is StatusCode.CANCELLED
                ended = (await collect(stream)).exit
            assert ended is not None
            assert ended.Error.message == "context canceled"
            assert not mounts(daemon)

    asyncio.run(scenario())


async def failed(made: Client, state: State) -> errdefs_pb2.Solve:
    """Solve what fails and return what the error says of it."""
    request = gateway_pb2.SolveRequest(
        Definition=state.marshal(), allowResultReturn=True, Evaluate=True
    )
    with pytest.raises(RpcError) as failure:
        await made.call(methods.BRIDGE_SOLVE, request)
    facts = [errdetails.unpack(detail) for detail in failure.value.details]
    return next(item for item in facts if isinstance(item, errdefs_pb2.Solve))


async def seen_in(made: Client, tree: str, script: str) -> str:
    """Run a script with one tree at /seen and return its output."""
    request = gateway_pb2.NewContainerRequest(ContainerID=uuid.uuid4().hex)
    request.Mounts.add(dest="/", resultID=await made.tree())
    request.Mounts.add(dest="/seen", resultID=tree)
    await made.call(methods.BRIDGE_NEW_CONTAINER, request)
    async with made.stream() as stream:
        wanted = init(script, container=request.ContainerID)
        await stream.send(message("p1", Init=wanted))
        return (await collect(stream)).text


def test_what_a_failed_file_operation_had_made(daemon: Daemon) -> None:
    async def scenario() -> None:
        async with client(daemon) as made:
            actions = mkdir("/found").then(mkfile("/found/a", b"whole"))
            actions = actions.then(mkfile("/missing/b", b""))
            fact = await failed(made, State().file(actions))
            assert fact.file.index == 2
            assert len(fact.mountIDs) == 3
            assert await seen_in(made, fact.mountIDs[2], "busybox cat /seen/found/a") == "whole"

    asyncio.run(scenario())


def test_what_a_failed_command_wrote_to_a_mount_without_output(daemon: Daemon) -> None:
    async def scenario() -> None:
        async with client(daemon) as made:
            base = State().file(mkdir("/bin")).file(mkfile("/bin/busybox", BUSYBOX, mode=0o755))
            script = "echo half > /rw/half; exit 9"
            step = base.run(
                ["/bin/busybox", "sh", "-c", script], mounts=[Mount("/rw", no_output=True)]
            )
            fact = await failed(made, step.root)
            assert [mount.output for mount in fact.op.exec.mounts] == [0, -1]
            assert await seen_in(made, fact.mountIDs[1], "busybox cat /seen/half") == "half\n"

    asyncio.run(scenario())


def test_nothing_is_an_empty_folder(daemon: Daemon) -> None:
    async def scenario() -> None:
        async with client(daemon) as made:
            base = State().file(mkdir("/x"))
            request = gateway_pb2.SolveRequest(
                Definition=diff(base, base).marshal(), allowResultReturn=True
            )
            request.allowResultArrayRef = True
            ref = (await made.call(methods.BRIDGE_SOLVE, request)).result.ref.id
            listed = await made.call(
                methods.BRIDGE_READ_DIR, gateway_pb2.ReadDirRequest(Ref=ref, DirPath="/")
            )
            assert not listed.entries
            with pytest.raises(RpcError, match="/f"):
                await made.call(
                    methods.BRIDGE_READ_FILE, gateway_pb2.ReadFileRequest(Ref=ref, FilePath="/f")
                )
            with pytest.raises(RpcError, match="no buildid found in context"):
                await made.connection.unary(methods.BRIDGE_PING, gateway_pb2.PingRequest())

    asyncio.run(scenario())
