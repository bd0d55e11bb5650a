"""Runs the processes of steps: root file system in, exit status and complete output out.

The :class:`Executor` owns one sandbox supervisor, starts it in the background when opened and
again when it was killed. Any number of runs go on at once. Nothing of a run lies on a disk: its
configuration, name-resolution files and secrets travel to the supervisor's private tmpfs.

A crash leaves at most empty control groups, which :meth:`Executor.open` removes.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from boxwright.core.dataclass import dataclass
from boxwright.core.workers import to_worker
from boxwright.errors import InvalidInputError
from boxwright.executor import bpf, capabilities, hosts, rootfs, runtime, seccomp
from boxwright.executor.cdi import CdiRegistry, Device, inject
from boxwright.executor.errors import RuntimeFailedError
from boxwright.executor.host import locked_flags, read_host_facts
from boxwright.executor.hosts import Dns
from boxwright.executor.link import Outcome, RunRequest, SandboxFile, SupervisorLink
from boxwright.executor.networks import Networks
from boxwright.executor.outcome import interpret
from boxwright.executor.process import (
    BindMount,
    DataMount,
    ExitStatus,
    NetworkMode,
    ProcessSpec,
    WantedDevice,
)
from boxwright.executor.spec import (
    HostFacts,
    Json,
    PlannedMount,
    SpecInputs,
    dedupe_env,
    plan_spec,
)
from boxwright.executor.streams import InputPipe, OutputPipe, Sink, TerminalPipe
from boxwright.executor.users import User
from boxwright.sandbox import cgroups, protocol

_log = logging.getLogger(__name__)

_HOSTS = "hosts"
_RESOLV_CONF = "resolv.conf"
_PROBE_ROOT = "probe"
_PROBE_FOLDERS = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/nix/store", "/gnu/store")


@dataclass(frozen=True, slots=True)
class ExecutorConfig:
    """Where the executor works and what it may use.

    Attributes:
        run_dir: An existing folder of this engine alone; a tmpfs is mounted on ``run_dir/sandbox``
            in the supervisor's mount namespace.
        runtimes: Names or paths of OCI runtimes, best first.
        cgroups: Whether control groups may be made at all.
        cgroup_parent: Where they go for steps that name no parent; empty is the hierarchy's root.
        networks: The network of steps that name none; the executor closes it.
        dns: What of the machine's resolver configuration is replaced.
        cdi: The devices that steps may ask for.
        shares_processes: Steps see and reach the engine's processes; where ``/proc`` can't be
            mounted there is no other way.
        apparmor_profile: What confines steps further; the kernel must have AppArmor.
    """

    run_dir: Path
    runtimes: Sequence[str] = runtime.CANDIDATES
    cgroups: bool = True
    cgroup_parent: str = ""
    networks: Networks | None = None
    dns: Dns = Dns()
    cdi: CdiRegistry | None = None
    shares_processes: bool = False
    apparmor_profile: str = ""


@dataclass(frozen=True, slots=True)
class Attached:
    """What a process is connected to besides its output sinks.

    Attributes:
        stdin: A pipe whose other end the caller feeds; nothing by default.
        channel: A socket that is stdin and stdout of the process, -1 for none. The caller
            closes its copy when the process was started.
        on_pipes: Called with stdout and stderr before the process starts; with a tty both are
            the same :class:`TerminalPipe`.
        on_started: Called once when the runtime was started.
        is_stoppable: :meth:`Executor.watch_disk` may stop it; its caller sees to its resumption.
    """

    stdin: InputPipe | None = None
    channel: int = -1
    on_pipes: Callable[[OutputPipe, OutputPipe], None] | None = None
    on_started: Callable[[], None] | None = None
    is_stoppable: bool = False


@dataclass(frozen=True, slots=True)
class _Ready:
    """What a live supervisor and a probed runtime give."""

    link: SupervisorLink
    runtime: runtime.Runtime
    host: HostFacts


class Executor:
    """Starts processes in sandboxes; used from one event loop, closed by who opened it."""

    def __init__(self, config: ExecutorConfig) -> None:
        self._config = config
        key = hashlib.sha256(os.fsencode(config.run_dir.absolute())).hexdigest()[:12]
        self._cgroup_name = f"boxwright-{key}"
        self._base = config.run_dir / "sandbox"
        self._seccomp = seccomp.plan_seccomp(capabilities.DEFAULT)
        self._annotations: dict[str, str] = {}
        self._runtime: runtime.Runtime | None = None
        self._host = HostFacts()
        self._link: SupervisorLink | None = None
        self._starting: asyncio.Task[_Ready] | None = None
        self._networks = config.networks or Networks()
        self._devices = config.cdi or CdiRegistry(())
        self._closed = False
        self._on_low: Callable[[int], None] | None = None
        self._watch: tuple[str, int] | None = None

    @classmethod
    def open(cls, config: ExecutorConfig) -> Executor:
        """Return an executor that gets ready in the background; :meth:`ready` waits for it."""
        executor = cls(config)
        executor._starting = asyncio.create_task(executor._start(), name="sandbox start")
        return executor

    @property
    def network_mode(self) -> str:
        """What the network of steps is, for labels: ``host``, ``none`` or ``cni``."""
        return self._networks.mode

    @property
    def devices(self) -> CdiRegistry:
        """The devices that steps may ask for."""
        return self._devices

    @property
    def run_dir(self) -> Path:
        """The folder for what lives as long as a run: sockets, pinned mounts."""
        return self._config.run_dir

    async def ready(self) -> runtime.Runtime:
        """Wait until steps can run and return the runtime that runs them.

        Raises:
            RuntimeFailedError: no sandbox or no runtime works here; says why.
        """
        return (await self._get_ready()).runtime

    async def close(self) -> None:
        """Kill everything that runs and release the supervisor."""
        self._closed = True
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait([self._starting])
            if not self._starting.cancelled():
                self._starting.exception()
        if self._link is not None:
            await self._link.close()
        await self._networks.close()
        # Without a link too: those of an earlier process that was killed.
        await to_worker(self._remove_cgroups)

    async def run(
        self,
        run_id: str,
        root: Path,
        process: ProcessSpec,
        *,
        stdout: Sink,
        stderr: Sink,
        attached: Attached | None = None,
    ) -> ExitStatus:
        """Run ``process`` in the root file system ``root`` and wait for its end.

        Cancelling kills the process and everything it started before this returns.

        Args:
            run_id: Unique among running ones: letters, digits, ``-`` and ``_``.
            root: A writable folder that nobody else changes meanwhile.
            process: What to run.
            stdout: Called with every piece of output, in order, from the loop.
            stderr: The same for standard error; with a tty everything goes to ``stdout``.
            attached: Its other connections.

        Raises:
            ExecFailedError: its exit code is not one of the accepted ones.
            OutOfMemoryError: it was killed for memory.
            UserLookupError: its user does not exist.
            RuntimeFailedError: the sandbox failed.
        """
        ready = await self._get_ready()
        has_sys = not ready.host.user_namespace
        prepared = await to_worker(rootfs.prepare, os.fspath(root), process, has_sys=has_sys)
        try:
            outcome = await self._run_prepared(
                ready, run_id, root, process, prepared.user, stdout, stderr, attached
            )
        finally:
            await to_worker(rootfs.clean_stubs, os.fspath(root), prepared.stubs)
        return interpret(process, outcome)

    async def exec_in(
        self,
        run_id: str,
        process: ProcessSpec,
        *,
        exec_id: str,
        user: User,
        stdout: Sink,
        stderr: Sink,
        attached: Attached | None = None,
    ) -> ExitStatus:
        """Run another process inside the container ``run_id``, as soon as it is up.

        Raises:
            ExecFailedError: as :meth:`run`.
            RuntimeFailedError: the container does not run (any more).
        """
        ready = await self._get_ready()
        planned = {
            "terminal": process.tty,
            "user": {
                "uid": user.uid,
                "gid": user.gid,
                "additionalGids": list(dict.fromkeys((user.gid, *user.additional_gids))),
            },
            "args": list(process.args),
            "env": dedupe_env(process.env),
            "cwd": rootfs.working_folder(process),
            "capabilities": {
                name: list(capabilities.DEFAULT) for name in ("bounding", "effective", "permitted")
            },
            "noNewPrivileges": False,
        }
        file = SandboxFile("process.json", json.dumps(planned).encode())
        argv = ready.runtime.exec_argv(self._base, exec_id, run_id)
        outcome = await self._spawn(
            ready, exec_id, argv, [file], process, "", stdout, stderr, attached, after=run_id
        )
        return interpret(process, outcome)

    async def signal(self, run_id: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to the first process of a running container."""
        if self._link is not None:
            await self._link.kill(run_id, number)

    async def resize(self, run_id: str, rows: int, columns: int) -> None:
        """Set the size of a process's terminal, in characters."""
        if self._link is not None:
            await self._link.resize(run_id, rows & 0xFFFF, columns & 0xFFFF)

    async def watch_disk(self, path: Path, free_bytes: int, on_low: Callable[[int], None]) -> None:
        """Stop all stoppable processes, once, when the disk of ``path`` has less than this free.

        Args:
            path: Any path on that disk.
            free_bytes: The mark.
            on_low: Called with what is free when they were stopped; :meth:`resume` lets them go on.
        """
        self._watch, self._on_low = (os.fspath(path), free_bytes), on_low
        if self._link is not None:
            self._link.on_low = on_low
            await self._link.watch(*self._watch)

    async def resume(self, run_ids: Sequence[str] | None, free_bytes: int) -> None:
        """Let processes go on that :meth:`watch_disk` has stopped, and watch again.

        There is no moment in between in which nobody watches. While not all may go on, a stoppable
        process that is started later waits until it is named, too.

        Args:
            run_ids: Who may go on; ``None``: all.
            free_bytes: The next mark.
        """
        assert self._watch is not None, "nothing is watched"
        self._watch = self._watch[0], free_bytes
        if self._link is not None:
            await self._link.resume(*self._watch, run_ids)

    async def _get_ready(self) -> _Ready:
        while True:
            if self._closed:
                raise RuntimeFailedError("the executor is closed")
            task = self._starting
            if task is None or (task.done() and not _is_good(task)):
                task = asyncio.create_task(self._start(), name="sandbox start")
                self._starting = task
            ready = await asyncio.shield(task)
            if ready.link.is_alive:
                return ready

    async def _start(self) -> _Ready:
        self._base.mkdir(mode=0o711, parents=True, exist_ok=True)
        if self._link is not None:
            _log.warning("the sandbox supervisor ended unexpectedly; starting another")
            await self._link.close()
        try:
            async with asyncio.TaskGroup() as group:
                starting = group.create_task(
                    SupervisorLink.start(
                        self._base, shares_processes=self._config.shares_processes
                    )
                )
                facts = group.create_task(to_worker(self._read_host))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        self._link = link = starting.result()
        if self._watch is not None:
            link.on_low = self._on_low
            await link.watch(*self._watch)
        self._host = facts.result()
        if self._runtime is None:
            self._runtime = await runtime.probe(
                self._config.runtimes,
                cgroups_allowed=self._host.has_cgroups,
                try_one=self._probe_one,
            )
        host = self._host_for(self._runtime)
        return _Ready(link, self._runtime, host)

    def _read_host(self) -> HostFacts:
        host = read_host_facts(cgroups_allowed=self._config.cgroups)
        self._remove_cgroups()
        if self._seccomp is not None and not self._annotations:
            compiled = bpf.compile_filter(self._seccomp)
            if compiled is not None:
                self._annotations = {bpf.ANNOTATION: compiled}
        return host

    def _remove_cgroups(self) -> None:
        cgroups.remove(self._cgroup_base(""))

    def _host_for(self, chosen: runtime.Runtime) -> HostFacts:
        host = self._host
        return HostFacts(
            has_cgroups=chosen.uses_cgroups,
            cgroup_namespace=host.cgroup_namespace and chosen.uses_cgroups,
            user_namespace=host.user_namespace,
            maps_tty_group=host.maps_tty_group,
            capabilities=host.capabilities,
            shares_processes=self._config.shares_processes,
        )

    async def _probe_one(self, candidate: runtime.Runtime) -> Outcome:
        """Run the runtime's own ``--version`` in a sandbox, with this machine's programs."""
        assert self._link is not None
        ready = _Ready(self._link, candidate, self._host_for(candidate))
        root = self._config.run_dir / _PROBE_ROOT
        mounts = await to_worker(_probe_mounts, root, candidate.path)
        process = ProcessSpec(
            (candidate.path, "--version"), mounts=mounts, network=NetworkMode.HOST
        )
        said: list[bytes] = []
        outcome = await self._run_prepared(
            ready, "probe", root, process, User(), said.append, said.append, None
        )
        if outcome.code and not outcome.log:
            text = b"".join(said).decode("utf-8", "replace").strip()[-300:]
            entry = json.dumps({"level": "error", "msg": text})
            return Outcome(outcome.code, outcome.signal, outcome.asked, entry, {})
        return outcome

    def _cgroup_base(self, parent: str) -> str:
        parts = [part for part in (parent or self._config.cgroup_parent).split("/") if part]
        if ".." in parts or "." in parts or any(":" in part for part in parts):
            raise InvalidInputError(
                f"invalid cgroup parent {parent!r}",
                hint="give a path below the cgroup root, without '..' and without 'slice:'",
            )
        return "/" + "/".join((*parts, self._cgroup_name))

    async def _run_prepared(
        self,
        ready: _Ready,
        run_id: str,
        root: Path,
        process: ProcessSpec,
        user: User,
        stdout: Sink,
        stderr: Sink,
        attached: Attached | None,
    ) -> Outcome:
        async with self._network(process) as (network, own_network):
            return await self._run_connected(
                *(ready, run_id, root, process, user, stdout, stderr, attached),
                network=network,
                own_network=own_network,
            )

    @contextlib.asynccontextmanager
    async def _network(self, process: ProcessSpec) -> AsyncIterator[tuple[NetworkMode, str]]:
        """Give the mode that a step really gets, and the namespace that it joins."""
        networks = self._networks
        if process.network is not NetworkMode.DEFAULT or networks.mode == "host":
            yield process.network, ""
        elif networks.mode == "none":
            yield NetworkMode.NONE, ""
        else:
            async with networks.joined(process.hostname) as path:
                yield process.network, path

    async def _run_connected(
        self,
        ready: _Ready,
        run_id: str,
        root: Path,
        process: ProcessSpec,
        user: User,
        stdout: Sink,
        stderr: Sink,
        attached: Attached | None,
        *,
        network: NetworkMode,
        own_network: str,
    ) -> Outcome:
        group = f"{self._cgroup_base(process.cgroup_parent)}/{run_id}"
        is_own = bool(own_network) or network is NetworkMode.NONE
        files, binds = self._plan_files(run_id, process, ready.host, is_own_network=is_own)
        bundle = self._base / run_id
        spec = plan_spec(
            SpecInputs(
                process=process,
                rootfs=root,
                user=user,
                binds=binds,
                resolv_conf=str(bundle / _RESOLV_CONF),
                hosts=str(bundle / _HOSTS),
                cgroup_path=f"{group}/{cgroups.RUNTIME_CHILD}",
                seccomp=self._seccomp,
                annotations=self._annotations if ready.runtime.takes_bpf else {},
                host=ready.host,
                network=network,
                own_network=own_network,
                apparmor_profile=self._config.apparmor_profile,
            )
        )
        if process.devices:
            await to_worker(self._inject, spec, process.devices)
        files.insert(0, SandboxFile(protocol.CONFIG, _encode(spec)))
        argv = ready.runtime.run_argv(self._base, run_id)
        cgroup = group if ready.host.has_cgroups else ""
        return await self._spawn(
            ready, run_id, argv, files, process, cgroup, stdout, stderr, attached
        )

    def _inject(self, spec: Json, wanted: Sequence[WantedDevice]) -> None:
        found: dict[str, Device] = {}
        try:
            for device in wanted:
                for item in self._devices.find(device.name, optional=device.optional):
                    found[item.name] = item
            inject(spec, found.values())
        except InvalidInputError as error:
            error.brief = f"CDI device injection failed: {error.brief}"
            raise

    def _plan_files(
        self, run_id: str, process: ProcessSpec, host: HostFacts, *, is_own_network: bool
    ) -> tuple[list[SandboxFile], dict[int, PlannedMount]]:
        files = [
            SandboxFile(_HOSTS, hosts.hosts(process.hostname, process.extra_hosts), 0o644),
            SandboxFile(
                _RESOLV_CONF,
                hosts.resolv_conf(self._config.dns, is_own_network=is_own_network),
                0o644,
            ),
        ]
        binds: dict[int, PlannedMount] = {}
        for position, mount in enumerate(process.mounts):
            if isinstance(mount, BindMount):
                flags = locked_flags(mount.source) if host.user_namespace else ()
                binds[position] = PlannedMount(
                    mount.dest, str(mount.source), mount.read_only, flags
                )
            elif isinstance(mount, DataMount):
                name = f"data-{position}"
                files.append(SandboxFile(name, mount.data, mount.mode, mount.uid, mount.gid))
                strict = ("nodev", "nosuid", *(() if mount.mode & 0o111 else ("noexec",)))
                source = str(self._base / run_id / name)
                binds[position] = PlannedMount(mount.dest, source, read_only=True, flags=strict)
        return files, binds

    async def _spawn(
        self,
        ready: _Ready,
        run_id: str,
        argv: list[str],
        files: list[SandboxFile],
        process: ProcessSpec,
        cgroup: str,
        stdout: Sink,
        stderr: Sink,
        attached: Attached | None,
        *,
        after: str = "",
    ) -> Outcome:
        attached = attached or Attached()
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        out: OutputPipe = TerminalPipe(stdout) if process.tty else OutputPipe(stdout)
        err = out if process.tty else OutputPipe(stderr)
        if attached.on_pipes is not None:
            attached.on_pipes(out, err)

        def started() -> None:
            out.close_write_end()
            err.close_write_end()
            if attached.stdin is not None:
                attached.stdin.close_read_end()
            if attached.on_started is not None:
                attached.on_started()

        source, target = null, out.write_fd
        if process.tty:
            source = out.write_fd
        elif attached.channel >= 0:
            source = target = attached.channel
        elif attached.stdin is not None:
            source = attached.stdin.read_fd
        try:
            request = RunRequest(
                id=run_id,
                argv=argv,
                files=files,
                stdin=source,
                stdout=target,
                stderr=err.write_fd,
                cgroup=cgroup,
                memory_bytes=process.resources.memory_bytes,
                is_stoppable=attached.is_stoppable,
                after=after,
            )
            outcome = await ready.link.run(request, started)
            await out.finish()
            await err.finish()
            return outcome
        finally:
            os.close(null)
            out.close()
            err.close()


def _is_good(task: asyncio.Task[_Ready]) -> bool:
    return not task.cancelled() and task.exception() is None and task.result().link.is_alive


def _encode(spec: Json) -> bytes:
    return json.dumps(spec, separators=(",", ":")).encode("utf-8", "surrogateescape")


def _probe_mounts(root: Path, program: str) -> tuple[BindMount, ...]:
    """Make the probe's empty root and return mounts that let ``program`` run in it."""
    root.mkdir(mode=0o711, exist_ok=True)
    folders = sorted({*_PROBE_FOLDERS, os.path.dirname(program)})
    return tuple(
        BindMount(folder, Path(folder).resolve(), read_only=True)
        for folder in folders
        if os.path.isdir(folder)
    )
