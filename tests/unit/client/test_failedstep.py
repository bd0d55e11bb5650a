"""The state of a failed command, from a daemon that answers what the test scripts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from boxwright.client.failedstep import FailedStep, Keys, failed_step
from boxwright.client.transport import BUILD_ID, GrpcTransport
from boxwright.wire import errdetails, methods
from boxwright.wire.pb import errdefs_pb2, gateway_pb2, ops_pb2
from boxwright.wire.server import Server
from boxwright.wire.status import RpcError, StatusCode


def solve_fact(*args: str) -> errdefs_pb2.Solve:
    """Return what a daemon says of a failed command with three mounts."""
    fact = errdefs_pb2.Solve(mountIDs=["tree", "", "kept"])
    step = fact.op.exec
    step.meta.args.extend(args)
    step.meta.env.append("A=b")
    step.meta.cwd = "/w"
    step.meta.validExitCodes.append(3)
    step.meta.hostname = "there"
    step.meta.extraHosts.add(Host="other", IP="10.0.0.1")
    step.network = ops_pb2.NetMode.NONE
    step.mounts.add(dest="/", input=0, output=1)
    step.mounts.add(dest="/key", mountType=ops_pb2.MountType.SECRET, secretOpt={"ID": "key"})
    step.mounts.add(dest="/cache", mountType=ops_pb2.MountType.CACHE, selector="sub")
    return fact


def failure(*facts: errdefs_pb2.Solve) -> RpcError:
    return RpcError(StatusCode.UNKNOWN, "it failed", [errdetails.pack(fact) for fact in facts])


class Bridge:
    """A daemon with one container, whose process answers every input with itself."""

    def __init__(self, outputs: tuple[int, ...]) -> None:
        self.outputs = outputs
        self.asked: list[tuple[str, gateway_pb2.NewContainerRequest]] = []
        self.received: list[gateway_pb2.ExecMessage] = []
        self.server = Server()
        self.server.add(methods.BRIDGE_NEW_CONTAINER, self.new_container)
        self.server.add(methods.BRIDGE_EXEC_PROCESS, self.exec_process)

    async def new_container(self, request, context):
        self.asked.append((context.metadata.get(BUILD_ID), request))
        return gateway_pb2.NewContainerResponse()

    async def end(self, stream, name: str) -> None:
        """Say that all is over: BuildKit's daemon does not always end with Done."""
        for fd in self.outputs:
            last = gateway_pb2.ExecMessage(ProcessID=name)
            last.File.Fd, last.File.Data, last.File.EOF = fd, b"end", True
            await stream.send(last)
        if not self.outputs:
            done = gateway_pb2.ExecMessage(ProcessID=name)
            done.Done.SetInParent()
            await stream.send(done)

    async def exec_process(self, stream, context):
        while (message := await stream.recv()) is not None:
            self.received.append(message)
            made = gateway_pb2.ExecMessage(ProcessID=message.ProcessID)
            match message.WhichOneof("Input"):
                case "Init":
                    made.Started.SetInParent()
                case "File" if not message.File.EOF:
                    made.File.Fd, made.File.Data = 1, message.File.Data
                case "File":
                    made.Exit.Code = 7
                    await stream.send(made)
                    await self.end(stream, message.ProcessID)
                    continue
                case _:
                    continue
            await stream.send(made)


async def keys() -> AsyncIterator[Keys]:
    yield Keys(rows=5, columns=6)
    yield Keys(b"typed")
    yield Keys()


def run(tmp_path: Path, fact: errdefs_pb2.Solve, *outputs: int, is_terminal: bool = False):
    bridge, output = Bridge(outputs), []

    async def main() -> int:
        address = await bridge.server.listen(f"unix://{tmp_path}/socket")
        transport = await GrpcTransport.open(address)
        try:
            step = failed_step(transport, "build1", failure(fact))
            assert step is not None
            return await step.run(
                step.shell,
                keys(),
                lambda fd, data: output.append((fd, data)),
                is_terminal=is_terminal,
            )
        finally:
            await transport.close()
            await bridge.server.shutdown(0)

    return asyncio.run(main()), bridge, output


def test_a_process_takes_the_commands_place(tmp_path: Path) -> None:
    code, bridge, output = run(tmp_path, solve_fact("/bin/bash", "-c", "make all"))
    assert code == 7
    assert output == [(1, b"typed")]
    ((build_id, container),) = bridge.asked
    assert build_id == "build1"
    assert [(m.dest, m.resultID, m.input, m.selector) for m in container.Mounts] == [
        ("/", "tree", -1, ""),
        ("/key", "", -1, ""),
        ("/cache", "kept", -1, "sub"),
    ]
    assert container.hostname == "there"
    assert container.extraHosts[0].Host == "other"
    assert container.Network == ops_pb2.NetMode.NONE
    init = bridge.received[0].Init
    assert init.ContainerID == container.ContainerID
    assert (list(init.Meta.args), init.Meta.cwd) == (["/bin/bash"], "/w")
    assert list(init.Meta.env) == ["A=b"]
    assert not init.Meta.validExitCodes
    assert (list(init.Fds), init.Tty) == ([0, 1, 2], False)
    assert (bridge.received[1].Resize.Rows, bridge.received[1].Resize.Cols) == (5, 6)


def test_output_after_the_exit_is_taken(tmp_path: Path) -> None:
    code, _, output = run(tmp_path, solve_fact("/bin/true"), 2, 1)
    assert code == 7
    assert output == [(1, b"typed"), (2, b"end"), (1, b"end")]


def test_a_terminal_has_one_stream_of_output(tmp_path: Path) -> None:
    code, bridge, output = run(tmp_path, solve_fact("/bin/true"), 1, is_terminal=True)
    assert code == 7
    assert output == [(1, b"typed"), (1, b"end")]
    init = bridge.received[0].Init
    assert (list(init.Fds), init.Tty) == ([0, 1], True)


@pytest.mark.parametrize(
    ("args", "shell", "text"),
    [
        (("/bin/sh", "-c", "a && b"), ["/bin/sh"], "a && b"),
        (("bash", "-euxc", "a"), ["bash"], "a"),
        (("/bin/sh", "/script"), ["/bin/sh"], "/bin/sh /script"),
        (("/tool", "-c", "file"), ["/bin/sh"], "/tool -c file"),
        ((), ["/bin/sh"], ""),
    ],
    ids=["sh", "bash", "script", "tool", "nothing"],
)
def test_the_shell_and_the_command(args: tuple[str, ...], shell: list[str], text: str) -> None:
    error = failure()
    step = FailedStep(None, "b", solve_fact(*args), error)  # type: ignore[arg-type] - not used
    assert step.shell == shell
    assert step.text == text


def test_other_failures_leave_nothing_to_look_into() -> None:
    copied = errdefs_pb2.Solve(mountIDs=["x"])
    copied.op.file.SetInParent()
    gone = solve_fact("/bin/sh")
    del gone.mountIDs[:]
    for fact in (copied, gone):
        assert failed_step(None, "b", failure(fact)) is None  # type: ignore[arg-type] - not used
    assert failed_step(None, "b", failure()) is None  # type: ignore[arg-type] - not used
