"""The one worker of this engine, as ``ListWorkers`` and ``Info`` describe it."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from pathlib import Path

from boxwright._version import BUILDKIT_VERSION, DOCKERFILE_VERSION, __version__
from boxwright.core.platform import Platform
from boxwright.engine.filters import compile_filters
from boxwright.executor.cdi import Device
from boxwright.llb.marshal import platform_to_pb
from boxwright.wire.pb import worker_pb2

PACKAGE = "boxwright"
_AMD64_LEVELS = {
    "v2": "cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3",
    "v3": "abm avx avx2 bmi1 bmi2 f16c fma movbe xsave",
    "v4": "avx512f avx512bw avx512cd avx512dq avx512vl",
}
_LABEL_PREFIX = "org.mobyproject.buildkit.worker."


def version_message() -> worker_pb2.BuildkitVersion:
    """Return the versions: what we speak, which clients compare, and our own as revision."""
    return worker_pb2.BuildkitVersion(
        package=PACKAGE,
        version=BUILDKIT_VERSION,
        revision=__version__,
        dockerfileVersion=DOCKERFILE_VERSION,
    )


def labels(extra: Mapping[str, str], *, snapshotter: str, network: str) -> dict[str, str]:
    """Return the worker's labels; the configuration's own win."""
    return {
        _LABEL_PREFIX + "executor": "oci",
        _LABEL_PREFIX + "hostname": socket.gethostname(),
        _LABEL_PREFIX + "network": network,
        _LABEL_PREFIX + "oci.process-mode": "sandbox",
        _LABEL_PREFIX + "selinux.enabled": "false",
        _LABEL_PREFIX + "snapshotter": snapshotter,
        **extra,
    }


def platforms(configured: tuple[str, ...]) -> list[Platform]:
    """Return the platforms to build for: the configured ones, or the host's and its subsets."""
    if configured:
        return [Platform.parse(text) for text in configured]
    host = Platform.host()
    found = [host]
    if host.architecture == "amd64":
        found += [Platform("linux", "amd64", level) for level in amd64_levels(_cpu_flags())]
        found.append(Platform("linux", "386"))
    return found


def amd64_levels(flags: frozenset[str]) -> list[str]:
    """Return the microarchitecture levels above the base that a CPU's flags reach.

    Args:
        flags: As ``/proc/cpuinfo`` names them (the levels: x86-64 psABI, section 3.1.1).
    """
    levels: list[str] = []
    for level, wanted in _AMD64_LEVELS.items():
        if not flags.issuperset(wanted.split()):
            break
        levels.append(level)
    return levels


def _cpu_flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return frozenset()
    lines = (line for line in text.splitlines() if line.startswith("flags"))
    return frozenset(next(lines, "").partition(":")[2].split())


def record(
    worker_id: str,
    worker_labels: Mapping[str, str],
    worker_platforms: list[Platform],
    gc_policy: list[worker_pb2.GCPolicy],
    devices: Iterable[Device] = (),
) -> worker_pb2.WorkerRecord:
    """Return the worker's record."""
    return worker_pb2.WorkerRecord(
        ID=worker_id,
        Labels=dict(worker_labels),
        platforms=[platform_to_pb(p) for p in worker_platforms],
        GCPolicy=gc_policy,
        BuildkitVersion=version_message(),
        CDIDevices=[
            worker_pb2.CDIDevice(
                Name=device.name,
                AutoAllow=device.is_auto_allowed,
                Annotations=dict(device.annotations),
            )
            for device in devices
        ],
    )


def matches(message: worker_pb2.WorkerRecord, filters: list[str]) -> bool:
    """Return whether a worker passes the filters of ListWorkers (``id``, ``labels.…``)."""

    def lookup(path: tuple[str, ...]) -> str | None:
        match path:
            case ("id", *_):
                return message.ID
            case ("labels", *name):
                return message.Labels.get(".".join(name))
        return None

    return compile_filters(filters)(lookup)
