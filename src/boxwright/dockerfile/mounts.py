"""``RUN --mount``: from the syntax tree to mounts of an exec vertex."""

from __future__ import annotations

from boxwright.core.dataclass import dataclass
from boxwright.dockerfile.convert_stage import RequiredInput, StageState
from boxwright.dockerfile.dispatch_context import DispatchContext
from boxwright.dockerfile.errors import DockerfileError
from boxwright.dockerfile.syntax import Mount, Range, Run
from boxwright.llb import build_caps as caps
from boxwright.llb import build_paths as paths
from boxwright.llb import exec_op, file_op
from boxwright.llb.state import State

RunMount = exec_op.Mount | exec_op.Secret | exec_op.Ssh


@dataclass(frozen=True, slots=True)
class _Bound:
    """A mount, the stage it reads from where it names one, and its surroundings."""

    mount: Mount
    source: StageState | None
    stage: StageState
    context: DispatchContext


def run_mounts(
    stage: StageState, run: Run, sources: tuple[StageState, ...], context: DispatchContext
) -> list[RunMount]:
    """Return the mounts of an expanded RUN.

    Args:
        stage: The stage the RUN is in; the paths it reads are noted there.
        run: The instruction with its variables replaced.
        sources: The stage behind each mount, in order.
        context: The surroundings.

    Raises:
        DockerfileError: a mount that can't be: a later stage, the root, a source for ssh.
    """
    out: list[RunMount] = []
    for mount, source in zip(run.mounts, sources, strict=True):
        if mount.type == "secret":
            out.append(_secret(stage, mount, run.ranges))
        elif mount.type == "ssh":
            out.append(_ssh(stage, mount, run.ranges))
        else:
            # Without "from" a mount is of the context, but a cache starts empty.
            named = bool(mount.from_) or mount.type == "cache"
            bound = _Bound(mount, source if named else None, stage, context)
            out.append(_filesystem(bound))
    return out


def _filesystem(bound: _Bound) -> exec_op.Mount:
    mount, source = bound.mount, bound.source
    if source is not None and not source.dispatched:
        raise DockerfileError(
            f'cannot mount from stage "{mount.from_}" to "{mount.target}", stage needs to be'
            " defined before current command",
            token=mount.from_,
        )
    state = bound.context.build_context if source is None else source.state
    if mount.type == "tmpfs":
        state = State()
    target = _target(bound)
    selector = paths.join("/", mount.source)
    if selector == "/":
        selector = ""
        if (mount.uid, mount.gid, mount.mode) != (None, None, None):
            state = _owned(state, mount)
            selector = "/cache"
    no_output = mount.type == "bind" and not mount.read_only
    (bound.stage.ctx_paths if source is None else source.paths).add(paths.join("/", mount.source))
    return exec_op.Mount(
        target,
        state,
        selector,
        readonly=mount.read_only,
        no_output=no_output and caps.EXEC_MOUNT_BIND_RW_NO_OUTPUT in bound.context.caps,
        cache_id=_cache_id(bound) if mount.type == "cache" else "",
        sharing=mount.sharing or "shared",
        tmpfs=mount.type == "tmpfs",
        tmpfs_size=mount.size if mount.type == "tmpfs" else 0,
    )


def _target(bound: _Bound) -> str:
    target = bound.mount.target
    if not paths.is_abs(target):
        target = paths.join("/", bound.stage.state.cwd, target)
    if target == "/":
        raise DockerfileError(f'invalid mount target "{target}"', token=bound.mount.target)
    return target


def _cache_id(bound: _Bound) -> str:
    name = bound.mount.id or paths.clean(bound.mount.target)
    return f"{bound.context.options.cache_namespace}/{name}"


def _owned(state: State, mount: Mount) -> State:
    """Return ``state`` with a directory of the wanted owner and mode to start a cache from."""
    mode = 0o755 if mount.mode is None else mount.mode
    action = file_op.mkdir("/cache", mode, owner=(mount.uid or 0, mount.gid or 0))
    return state.file(action, name="[internal] setting cache mount permissions")


def _secret(stage: StageState, mount: Mount, ranges: tuple[Range, ...]) -> exec_op.Secret:
    name = mount.source or mount.id
    if not name:
        if not mount.target:
            raise DockerfileError("one of source, target required")
        name = paths.base(mount.target)
    target: str | None = mount.target or None
    if mount.env is None:
        target = mount.target or f"/run/secrets/{paths.base(name)}"
    stage.outline.secrets.setdefault(name, RequiredInput(mount.required, ranges))
    return exec_op.Secret(
        name,
        target,
        mount.env,
        uid=mount.uid or 0,
        gid=mount.gid or 0,
        mode=0o400 if mount.mode is None else mount.mode,
        optional=not mount.required,
    )


def _ssh(stage: StageState, mount: Mount, ranges: tuple[Range, ...]) -> exec_op.Ssh:
    if mount.source:
        raise DockerfileError("ssh does not support source", token=mount.source)
    stage.outline.ssh.setdefault(mount.id or "default", RequiredInput(mount.required, ranges))
    return exec_op.Ssh(
        mount.id,
        mount.target,
        uid=mount.uid or 0,
        gid=mount.gid or 0,
        mode=0o600 if mount.mode is None else mount.mode,
        optional=not mount.required,
    )
