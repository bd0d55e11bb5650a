"""The command operation: RUN."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import secrets
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack

from boxwright.core.dataclass import dataclass
from boxwright.core.platform import Platform
from boxwright.errors import BoxwrightError
from boxwright.executor.errors import ExecFailedError, OutOfMemoryError, go_quote
from boxwright.executor.executor import Attached, Executor
from boxwright.executor.process import (
    NetworkMode,
    ProcessSpec,
    Resources,
    SecurityMode,
    Ulimit,
    WantedDevice,
)
from boxwright.llb.graph import Vertex
from boxwright.ops.cachemap import cache_map
from boxwright.ops.errors import FileOpError, InvalidOpError
from boxwright.ops.execfailure import keep_failure
from boxwright.ops.execmounts import MountPlanner, MountWorld, PreparedMounts, load_secret
from boxwright.ops.keys import to_cache_map
from boxwright.ops.result import RefResult, ref_of
from boxwright.ops.slots import Slots
from boxwright.ops.stepgate import StepGate, StepYieldedError
from boxwright.session.manager import SessionGroup, SessionManager
from boxwright.solver.types import CacheMap, JobContext, OpSlot, Result
from boxwright.wire.pb import ops_pb2 as pb

_log = logging.getLogger(__name__)

_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_STDOUT, _STDERR = 1, 2
_YIELDED = b"[the disk is low: this step made room for others and runs again]\n"
_PROXY_NAMES = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy")


@dataclass(frozen=True, slots=True)
class StepUsage:
    """What a command has used up to its end (0: not measured).

    Attributes:
        ended_ns: Since the epoch.
        cpu_usec: Of all its processes.
        memory_peak_bytes: Of all together.
    """

    ended_ns: int
    cpu_usec: int
    memory_peak_bytes: int


class ExecOp:
    """One command vertex (:class:`boxwright.solver.types.Op`)."""

    def __init__(
        self,
        vertex: Vertex,
        executor: Executor,
        world: MountWorld,
        sessions: SessionManager,
        slots: Slots,
        gate: StepGate,
    ) -> None:
        self._gate = gate
        self._vertex = vertex
        self._op = vertex.op.exec
        self._executor = executor
        self._world = world
        self._sessions = sessions
        self._slots = slots
        self.usage: StepUsage | None = None

    async def cache_map(self, _ctx: JobContext, _index: int) -> tuple[CacheMap, bool]:
        """Return the key; see :mod:`boxwright.ops.cachemap`."""
        spec = cache_map(self._vertex.op, len(self._vertex.inputs), self._vertex.platform)
        return to_cache_map(spec), True

    async def acquire(self) -> OpSlot | None:
        """Wait until another command may run."""
        return await self._slots.acquire()

    async def exec(self, ctx: JobContext, inputs: Sequence[Result]) -> list[Result]:
        """Run the command and return what its mounts have become.

        Raises:
            ExecFailedError: the command failed.
            BoxwrightError: a mount, secret or session is missing; the sandbox failed.
            DiskCapError: it writes more than the cap leaves, whatever is removed.
            DiskFullError: the same, of the disk.
        """
        age = self._gate.next_age()
        while True:
            run_id = secrets.token_hex(12)
            try:
                async with self._gate.turn(run_id, age):
                    return await self._attempt(ctx, inputs, run_id)
            except StepYieldedError:
                ctx.progress.log(_STDERR, _YIELDED)

    async def _attempt(
        self, ctx: JobContext, inputs: Sequence[Result], run_id: str
    ) -> list[Result]:
        op = self._op
        line = " ".join(op.meta.args)
        sessions = self._sessions.group(ctx.sessions())
        refs = [ref_of(item) for item in inputs]
        async with AsyncExitStack() as trees:
            failure: ExecFailedError | None = None
            async with AsyncExitStack() as stack:
                planner = MountPlanner(self._world, stack, trees, sessions, refs, f"exec {line}")
                try:
                    prepared = await planner.prepare(op.mounts, op.meta.cwd)
                except FileOpError as error:  # a mount's source, looked for as the command starts
                    _name_failed(error, line)
                    raise
                process = await self._process(prepared, sessions)
                try:
                    status = await self._executor.run(
                        run_id,
                        prepared.root,
                        process,
                        stdout=lambda data: ctx.progress.log(_STDOUT, data),
                        stderr=lambda data: ctx.progress.log(_STDERR, data),
                        attached=Attached(is_stoppable=True),
                    )
                    self.usage = StepUsage(
                        time.time_ns(), status.cpu_usec, status.memory_peak_bytes
                    )
                except ExecFailedError as error:
                    if isinstance(error, OutOfMemoryError):
                        # BuildKit's clients show its sentence, which names no number, and the log.
                        ctx.progress.log(_STDERR, f"out of memory: {error.detail}\n".encode())
                    failure = error
                except BoxwrightError as error:  # what never ran is named as what failed is
                    _name_failed(error, line)
                    raise
            if failure is not None:
                # Why the command failed is not hidden by what can't be kept of it.
                with contextlib.suppress(BoxwrightError):
                    left = await prepared.commit()
                    await keep_failure(
                        failure, self._vertex, refs, left, prepared.others, ctx,
                        self._world.snapshots,
                    )  # fmt: skip
                raise failure
            results: list[RefResult] = await prepared.commit()
        return list(results)

    async def _process(self, prepared: PreparedMounts, sessions: SessionGroup) -> ProcessSpec:
        op, meta = self._op, self._op.meta
        return ProcessSpec(
            args=tuple(meta.args),
            env=(*environment(meta), *await self._secret_env(sessions)),
            cwd=meta.cwd,
            user=meta.user,
            hostname=meta.hostname,
            extra_hosts=tuple(extra_host(host) for host in meta.extraHosts),
            network=NetworkMode(op.network),
            security=SecurityMode(op.security),
            ulimits=tuple(Ulimit(u.Name, u.Soft, u.Hard) for u in meta.ulimit),
            cgroup_parent=meta.cgroupParent,
            resources=_resources(self._vertex.options.linux_resources),
            read_only_root=prepared.read_only_root,
            remove_mount_stubs_recursive=meta.removeMountStubsRecursive,
            valid_exit_codes=frozenset(meta.validExitCodes) if meta.validExitCodes else None,
            mounts=prepared.mounts,
            devices=tuple(WantedDevice(d.name, d.optional) for d in op.cdiDevices),
        )

    async def _secret_env(self, sessions: SessionGroup) -> list[str]:
        return [await _secret_variable(sessions, each) for each in self._op.secretenv]


def _name_failed(error: BoxwrightError, line: str) -> None:
    """Say which command never ran."""
    failed = f"process {go_quote(line)} did not complete successfully"
    error.brief = f"{failed}: {error.brief}"


async def _secret_variable(sessions: SessionGroup, wanted: pb.SecretEnv) -> str:
    if not wanted.ID:
        raise InvalidOpError(f"secret ID missing for {wanted.name!r} environment variable")
    data = await load_secret(sessions, wanted.ID, optional=wanted.optional)
    return f"{wanted.name}={(data or b'').decode('utf-8', 'surrogateescape')}"


def environment(meta: pb.Meta, platform: Platform | None = None) -> list[str]:
    """Return the command's variables: its own, the proxies in both cases, a default PATH."""
    env = list(meta.env)
    if meta.HasField("proxy_env"):
        for name in _PROXY_NAMES:
            value = getattr(meta.proxy_env, name)
            if value:
                env += [f"{name.upper()}={value}", f"{name}={value}"]
    is_windows = platform is not None and platform.os == "windows"
    if not is_windows and not any(item.startswith("PATH=") for item in env):
        env.append(f"PATH={_DEFAULT_PATH}")
    return env


def extra_host(host: pb.HostIP) -> tuple[str, str]:
    """Return name and address of an entry for ``/etc/hosts``.

    Raises:
        InvalidOpError: one of them is malformed.
    """
    try:
        address = ipaddress.ip_address(host.IP)
        if isinstance(address, ipaddress.IPv6Address):
            if address.scope_id is not None:
                raise ValueError("an address with a zone")
            address = address.ipv4_mapped or address
    except ValueError as exc:
        raise InvalidOpError(f"failed to parse IP {host.IP!r} of host {host.Host}") from exc
    if not host.Host or any(char.isspace() for char in host.Host):
        raise InvalidOpError(f"invalid host name {host.Host!r}")
    return host.Host, str(address)


def _resources(wanted: pb.LinuxResources | None) -> Resources:
    if wanted is None:
        return Resources()
    return Resources(
        memory_bytes=max(wanted.memory, 0),
        memory_swap_bytes=wanted.memorySwap,
        cpu_shares=wanted.cpuShares,
        cpu_period_us=wanted.cpuPeriod,
        cpu_quota_us=wanted.cpuQuota,
        cpuset_cpus=wanted.cpusetCpus,
        cpuset_mems=wanted.cpusetMems,
    )
