"""Containers of frontends: ``NewContainer`` and the processes in it.

A container is a set of mounts, most of them results of the build, each writable in a copy of its
own. Its first process starts it; others run inside as long as that one does. Nothing of it is
kept. ``buildx build --invoke`` and debuggers work through these.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from boxwright.core.dataclass import dataclass, field, replace
from boxwright.core.workers import to_worker
from boxwright.engine.entitlements import NETWORK_HOST, SECURITY_INSECURE, check_modes
from boxwright.engine.errors import EntitlementError
from boxwright.errors import InvalidInputError, NotFoundError
from boxwright.executor.executor import Attached, Executor
from boxwright.executor.process import NetworkMode, ProcessSpec, SecurityMode
from boxwright.executor.streams import InputPipe, OutputPipe, TerminalPipe
from boxwright.executor.users import User, find_user
from boxwright.llb.exec_op import default_path
from boxwright.ops.execmounts import (
    MountPlanner,
    MountWorld,
    PreparedMounts,
    destination,
    load_secret,
)
from boxwright.ops.execop import environment, extra_host
from boxwright.session.manager import SessionGroup
from boxwright.snapshots.refs import ImmutableRef
from boxwright.wire.pb import gateway_pb2, ops_pb2


class ContainerGoneError(NotFoundError):
    """The container was released or never made, or its first process has ended."""

    def __init__(self, container_id: str) -> None:
        super().__init__(f'container "{container_id}" previously released or not created')
        self.container_id = container_id


@dataclass(frozen=True)
class ContainerHost:
    """Where containers come from; one per build.

    Attributes:
        granted: The entitlements of the build.
        sessions: Where secrets and ssh agents come from.
    """

    executor: Executor
    world: MountWorld
    sessions: SessionGroup
    granted: frozenset[str]


@dataclass
class Process:
    """One process in a container.

    Attributes:
        run_id: Its name in the executor.
        ended: Done when it has ended: None, or why it failed.
        stdin: Its standard input, if it was asked for.
        terminal: Its terminal, if it has one.
        outputs: Where its output comes from.
    """

    run_id: str
    ended: asyncio.Future[None]
    executor: Executor
    stdin: InputPipe | None = None
    terminal: TerminalPipe | None = None
    outputs: tuple[OutputPipe, ...] = ()

    def pause(self) -> None:
        """Take no output for now."""
        for pipe in self.outputs:
            pipe.pause()

    def resume(self) -> None:
        """Take output again."""
        for pipe in self.outputs:
            pipe.resume()

    async def write(self, data: bytes) -> None:
        """Feed standard input; what a process does not want any more is dropped."""
        with contextlib.suppress(OSError):
            if self.terminal is not None:
                await self.terminal.write(data)
            elif self.stdin is not None:
                await self.stdin.write(data)

    def close_input(self) -> None:
        """End standard input."""
        if self.stdin is not None:
            self.stdin.close()

    async def signal(self, number: int) -> None:
        """Send a signal to the process."""
        if not self.ended.done():
            await self.executor.signal(self.run_id, number)

    async def resize(self, rows: int, columns: int) -> None:
        """Set the size of its terminal."""
        if self.terminal is not None and not self.ended.done():
            self.terminal.resize(rows, columns)
            await self.executor.resize(self.run_id, rows, columns)


@dataclass(frozen=True)
class Wanted:
    """A process to start; sinks take its output."""

    message: gateway_pb2.InitMessage
    stdout: Callable[[bytes], None]
    stderr: Callable[[bytes], None]


@dataclass
class Container:
    """Mounts that are there, and processes in them. Closed by who made it."""

    host: ContainerHost
    request: gateway_pb2.NewContainerRequest
    prepared: PreparedMounts
    _stack: AsyncExitStack
    _run_id: str = field(default_factory=lambda: f"gw-{secrets.token_hex(12)}")
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _first: asyncio.Task[None] | None = None
    _closed: bool = False

    @classmethod
    async def create(
        cls,
        host: ContainerHost,
        request: gateway_pb2.NewContainerRequest,
        trees: Mapping[str, ImmutableRef | None],
    ) -> Container:
        """Mount everything.

        Args:
            host: Of the build.
            request: What to mount.
            trees: The results that mounts name, borrowed for the time of the call.

        Raises:
            BoxwrightError: the mounts contradict each other, or can't be made.
        """
        stack = AsyncExitStack()
        try:
            mounts, inputs = await _own_inputs(request.Mounts, trees, stack)
            planner = MountPlanner(
                host.world, stack, stack, host.sessions, inputs, f"container {request.ContainerID}"
            )
            prepared = await planner.prepare(mounts, "/")
        except BaseException:
            await stack.aclose()
            raise
        return cls(host, request, prepared, stack)

    async def start(self, wanted: Wanted) -> Process:
        """Start a process: the first one starts the container.

        What is wrong with the process itself is its end, not an error of the call: clients wait
        for a process that they have asked for, and not for the end of the stream.

        Raises:
            ContainerGoneError: the container is no more.
        """
        if self._closed or (self._first is not None and self._first.done()):
            raise ContainerGoneError(self.request.ContainerID)
        is_first = self._first is None
        run_id = self._run_id if is_first else f"gwx-{secrets.token_hex(12)}"
        started = asyncio.Event()
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        process = Process(run_id, ended, self.host.executor)

        def has_pipes(out: OutputPipe, err: OutputPipe) -> None:
            process.outputs = (out, err)
            process.terminal = out if isinstance(out, TerminalPipe) else None

        wants_input = not wanted.message.Tty and 0 in wanted.message.Fds
        process.stdin = InputPipe() if wants_input else None
        attached = Attached(stdin=process.stdin, on_pipes=has_pipes, on_started=started.set)
        if is_first:
            running = self._run(run_id, wanted, attached, process)
        else:
            running = self._enter(run_id, wanted, attached, process)
        process.ended = task = asyncio.create_task(running, name=f"container process {run_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if is_first:
            self._first = task
        waiting = asyncio.ensure_future(started.wait())
        try:
            await asyncio.wait({waiting, process.ended}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        return process

    async def _run(
        self,
        run_id: str,
        wanted: Wanted,
        attached: Attached,
        process: Process,
    ) -> None:
        try:
            await self.host.executor.run(
                run_id,
                self.prepared.root,
                await self._spec(wanted.message),
                stdout=wanted.stdout,
                stderr=wanted.stderr,
                attached=attached,
            )
        finally:
            process.close_input()

    async def _enter(
        self,
        run_id: str,
        wanted: Wanted,
        attached: Attached,
        process: Process,
    ) -> None:
        try:
            spec = await self._spec(wanted.message)
            user = await to_worker(_find_user, self.prepared.root, spec.user)
            await self.host.executor.exec_in(
                self._run_id,
                replace(spec, mounts=()),
                exec_id=run_id,
                user=user,
                stdout=wanted.stdout,
                stderr=wanted.stderr,
                attached=attached,
            )
        finally:
            process.close_input()

    async def _spec(self, message: gateway_pb2.InitMessage) -> ProcessSpec:
        check_modes(self.request.Network, message.Security)
        security, network = SecurityMode(message.Security), NetworkMode(self.request.Network)
        for wanted, is_wanted in (
            (SECURITY_INSECURE, security is SecurityMode.INSECURE),
            (NETWORK_HOST, network is NetworkMode.HOST),
        ):
            if is_wanted and wanted not in self.host.granted:
                raise EntitlementError(wanted, by_daemon=False)
        meta, request = message.Meta, self.request
        if not meta.args:
            raise InvalidInputError("a process needs a command")
        env = environment(meta)
        if request.platform.OS == "windows" and not any(e.startswith("PATH=") for e in meta.env):
            env.append(f"PATH={default_path('windows')}")  # the later one counts
        for secret in message.secretenv:
            data = await load_secret(self.host.sessions, secret.ID, optional=secret.optional)
            env.append(f"{secret.name}={(data or b'').decode('utf-8', 'surrogateescape')}")
        if message.Tty and not any(item.startswith("TERM=") for item in env):
            env.append("TERM=xterm")
        return ProcessSpec(
            args=tuple(meta.args),
            env=tuple(env),
            cwd=meta.cwd or "/",
            user=meta.user,
            tty=message.Tty,
            hostname=request.hostname,
            extra_hosts=tuple(extra_host(host) for host in request.extraHosts),
            network=network,
            security=security,
            read_only_root=self.prepared.read_only_root,
            remove_mount_stubs_recursive=meta.removeMountStubsRecursive,
            mounts=self.prepared.mounts,
        )

    def folder(self, index: int) -> Path:
        """Return where the mount number ``index`` of the request lies on this machine.

        Raises:
            NotFoundError: there is none, or it is no folder of the machine.
        """
        if not 0 <= index < len(self.request.Mounts):
            raise NotFoundError(f"container has no mount {index}")
        dest = self.request.Mounts[index].dest
        if dest == "/":
            return self.prepared.root
        for mount in self.prepared.mounts:
            source = getattr(mount, "source", None)
            if mount.dest == destination(dest, "/") and isinstance(source, Path):
                return source
        raise NotFoundError(f"mount {dest} can't be read")

    async def close(self) -> bool:
        """Kill all processes, unmount, forget what was written; return whether any was killed."""
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._stack.aclose()
        return bool(tasks)


async def _own_inputs(
    mounts: Sequence[ops_pb2.Mount],
    trees: Mapping[str, ImmutableRef | None],
    stack: AsyncExitStack,
) -> tuple[list[ops_pb2.Mount], list[ImmutableRef | None]]:
    """Return the mounts with inputs by number, and those inputs, held by ``stack``."""
    made: list[ops_pb2.Mount] = []
    inputs: list[ImmutableRef | None] = []
    for mount in mounts:
        copy = ops_pb2.Mount(
            dest=mount.dest,
            selector=mount.selector,
            readonly=mount.readonly,
            mountType=mount.mountType,
            input=-1,
            output=-1,
        )
        if mount.HasField("cacheOpt"):
            copy.cacheOpt.CopyFrom(mount.cacheOpt)
        if mount.HasField("secretOpt"):
            copy.secretOpt.CopyFrom(mount.secretOpt)
        if mount.HasField("SSHOpt"):
            copy.SSHOpt.CopyFrom(mount.SSHOpt)
        if mount.HasField("TmpfsOpt"):
            copy.TmpfsOpt.CopyFrom(mount.TmpfsOpt)
        tree = trees.get(mount.resultID)
        if tree is not None:
            held = tree.clone()
            stack.push_async_callback(held.release)
            copy.input = len(inputs)
            inputs.append(held)
        made.append(copy)
    return made, inputs


def _find_user(root: Path, text: str) -> User:
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return find_user(root_fd, text)
    finally:
        os.close(root_fd)
