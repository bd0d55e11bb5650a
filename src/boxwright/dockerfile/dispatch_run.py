"""RUN: an exec vertex with mounts, heredocs, and the build's limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from boxwright.dockerfile import image as images
from boxwright.dockerfile.convert_names import (
    expanded,
    step_name,
    summarize_heredoc,
    upper_keyword,
)
from boxwright.dockerfile.convert_stage import StageState
from boxwright.dockerfile.dispatch_context import DispatchContext, description
from boxwright.dockerfile.errors import DockerfileError
from boxwright.dockerfile.heredoc import chomp, parse_heredoc
from boxwright.dockerfile.mounts import RunMount, run_mounts
from boxwright.dockerfile.syntax import ArgDefinition, Run
from boxwright.llb import build_caps as caps
from boxwright.llb import build_paths as paths
from boxwright.llb import exec_op
from boxwright.llb.file_op import mkfile
from boxwright.llb.state import State

_INLINE_DIR = "/dev/pipes/"
INLINE_NAME = "[internal] preparing inline document"


def dispatch_run(
    stage: StageState, run: Run, sources: tuple[StageState, ...], context: DispatchContext
) -> None:
    """Add a RUN to the stage.

    Raises:
        DockerfileError: a mount that can't be, or arguments that make no command.
    """
    stage.paths.add("/")  # a command may read any file of its root
    args, name, mounts = _command(stage, run)
    if run.line.shell_form:
        args = images.with_shell(stage.image, tuple(args))
    mounts += run_mounts(stage, run, sources, context)
    served, options = context.caps, context.options
    if options.shm_size > 0 and caps.EXEC_MOUNT_TMPFS_SIZE in served:
        mounts.append(exec_op.tmpfs("/dev/shm", options.shm_size))  # noqa: S108 - in the container
    env = stage.state.env
    shown = expanded(name, _masked(run, env), context.escape, keep_quotes=True)
    base = stage.state
    if options.cgroup_parent and caps.EXEC_META_CGROUP_PARENT in served:
        base = base.with_cgroup_parent(options.cgroup_parent)
    settings = exec_op.RunOptions(
        mounts=mounts,
        extra_hosts=options.extra_hosts,
        ulimits=options.ulimits if caps.EXEC_META_ULIMIT in served else (),
        security=run.security,
        proxy=context.proxy,
        devices=_devices(run) if caps.EXEC_META_CDI in served else (),
        linux_resources=options.resources if caps.EXEC_META_LINUX_RESOURCES in served else None,
        ignore_cache=stage.ignore_cache,
        description=description(run.original),
        name=step_name(stage, upper_keyword(shown), stage.state.platform, env),
        locations=context.location(run.ranges),
    )
    if run.network != "default":
        settings["network"] = run.network
    result = exec_op.run(base, args, **settings)
    stage.state = replace(stage.state, output=result.root.output)
    images.commit(
        stage.image,
        "RUN " + _created_by(args, stage.build_args, env),
        layer=True,
        by_vertex=True,
        epoch=stage.epoch,
    )


def _command(stage: StageState, run: Run) -> tuple[list[str], str, list[RunMount]]:
    """Return arguments, what to show, and the mount of an inline script."""
    args, files = list(run.line.args), run.line.files
    if not files:
        return args, run.original, []
    if len(args) != 1 or not run.line.shell_form:
        raise DockerfileError(f"parsing produced an invalid run command: {args}")
    if parse_heredoc(args[0]) is None:
        # Several heredocs, or one among other words: the shell is given them all to handle.
        bodies = "".join(f"\n{file.data}{file.name}" for file in files)
        return [_text(args[0] + bodies)], run.original, []
    file = files[0]
    data = chomp(file.data) if file.chomp else file.data
    name = f"{run.original} ({summarize_heredoc(file.data)})"
    if stage.image.platform.os == "windows" or not data.startswith("#!"):
        return [_text(data)], name, []
    script = State().file(
        mkfile(file.name, data.encode("utf-8", "surrogateescape"), 0o755),
        name=INLINE_NAME,
        platform=stage.platform,
    )
    mount = exec_op.Mount(_INLINE_DIR, script, "/", readonly=True)
    return [paths.join(_INLINE_DIR, file.name)], name, [mount]


def _text(command: str) -> str:
    """Return the command if it can be an argument at all: arguments are text on the wire."""
    try:
        command.encode()
    except UnicodeEncodeError:
        raise DockerfileError(
            "the heredoc of this RUN is not UTF-8",
            hint="put the bytes into a file with COPY <<, and run that",
        ) from None
    return command


def _devices(run: Run) -> list[exec_op.CdiDevice]:
    return [exec_op.CdiDevice(item.name, optional=not item.required) for item in run.devices]


def _masked(run: Run, env: Mapping[str, str]) -> Mapping[str, str]:
    """Hide variables that come from secrets, lest a name shows another value for them."""
    hidden = {mount.env: "****" for mount in run.mounts if mount.type == "secret" and mount.env}
    return {**env, **hidden} if hidden else env


def _created_by(args: list[str], build_args: list[ArgDefinition], env: Mapping[str, str]) -> str:
    """Return the history text: the arguments in effect, counted, then the command."""
    values: dict[str, str] = {}
    for arg in build_args:
        value = env.get(arg.key)
        values[arg.key] = value if value is not None else arg.value or ""
    words = [f"{key}={value}" for key, value in values.items()]
    if words:
        words.insert(0, f"|{len(words)}")
    return " ".join([*words, *args])
