"""States: the immutable values from which a graph is built.

A state is a filesystem (an output of a vertex, or an empty one) together with what later
steps on it start from: environment, directory, user, and so on. Every method returns a new
state; nothing runs until the definition that :meth:`State.marshal` returns is solved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Unpack

from boxwright.core.dataclass import dataclass, field, replace
from boxwright.core.platform import Platform
from boxwright.llb import build_paths as paths
from boxwright.llb.build_env import EnvList
from boxwright.llb.marshal import Marshaller, OpOptions, Output
from boxwright.wire.pb import ops_pb2 as pb

if TYPE_CHECKING:
    from boxwright.llb.exec_op import ExecState, RunOptions
    from boxwright.llb.file_op import CopyOptions, FileAction, Owner

NetMode = Literal["sandbox", "host", "none"]
SecurityMode = Literal["sandbox", "insecure"]


class Ulimit(NamedTuple):
    """A resource limit of processes; -1 is unlimited."""

    name: str
    soft: int
    hard: int


class HostIP(NamedTuple):
    """A line of ``/etc/hosts``."""

    host: str
    ip: str


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """A filesystem and the settings that steps on it inherit."""

    output: Output | None = None
    env: EnvList = field(default_factory=EnvList)
    cwd: str = "/"
    user: str = ""
    hostname: str = ""
    platform: Platform | None = None
    network: NetMode = "sandbox"
    security: SecurityMode = "sandbox"
    args: tuple[str, ...] = ()
    extra_hosts: tuple[HostIP, ...] = ()
    ulimits: tuple[Ulimit, ...] = ()
    cgroup_parent: str = ""
    valid_exit_codes: tuple[int, ...] | None = None

    @classmethod
    def new(cls, output: Output | None) -> State:
        """Return the state of ``output`` with nothing inherited."""
        return State().with_output(output)

    @property
    def is_scratch(self) -> bool:
        """Whether the filesystem is empty and so part of no definition."""
        return self.output is None

    def with_output(self, output: Output | None) -> State:
        """Return these settings on another filesystem."""
        platform = output.platform if output is not None else None
        if platform is None:
            return replace(self, output=output)
        return replace(self, output=output, platform=platform.normalized())

    def add_env(self, key: str, value: str) -> State:
        """Set an environment variable."""
        return replace(self, env=self.env.set(key, value))

    def dir(self, path: str) -> State:
        """Set the working directory; a relative one starts from the present one."""
        if paths.is_abs(path):
            return replace(self, cwd=path)
        return replace(self, cwd=paths.join(self.cwd or "/", path))

    def with_user(self, user: str) -> State:
        """Set the user that commands run as (``name``, ``uid``, ``user:group``)."""
        return replace(self, user=user)

    def with_hostname(self, hostname: str) -> State:
        """Set the host name that commands see."""
        return replace(self, hostname=hostname)

    def with_platform(self, platform: Platform) -> State:
        """Set the platform that commands run for."""
        return replace(self, platform=platform.normalized())

    def with_network(self, mode: NetMode) -> State:
        """Set the network that commands get."""
        return replace(self, network=mode)

    def with_security(self, mode: SecurityMode) -> State:
        """Set the security mode that commands run in."""
        return replace(self, security=mode)

    def add_extra_host(self, host: str, ip: str) -> State:
        """Add a line to the ``/etc/hosts`` that commands see."""
        return replace(self, extra_hosts=(*self.extra_hosts, HostIP(host, ip)))

    def add_ulimit(self, name: str, soft: int, hard: int) -> State:
        """Limit a resource of commands."""
        return replace(self, ulimits=(*self.ulimits, Ulimit(name, soft, hard)))

    def with_cgroup_parent(self, path: str) -> State:
        """Set the cgroup below which commands run."""
        return replace(self, cgroup_parent=path)

    def with_image_config(self, config: dict[str, Any]) -> State:
        """Take environment, directory and platform from an image config (decoded JSON)."""
        state = self
        inner = config.get("config") or {}
        for pair in inner.get("Env") or ():
            key, _, value = str(pair).partition("=")
            if key:
                state = state.add_env(key, value)
        state = state.dir(str(inner.get("WorkingDir") or ""))
        if config.get("architecture") and config.get("os"):
            state = state.with_platform(Platform.from_json(config))
        return state

    def run(self, command: str | Sequence[str], **options: Unpack[RunOptions]) -> ExecState:
        """Run a command; see :func:`boxwright.llb.exec_op.run`."""
        from boxwright.llb.exec_op import run

        return run(self, command, **options)

    def file(self, action: FileAction, **options: Unpack[OpOptions]) -> State:
        """Apply file actions as one vertex."""
        from boxwright.llb.file_op import apply

        return apply(self, action, options)

    def copy(
        self,
        source: State,
        src: str,
        dest: str,
        how: CopyOptions | None = None,
        **options: Unpack[OpOptions],
    ) -> State:
        """Copy from another state; see :func:`boxwright.llb.file_op.copy`."""
        from boxwright.llb.file_op import copy

        return self.file(copy(source, src, dest, how), **options)

    def mkdir(
        self,
        path: str,
        mode: int = 0o755,
        *,
        parents: bool = False,
        owner: Owner | None = None,
        **options: Unpack[OpOptions],
    ) -> State:
        """Make a directory."""
        from boxwright.llb.file_op import mkdir

        return self.file(mkdir(path, mode, parents=parents, owner=owner), **options)

    def mkfile(
        self,
        path: str,
        data: bytes,
        mode: int = 0o644,
        *,
        owner: Owner | None = None,
        **options: Unpack[OpOptions],
    ) -> State:
        """Write a file."""
        from boxwright.llb.file_op import mkfile

        return self.file(mkfile(path, data, mode, owner=owner), **options)

    def rm(
        self,
        path: str,
        *,
        allow_not_found: bool = False,
        wildcard: bool = False,
        **options: Unpack[OpOptions],
    ) -> State:
        """Remove a file or a whole directory."""
        from boxwright.llb.file_op import rm

        action = rm(path, allow_not_found=allow_not_found, wildcard=wildcard)
        return self.file(action, **options)

    def symlink(
        self, old: str, new: str, *, owner: Owner | None = None, **options: Unpack[OpOptions]
    ) -> State:
        """Make a symlink at ``new`` that points to ``old``."""
        from boxwright.llb.file_op import symlink

        return self.file(symlink(old, new, owner=owner), **options)

    def requires(self, identity: str, *others: State) -> State:
        """Return this state, available only when ``others`` have been built too."""
        if not others:
            return self
        from boxwright.llb.build_ops import passthrough

        return self.with_output(passthrough(identity, [self], others).output)

    def marshal(
        self,
        platform: Platform | None = None,
        caps: frozenset[str] | None = None,
        *,
        local_unique_id: str = "",
    ) -> pb.Definition:
        """Return the definition that builds this state.

        Args:
            platform: For steps that have none of their own; the host's where None.
            caps: What the daemon is known to serve (:mod:`boxwright.llb.build_caps`).
            local_unique_id: See :class:`boxwright.llb.marshal.Marshaller`.

        Raises:
            InvalidInputError: a step is incomplete or used in a way it can't be.
        """
        return Marshaller(platform, caps, local_unique_id).definition(self.output)


def scratch() -> State:
    """Return an empty filesystem."""
    return State()
