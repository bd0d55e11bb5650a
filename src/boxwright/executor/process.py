"""What to run: immutable values that the ops hand to the executor.

Paths of the machine are :class:`pathlib.Path`; paths inside the root file system are ``str``.
"""

from __future__ import annotations

import enum
from pathlib import Path

from boxwright.core.dataclass import dataclass, field


class NetworkMode(enum.Enum):
    """pb.NetMode: whose network the process sees."""

    DEFAULT = 0
    HOST = 1
    NONE = 2


class SecurityMode(enum.Enum):
    """pb.SecurityMode."""

    SANDBOX = 0
    INSECURE = 1


@dataclass(frozen=True, slots=True)
class Ulimit:
    """One resource limit; ``name`` as in ``ulimit`` (``nofile``), values as the kernel's."""

    name: str
    soft: int
    hard: int


@dataclass(frozen=True, slots=True)
class Resources:
    """pb.LinuxResources; zero or empty means not limited."""

    memory_bytes: int = 0
    memory_swap_bytes: int = 0
    cpu_shares: int = 0
    cpu_period_us: int = 0
    cpu_quota_us: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""


@dataclass(frozen=True, slots=True)
class BindMount:
    """A folder, file or socket of the machine at ``dest``; ``source`` is already confined."""

    dest: str
    source: Path
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class TmpfsMount:
    """A new tmpfs at ``dest``; ``size_bytes`` 0 is the kernel's default."""

    dest: str
    size_bytes: int = 0
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class DataMount:
    """A file that exists only in the sandbox's memory: secrets.

    ``data`` never reaches a disk, a log or an error; so it is left out of ``repr`` as well.
    """

    dest: str
    data: bytes = field(repr=False)
    mode: int = 0o400
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True, slots=True)
class WantedDevice:
    """pb.CDIDevice: the name of one device or several, see :mod:`boxwright.executor.cdi`."""

    name: str
    optional: bool = False


MountSpec = BindMount | TmpfsMount | DataMount


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """One process of one step, as LLB describes it (pb.Meta plus its resolved mounts).

    ``env`` may hold secrets (``RUN --mount=type=secret,env=…``), so it is not in ``repr``.
    ``valid_exit_codes`` ``None`` means that only 0 is success. ``mounts`` are applied in order.
    """

    args: tuple[str, ...]
    env: tuple[str, ...] = field(default=(), repr=False)
    cwd: str = "/"
    user: str = ""
    tty: bool = False
    hostname: str = ""
    extra_hosts: tuple[tuple[str, str], ...] = ()
    network: NetworkMode = NetworkMode.DEFAULT
    security: SecurityMode = SecurityMode.SANDBOX
    ulimits: tuple[Ulimit, ...] = ()
    cgroup_parent: str = ""
    resources: Resources = Resources()
    read_only_root: bool = False
    remove_mount_stubs_recursive: bool = False
    valid_exit_codes: frozenset[int] | None = None
    mounts: tuple[MountSpec, ...] = ()
    devices: tuple[WantedDevice, ...] = ()


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended, and what it used (0: not measured)."""

    code: int
    memory_peak_bytes: int = 0
    cpu_usec: int = 0
