"""A command that failed, while its build still waits: processes can be started where it stopped.

The daemon names the trees that the command left (``errdefs.Solve``); a container mounts them as
the command had them mounted (``NewContainer``, ``ExecProcess``).
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from boxwright.core.dataclass import dataclass
from boxwright.errors import BoxwrightError
from boxwright.wire import errdetails
from boxwright.wire.pb import errdefs_pb2, gateway_pb2, ops_pb2

if TYPE_CHECKING:
    from boxwright.client.transport import ProcessStream, Transport

_STDIN, _STDOUT, _STDERR = 0, 1, 2
_UNKNOWN_EXIT = 255
_PROCESS = "shell"
_SHELLS = frozenset(("sh", "bash", "ash", "dash", "zsh"))
_MOUNTED_BY_ID = frozenset((ops_pb2.MountType.BIND, ops_pb2.MountType.CACHE))


@dataclass(frozen=True, slots=True)
class Keys:
    """What goes to a process.

    Attributes:
        data: Its standard input; None says that it ends.
        rows: With ``columns``: the new size of its terminal.
    """

    data: bytes | None = None
    rows: int = 0
    columns: int = 0


class FailedStep:
    """The state of a failed command; valid until the hook that it is given to returns."""

    def __init__(
        self, transport: Transport, build_id: str, fact: errdefs_pb2.Solve, error: BoxwrightError
    ) -> None:
        self._transport = transport
        self._build_id = build_id
        self._fact = fact
        self.error = error

    @property
    def command(self) -> list[str]:
        """The arguments of the command."""
        return list(self._fact.op.exec.meta.args)

    @property
    def shell(self) -> list[str]:
        """The shell that ran the command, else the usual one."""
        return self.command[:1] if self._is_shell_form else ["/bin/sh"]

    @property
    def text(self) -> str:
        """The command as its author wrote it."""
        return " ".join(self.command[2:] if self._is_shell_form else self.command)

    @property
    def _is_shell_form(self) -> bool:
        args = self.command
        named = args[0].rpartition("/")[2] if args else ""
        return len(args) > 2 and args[1].startswith("-") and named in _SHELLS

    async def run(
        self,
        argv: list[str],
        keys: AsyncIterator[Keys],
        on_output: Callable[[int, bytes], None],
        *,
        is_terminal: bool,
    ) -> int:
        """Run a process in the command's place and return its exit code.

        Args:
            argv: What to run.
            keys: Its input.
            on_output: Called with 1 or 2, and what the process wrote.
            is_terminal: Whether it gets a terminal.

        Raises:
            BoxwrightError: it can't be started.
        """
        name = uuid.uuid4().hex
        await self._transport.gateway_container(self._build_id, self._container(name))
        step = self._fact.op.exec
        outputs = {_STDOUT} if is_terminal else {_STDOUT, _STDERR}
        init = gateway_pb2.InitMessage(
            ContainerID=name,
            Fds=[_STDIN, *sorted(outputs)],
            Tty=is_terminal,
            Security=step.security,
            secretenv=step.secretenv,
        )
        init.Meta.CopyFrom(step.meta)
        del init.Meta.args[:]
        init.Meta.args.extend(argv)
        init.Meta.ClearField("validExitCodes")
        async with self._transport.gateway_processes(self._build_id) as stream:
            await stream.send(gateway_pb2.ExecMessage(ProcessID=_PROCESS, Init=init))
            feeding = asyncio.ensure_future(_feed(stream, keys))
            try:
                return await _follow(stream, outputs, on_output)
            finally:
                feeding.cancel()
                await asyncio.gather(feeding, return_exceptions=True)

    def _container(self, name: str) -> gateway_pb2.NewContainerRequest:
        step = self._fact.op.exec
        request = gateway_pb2.NewContainerRequest(
            ContainerID=name,
            Network=step.network,
            extraHosts=step.meta.extraHosts,
            hostname=step.meta.hostname,
        )
        if self._fact.op.HasField("platform"):
            request.platform.CopyFrom(self._fact.op.platform)
        for mount, tree in zip(step.mounts, self._fact.mountIDs, strict=False):
            mounted = request.Mounts.add()
            mounted.CopyFrom(mount)
            mounted.input = -1
            mounted.output = 0
            if mount.mountType in _MOUNTED_BY_ID:
                mounted.resultID = tree
        return request


def failed_step(transport: Transport, build_id: str, error: BoxwrightError) -> FailedStep | None:
    """Return the command that ``error`` is about, if its state was kept."""
    for detail in getattr(error, "rpc_details", None) or getattr(error, "details", None) or ():
        fact = errdetails.unpack(detail)
        if isinstance(fact, errdefs_pb2.Solve) and fact.op.HasField("exec") and fact.mountIDs:
            return FailedStep(transport, build_id, fact, error)
    return None


async def _feed(stream: ProcessStream, keys: AsyncIterator[Keys]) -> None:
    async for each in keys:
        message = gateway_pb2.ExecMessage(ProcessID=_PROCESS)
        if each.rows:
            message.Resize.Rows, message.Resize.Cols = each.rows, each.columns
        elif each.data is None:
            message.File.Fd, message.File.EOF = _STDIN, True
        else:
            message.File.Fd, message.File.Data = _STDIN, each.data
        await stream.send(message)


async def _follow(
    stream: ProcessStream, outputs: set[int], on_output: Callable[[int, bytes], None]
) -> int:
    """Return the exit code when all output has come.

    ``Done`` may come never: BuildKit's daemon waits with it for the end of standard input.
    """
    code: int | None = None
    while outputs or code is None:
        message = await stream.recv()
        match message.WhichOneof("Input") if message is not None else "Done":
            case "File" if message is not None:
                if message.File.Data:
                    on_output(message.File.Fd, message.File.Data)
                if message.File.EOF:
                    outputs.discard(message.File.Fd)
            case "Exit" if message is not None:
                code = message.Exit.Code
            case "Done":
                break
    return _UNKNOWN_EXIT if code is None else code
