"""The OCI runtime configuration of a step, as a pure function of what was asked for.

Behaviour is BuildKit's (executor/oci): same mounts, namespaces, masked paths and capabilities,
so that a step sees the same world under both. The version written is 1.0.2: Debian 12's crun
refuses newer ones and newer runtimes take older ones.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from pathlib import Path

from boxwright.core.dataclass import dataclass
from boxwright.errors import InvalidInputError
from boxwright.executor import capabilities
from boxwright.executor.errors import RuntimeFailedError
from boxwright.executor.process import (
    BindMount,
    NetworkMode,
    ProcessSpec,
    Resources,
    SecurityMode,
    TmpfsMount,
)
from boxwright.executor.users import User

Json = dict[str, object]

DEFAULT_HOSTNAME = "buildkitsandbox"

_MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
    "/proc/scsi",
)
_READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

_NAMESPACES = ("pid", "ipc", "uts", "mount")

_INSECURE_DEVICES = (
    ("/dev/kmsg", 1, 11),
    ("/dev/cuse", 10, 203),
    ("/dev/fuse", 10, 229),
    ("/dev/kvm", 10, 232),
    ("/dev/net/tun", 10, 200),
    ("/dev/loop-control", 10, 237),
)
_LOOP_MAJOR = 7
_LOOP_DEVICES = 8


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What the plan depends on beyond the request.

    Attributes:
        has_cgroups: The runtime may make control groups; without them there is no device filter,
            so making device nodes is taken away from the step.
        cgroup_namespace: Give the step its own cgroup namespace (v2 only).
        user_namespace: We are in one: no /sys mount, no device nodes of our own.
        maps_tty_group: Group 5 exists in our user namespace, for /dev/pts.
        capabilities: What we could pass on to an insecure step.
        shares_processes: Steps get no PID namespace and this process's ``/proc``.
    """

    has_cgroups: bool = True
    cgroup_namespace: bool = False
    user_namespace: bool = False
    maps_tty_group: bool = True
    capabilities: tuple[str, ...] = ()
    shares_processes: bool = False


@dataclass(frozen=True, slots=True)
class PlannedMount:
    """A bind mount with its source decided; ``flags`` are extra mount options."""

    dest: str
    source: str
    read_only: bool = False
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SpecInputs:
    """Everything that :func:`plan_spec` turns into a configuration.

    ``binds`` are the resolved sources of the process's bind and data mounts by position in
    ``process.mounts``; tmpfs mounts have none. ``network`` is what the process gets where it
    named none; ``own_network`` is the namespace that it joins. ``apparmor_profile`` is loaded
    already; insecure steps run without.
    """

    process: ProcessSpec
    rootfs: Path
    user: User
    binds: dict[int, PlannedMount]
    resolv_conf: str
    hosts: str
    cgroup_path: str
    seccomp: Json | None
    annotations: dict[str, str]
    host: HostFacts
    network: NetworkMode = NetworkMode.DEFAULT
    own_network: str = ""
    apparmor_profile: str = ""


def plan_spec(inputs: SpecInputs) -> Json:
    """Return the runtime's ``config.json`` as data.

    Raises:
        InvalidInputError: a ulimit that can't exist.
    """
    process, host = inputs.process, inputs.host
    insecure = process.security is SecurityMode.INSECURE
    linux: Json = {
        "namespaces": _namespaces(inputs),
        "maskedPaths": [] if insecure else _paths(_MASKED_PATHS, host),
        "readonlyPaths": [] if insecure else _paths(_READONLY_PATHS, host),
    }
    if host.has_cgroups and not host.user_namespace:
        linux["cgroupsPath"] = inputs.cgroup_path
        linux["resources"] = _resources(process.resources, insecure=insecure)
    if insecure and not host.user_namespace:
        linux["devices"] = _insecure_devices()
    if inputs.seccomp is not None and not insecure:
        linux["seccomp"] = inputs.seccomp
    planned = _process(inputs, insecure=insecure)
    if inputs.apparmor_profile and not insecure:
        planned["apparmorProfile"] = inputs.apparmor_profile
    spec: Json = {
        "ociVersion": "1.0.2",
        "process": planned,
        "root": {"path": str(inputs.rootfs), "readonly": process.read_only_root},
        "hostname": process.hostname or DEFAULT_HOSTNAME,
        "mounts": _mounts(inputs, insecure=insecure),
        "linux": linux,
    }
    if inputs.annotations and not insecure:
        spec["annotations"] = dict(inputs.annotations)
    return spec


def _paths(paths: Sequence[str], host: HostFacts) -> list[str]:
    """Return what is to be covered: nothing below a ``/proc`` that is not the step's own."""
    return [path for path in paths if not (host.shares_processes and path.startswith("/proc/"))]


def _namespaces(inputs: SpecInputs) -> list[Json]:
    names = ("ipc", "uts", "mount") if inputs.host.shares_processes else _NAMESPACES
    plan: list[Json] = [{"type": name} for name in names]
    if NetworkMode.NONE in (inputs.network, inputs.process.network):
        plan.append({"type": "network"})
    elif inputs.own_network:
        plan.append({"type": "network", "path": inputs.own_network})
    if inputs.host.cgroup_namespace:
        plan.append({"type": "cgroup"})
    return plan


def _process(inputs: SpecInputs, *, insecure: bool) -> Json:
    process, user, host = inputs.process, inputs.user, inputs.host
    granted = list(capabilities.DEFAULT)
    if not host.has_cgroups and not host.user_namespace:
        granted.remove("CAP_MKNOD")
    sets: dict[str, list[str]] = dict.fromkeys(("bounding", "permitted", "effective"), granted)
    if insecure:
        granted = list(dict.fromkeys((*capabilities.DEFAULT, *host.capabilities)))
        every = ("bounding", "permitted", "effective", "inheritable", "ambient")
        sets = dict.fromkeys(every, granted)
    planned: Json = {
        "terminal": process.tty,
        "user": {
            "uid": user.uid,
            "gid": user.gid,
            "additionalGids": list(dict.fromkeys((user.gid, *user.additional_gids))),
        },
        "args": list(process.args),
        "env": dedupe_env(process.env),
        "cwd": process.cwd,
        "capabilities": sets,
        "noNewPrivileges": False,
    }
    if process.ulimits:
        planned["rlimits"] = [
            {"type": f"RLIMIT_{u.name.upper()}", "soft": _limit(u.soft), "hard": _limit(u.hard)}
            for u in process.ulimits
        ]
    return planned


def _limit(value: int) -> int:
    """Return a resource limit as the kernel counts it: -1 is "unlimited", all bits set."""
    if value < -1:
        raise InvalidInputError("invalid ulimit", detail=str(value))
    return value & 0xFFFF_FFFF_FFFF_FFFF


def dedupe_env(env: Sequence[str]) -> list[str]:
    """Return ``env`` with later values in the places of earlier ones of the same name.

    Raises:
        RuntimeFailedError: one has no name, which runc refuses and crun would hand on. Its value
            may be a secret and is not shown.
    """
    values: dict[str, str] = {}
    for item in env:
        values[item.partition("=")[0]] = item
    if "" in values:
        raise RuntimeFailedError("environment variable name can't be empty")
    return list(values.values())


def _mounts(inputs: SpecInputs, *, insecure: bool) -> list[Json]:
    host = inputs.host
    pts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]
    if host.maps_tty_group:
        pts.append("gid=5")
    shm = ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]
    strict = ["nosuid", "noexec", "nodev"]
    writable = [] if insecure else ["ro"]
    dev = ["nosuid", "strictatime", "mode=755", "size=65536k"]
    plan = [
        _mount("/proc", "bind", "/proc", ["rbind"])
        if host.shares_processes
        else _mount("/proc", "proc", "proc", strict),
        _mount("/dev", "tmpfs", "tmpfs", dev),
        _mount("/dev/pts", "devpts", "devpts", pts),
        _mount("/dev/shm", "tmpfs", "shm", shm),  # noqa: S108 - a place inside the step
        _mount("/dev/mqueue", "mqueue", "mqueue", strict),
        _mount("/sys", "sysfs", "sysfs", [*strict, *writable]),
        _mount("/etc/resolv.conf", "bind", inputs.resolv_conf, [*strict, "rbind", "ro"]),
        _mount("/etc/hosts", "bind", inputs.hosts, [*strict, "rbind", "ro"]),
    ]
    if host.has_cgroups:
        plan.append(_mount("/sys/fs/cgroup", "cgroup", "cgroup", [*writable, *strict]))
    for position, mount in enumerate(inputs.process.mounts):
        if isinstance(mount, TmpfsMount):
            options = ["nosuid"]
            if mount.read_only:
                options.append("ro")
            if mount.size_bytes:
                options.append(f"size={mount.size_bytes}")
            plan.append(_mount(posixpath.join("/", mount.dest), "tmpfs", "tmpfs", options))
        else:
            bind = inputs.binds[position]
            options = ["rbind", *bind.flags, *(["ro"] if bind.read_only else [])]
            plan.append(_mount(posixpath.join("/", bind.dest), "bind", bind.source, options))
    if host.user_namespace:
        # A new sysfs needs a network namespace of our own, and a read-only bind of the host's
        # would leave its cgroup tree writable; upstream leaves /sys out as well.
        plan = [mount for mount in plan if not str(mount["destination"]).startswith("/sys")]
    return _last_wins(plan)


def _mount(dest: str, kind: str, source: str, options: Sequence[str]) -> Json:
    return {"destination": dest, "type": kind, "source": source, "options": list(options)}


def _last_wins(mounts: list[Json]) -> list[Json]:
    """Return ``mounts`` with one per destination: the last one, in the place of the first."""
    by_dest: dict[object, Json] = {}
    for mount in mounts:
        by_dest[mount["destination"]] = mount
    return list(by_dest.values())


def _resources(resources: Resources, *, insecure: bool) -> Json:
    """Return everything but the memory limit, which our own group carries."""
    if insecure:
        rules: list[Json] = [{"allow": True, "type": kind, "access": "rwm"} for kind in "cb"]
    else:
        rules = [{"allow": False, "access": "rwm"}]
    planned: Json = {"devices": rules}
    cpu: Json = {}
    if resources.cpu_shares:
        cpu["shares"] = resources.cpu_shares
    if resources.cpu_quota_us:
        cpu["quota"] = resources.cpu_quota_us
    if resources.cpu_period_us:
        cpu["period"] = resources.cpu_period_us
    if resources.cpuset_cpus:
        cpu["cpus"] = resources.cpuset_cpus
    if resources.cpuset_mems:
        cpu["mems"] = resources.cpuset_mems
    if cpu:
        planned["cpu"] = cpu
    if resources.memory_swap_bytes:
        memory: Json = {"swap": resources.memory_swap_bytes}
        if resources.memory_bytes:
            memory["limit"] = resources.memory_bytes
        planned["memory"] = memory
    return planned


def _insecure_devices() -> list[Json]:
    devices: list[Json] = [
        {"path": path, "type": "c", "major": major, "minor": minor}
        for path, major, minor in _INSECURE_DEVICES
    ]
    devices.extend(
        {"path": f"/dev/loop{n}", "type": "b", "major": _LOOP_MAJOR, "minor": n}
        for n in range(_LOOP_DEVICES)
    )
    return devices


def bind_sources(process: ProcessSpec) -> list[tuple[int, BindMount]]:
    """Return the bind mounts of ``process`` with their positions."""
    return [(n, m) for n, m in enumerate(process.mounts) if isinstance(m, BindMount)]
