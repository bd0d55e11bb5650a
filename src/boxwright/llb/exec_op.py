"""Exec vertices: a command in a container over mounted states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Unpack

from boxwright.core.dataclass import dataclass, replace
from boxwright.errors import InvalidInputError
from boxwright.llb import build_caps as caps
from boxwright.llb.marshal import EMPTY, Constraints, Marshalled, Marshaller, OpOptions, Output
from boxwright.llb.state import HostIP, NetMode, SecurityMode, State, Ulimit
from boxwright.wire.pb import ops_pb2 as pb

SharingMode = Literal["shared", "private", "locked"]
ContentCache = Literal["default", "on", "off"]

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where commands are looked for when an image names no PATH."""
DEFAULT_PATH_WINDOWS = (
    "c:\\Windows\\System32;c:\\Windows;C:\\Windows\\System32\\WindowsPowerShell\\v1.0"
)


def default_path(os: str) -> str:
    """Return the default PATH of an operating system."""
    return DEFAULT_PATH_WINDOWS if os == "windows" else DEFAULT_PATH


@dataclass(frozen=True, slots=True, eq=False)
class Mount:
    """A filesystem mounted into the command's container.

    Attributes:
        source: What is mounted; None or an empty state for an empty filesystem.
        selector: The path inside ``source`` that is mounted.
        no_output: Writes are thrown away and the result can't be used.
        cache_id: Set for a cache mount: what it is shared by.
        tmpfs_size: In bytes; 0 is unlimited.
        content_cache: Whether the vertex is cached by this mount's content.
    """

    target: str
    source: State | None = None
    selector: str = ""
    readonly: bool = False
    no_output: bool = False
    cache_id: str = ""
    sharing: SharingMode = "shared"
    tmpfs: bool = False
    tmpfs_size: int = 0
    content_cache: ContentCache = "default"

    @property
    def output(self) -> Output | None:
        """The output that is mounted, or None."""
        return self.source.output if self.source is not None else None

    @property
    def has_output(self) -> bool:
        """Whether what the command leaves in it is an output of the vertex."""
        return not (self.readonly or self.no_output or self.tmpfs or self.cache_id)


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret as a file (``target``), as an environment variable (``env``), or both."""

    id: str
    target: str | None = None
    env: str | None = None
    uid: int = 0
    gid: int = 0
    mode: int = 0o400
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Ssh:
    """A forwarded ssh agent's socket; a default path is used without ``target``."""

    id: str = ""
    target: str = ""
    uid: int = 0
    gid: int = 0
    mode: int = 0o600
    optional: bool = False


@dataclass(frozen=True, slots=True)
class CdiDevice:
    """A device by its CDI name."""

    name: str
    optional: bool = False


@dataclass(frozen=True, slots=True)
class ProxyEnv:
    """Proxy variables for the command; never part of its cache key."""

    http_proxy: str = ""
    https_proxy: str = ""
    ftp_proxy: str = ""
    no_proxy: str = ""
    all_proxy: str = ""

    def to_pb(self) -> pb.ProxyEnv:
        """Return the message."""
        return pb.ProxyEnv(
            http_proxy=self.http_proxy,
            https_proxy=self.https_proxy,
            ftp_proxy=self.ftp_proxy,
            no_proxy=self.no_proxy,
            all_proxy=self.all_proxy,
        )


def bind(
    target: str,
    source: State,
    *,
    path: str = "",
    readonly: bool = True,
    no_output: bool = False,
) -> Mount:
    """Return a mount of a state, or of the ``path`` inside it."""
    return Mount(target, source, path, readonly=readonly, no_output=no_output)


def cache(
    target: str, cache_id: str, *, sharing: SharingMode = "shared", source: State | None = None
) -> Mount:
    """Return a mount that keeps its content between builds."""
    return Mount(target, source, cache_id=cache_id, sharing=sharing)


def tmpfs(target: str, size: int = 0) -> Mount:
    """Return a mount of memory; ``size`` in bytes."""
    return Mount(target, tmpfs=True, tmpfs_size=size)


def secret(
    target: str | None = None,
    *,
    id: str = "",  # noqa: A002 - the field's name everywhere
    env: str | None = None,
    uid: int = 0,
    gid: int = 0,
    mode: int = 0o400,
    optional: bool = False,
) -> Secret:
    """Return a secret mount; the id is the target where not given.

    Raises:
        InvalidInputError: neither id nor target is given.
    """
    if not (id or target):
        raise InvalidInputError("a secret needs an id or a target")
    return Secret(id or target or "", target, env, uid, gid, mode, optional)


def ssh(
    id: str = "",  # noqa: A002 - the field's name everywhere
    *,
    target: str = "",
    uid: int = 0,
    gid: int = 0,
    mode: int = 0o600,
    optional: bool = False,
) -> Ssh:
    """Return a mount of a forwarded ssh agent."""
    return Ssh(id, target, uid, gid, mode, optional)


class _MountOutput(Output):
    """The output that a mount becomes; its number is known from the sorted mounts."""

    __slots__ = ("_mount", "_op")

    def __init__(self, op: ExecOp, mount: Mount) -> None:
        super().__init__(op, platform=op.constraints.platform)
        self._op = op
        self._mount = mount

    def resolve(self) -> tuple[ExecOp, int]:
        outputs = [mount for mount in self._op.mounts if mount.has_output]
        return self._op, outputs.index(self._mount)


class ExecOp:
    """A vertex that runs one command (``pb.ExecOp``)."""

    def __init__(
        self,
        base: State,
        mounts: Sequence[Mount],
        secrets: Sequence[Secret],
        ssh_sockets: Sequence[Ssh],
        devices: Sequence[CdiDevice],
        proxy: ProxyEnv | None,
        constraints: Constraints,
    ) -> None:
        if not base.args:
            raise InvalidInputError("a command needs arguments")
        if not base.cwd:
            raise InvalidInputError("a command needs a working directory")
        self.base = base
        # Mount order is part of the digest: sorted by target, "/" first.
        self.mounts = sorted(mounts, key=lambda mount: mount.target)
        self.secrets = tuple(secrets)
        self.ssh = tuple(
            item if item.target else replace(item, target=f"/run/buildkit/ssh_agent.{number}")
            for number, item in enumerate(ssh_sockets)
        )
        self.devices = tuple(devices)
        self.proxy = proxy
        self.constraints = constraints

    def inputs(self) -> Sequence[Output]:
        """Return the mounted outputs in mount order."""
        outputs = (mount.output for mount in self.mounts)
        return list(dict.fromkeys(item for item in outputs if item is not None))

    def marshal(self, marshaller: Marshaller) -> Marshalled:
        """Return the op's bytes."""
        constraints = replace(
            self.constraints, platform=self.constraints.platform or self.base.platform
        ).with_caps(*self._caps(marshaller))
        op = marshaller.new_op(constraints)
        op.exec.meta.CopyFrom(self._meta(marshaller))
        op.exec.network = _NETWORK[self.base.network]
        op.exec.security = _SECURITY[self.base.security]
        output = 0
        for mount in self.mounts:
            message = _mount_to_pb(mount)
            message.input = _input_index(op, marshaller.input(mount.output))
            message.output = EMPTY
            if mount.has_output:
                message.output = output
                output += 1
            op.exec.mounts.append(message)
        for item in self.secrets:
            if item.env is not None:
                op.exec.secretenv.append(
                    pb.SecretEnv(ID=item.id, name=item.env, optional=item.optional)
                )
            if item.target is not None:
                op.exec.mounts.append(_secret_to_pb(item, item.target))
        op.exec.mounts.extend(_ssh_to_pb(item) for item in self.ssh)
        op.exec.cdiDevices.extend(
            pb.CDIDevice(name=item.name, optional=item.optional) for item in self.devices
        )
        return Marshalled.of(op, constraints)

    def _meta(self, marshaller: Marshaller) -> pb.Meta:
        base, env = self.base, self.base.env
        if self.ssh:
            env = env.set_default("SSH_AUTH_SOCK", self.ssh[0].target)
        if marshaller.caps is not None and caps.EXEC_META_SETS_DEFAULT_PATH not in marshaller.caps:
            os = marshaller.platform.os
            if os != "windows":
                env = env.set_default("PATH", default_path(os))
        return pb.Meta(
            args=base.args,
            env=env.to_list(),
            cwd=base.cwd,
            user=base.user,
            hostname=base.hostname,
            cgroupParent=base.cgroup_parent,
            removeMountStubsRecursive=True,
            validExitCodes=base.valid_exit_codes or (),
            proxy_env=self.proxy.to_pb() if self.proxy is not None else None,
            extraHosts=[pb.HostIP(Host=item.host, IP=item.ip) for item in base.extra_hosts],
            ulimit=[
                pb.Ulimit(Name=item.name, Soft=item.soft, Hard=item.hard) for item in base.ulimits
            ],
        )

    def _caps(self, marshaller: Marshaller) -> set[str]:
        base = self.base
        known = marshaller.caps
        needs: dict[str, bool] = {
            caps.EXEC_META_BASE: True,
            caps.EXEC_META_SETS_DEFAULT_PATH: (
                known is not None and caps.EXEC_META_SETS_DEFAULT_PATH in known
            ),
            caps.EXEC_VALID_EXIT_CODE: base.valid_exit_codes is not None,
            caps.EXEC_META_ULIMIT: bool(base.ulimits),
            caps.EXEC_META_LINUX_RESOURCES: self.constraints.metadata.linux_resources is not None,
            caps.EXEC_META_NETWORK: base.network != "sandbox",
            caps.EXEC_META_SECURITY: base.security == "insecure",
            caps.EXEC_META_PROXY: self.proxy is not None,
            caps.EXEC_MOUNT_SECRET: bool(self.secrets),
            caps.EXEC_SECRET_ENV: any(item.env is not None for item in self.secrets),
            caps.EXEC_MOUNT_SSH: bool(self.ssh),
            caps.EXEC_META_CDI: bool(self.devices),
        }
        out = {name for name, needed in needs.items() if needed}
        for mount in self.mounts:
            out |= _mount_caps(mount)
        return out


_NETWORK = {"sandbox": pb.UNSET, "host": pb.HOST, "none": pb.NONE}
_SECURITY = {"sandbox": pb.SANDBOX, "insecure": pb.INSECURE}
_SHARING = {"shared": pb.SHARED, "private": pb.PRIVATE, "locked": pb.LOCKED}
_CONTENT_CACHE = {"default": pb.DEFAULT, "on": pb.ON, "off": pb.OFF}


def _mount_caps(mount: Mount) -> set[str]:
    out: set[str] = set()
    if mount.selector:
        out.add(caps.EXEC_MOUNT_SELECTOR)
    if mount.cache_id:
        out |= {caps.EXEC_MOUNT_CACHE, caps.EXEC_MOUNT_CACHE_SHARING}
    elif mount.tmpfs:
        out.add(caps.EXEC_MOUNT_TMPFS)
        if mount.tmpfs_size > 0:
            out.add(caps.EXEC_MOUNT_TMPFS_SIZE)
    elif mount.output is not None:
        out.add(caps.EXEC_MOUNT_BIND)
    if mount.content_cache != "default":
        out.add(caps.EXEC_MOUNT_CONTENT_CACHE)
    return out


def _mount_to_pb(mount: Mount) -> pb.Mount:
    message = pb.Mount(
        dest=mount.target,
        readonly=mount.readonly,
        selector=mount.selector,
        contentCache=_CONTENT_CACHE[mount.content_cache],
    )
    if mount.cache_id:
        message.mountType = pb.CACHE
        message.cacheOpt.CopyFrom(pb.CacheOpt(ID=mount.cache_id, sharing=_SHARING[mount.sharing]))
    if mount.tmpfs:
        if mount.output is not None:
            raise InvalidInputError("a tmpfs mount starts empty", detail=mount.target)
        message.mountType = pb.TMPFS
        message.TmpfsOpt.CopyFrom(pb.TmpfsOpt(size=mount.tmpfs_size))
    return message


def _input_index(op: pb.Op, edge: pb.Input | None) -> int:
    if edge is None:
        return EMPTY
    for index, known in enumerate(op.inputs):
        if known == edge:
            return index
    op.inputs.append(edge)
    return len(op.inputs) - 1


def _secret_to_pb(item: Secret, target: str) -> pb.Mount:
    return pb.Mount(
        input=EMPTY,
        dest=target,
        mountType=pb.SECRET,
        secretOpt=pb.SecretOpt(
            ID=item.id, uid=item.uid, gid=item.gid, mode=item.mode, optional=item.optional
        ),
    )


def _ssh_to_pb(item: Ssh) -> pb.Mount:
    return pb.Mount(
        input=EMPTY,
        dest=item.target,
        mountType=pb.SSH,
        SSHOpt=pb.SSHOpt(
            ID=item.id, uid=item.uid, gid=item.gid, mode=item.mode, optional=item.optional
        ),
    )


class ExecState:
    """What a command leaves: the root filesystem and its writable mounts."""

    def __init__(self, op: ExecOp, root: Mount, settings: State) -> None:
        self._op = op
        self._root = root
        self._settings = settings

    @property
    def root(self) -> State:
        """The root filesystem after the command."""
        if self._root.readonly:
            return self._settings
        return self._settings.with_output(_MountOutput(self._op, self._root))

    def mount(self, target: str) -> State:
        """Return the state of the mount at ``target`` after the command.

        Raises:
            InvalidInputError: there is no such mount, or it has no result (tmpfs, cache,
                ``no_output``).
        """
        for mount in self._op.mounts:
            if mount.target != target:
                continue
            if mount.readonly:
                return mount.source or State()
            if not mount.has_output:
                raise InvalidInputError("this mount has no result", detail=target)
            return (mount.source or State()).with_output(_MountOutput(self._op, mount))
        raise InvalidInputError("no such mount", detail=target)


class RunOptions(OpOptions, total=False):
    """Keyword arguments of :func:`run`; settings hold for this command only.

    Attributes:
        env: More variables.
        cwd: The working directory.
        user: ``name``, ``uid`` or ``user:group``.
        mounts: From :func:`bind`, :func:`cache`, :func:`tmpfs`, :func:`secret`, :func:`ssh`.
        readonly_root: Mount the root read-only; the result is the state itself.
        proxy: Proxy variables, outside the cache key.
        valid_exit_codes: Exit codes that count as success; only 0 where not given.
    """

    env: Mapping[str, str]
    cwd: str
    user: str
    hostname: str
    cgroup_parent: str
    extra_hosts: Sequence[HostIP]
    ulimits: Sequence[Ulimit]
    mounts: Sequence[Mount | Secret | Ssh]
    network: NetMode
    security: SecurityMode
    readonly_root: bool
    proxy: ProxyEnv | None
    devices: Sequence[CdiDevice]
    valid_exit_codes: Sequence[int]


def run(state: State, command: str | Sequence[str], **options: Unpack[RunOptions]) -> ExecState:
    """Run a command on a state.

    Args:
        state: The root filesystem, and the settings the command starts from.
        command: An argument list, or text for ``/bin/sh -c``.
        options: See :class:`RunOptions` and :class:`boxwright.llb.marshal.OpOptions`.

    Raises:
        InvalidInputError: the command is empty.
    """
    args = ("/bin/sh", "-c", command) if isinstance(command, str) else tuple(command)
    base = _settings(replace(state, args=args), options)
    mounts = options.get("mounts", ())
    root = Mount("/", state, readonly=options.get("readonly_root", False))
    op = ExecOp(
        base,
        [root, *(item for item in mounts if isinstance(item, Mount))],
        [item for item in mounts if isinstance(item, Secret)],
        [item for item in mounts if isinstance(item, Ssh)],
        options.get("devices", ()),
        options.get("proxy"),
        Constraints.of(options),
    )
    return ExecState(op, root, state)


def _settings(base: State, options: RunOptions) -> State:
    for key, value in options.get("env", {}).items():
        base = base.add_env(key, value)
    if cwd := options.get("cwd"):
        base = base.dir(cwd)
    codes = options.get("valid_exit_codes")
    return replace(
        base,
        user=options.get("user") or base.user,
        hostname=options.get("hostname") or base.hostname,
        cgroup_parent=options.get("cgroup_parent") or base.cgroup_parent,
        extra_hosts=(*base.extra_hosts, *options.get("extra_hosts", ())),
        ulimits=(*base.ulimits, *options.get("ulimits", ())),
        network=options.get("network") or base.network,
        security=options.get("security") or base.security,
        valid_exit_codes=base.valid_exit_codes if codes is None else tuple(codes),
    )
