"""Instructions: what each one does to its stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from boxwright.dockerfile import image as images
from boxwright.dockerfile import lint_rules as rules
from boxwright.dockerfile import ospaths
from boxwright.dockerfile.convert_names import expanded, step_name, upper_keyword
from boxwright.dockerfile.convert_stage import ArgInfo, BoundCommand, StageState
from boxwright.dockerfile.dispatch_context import NON_ENV_ARGS, DispatchContext
from boxwright.dockerfile.dispatch_copy import dispatch_copy
from boxwright.dockerfile.dispatch_expose import parse_ports
from boxwright.dockerfile.dispatch_run import dispatch_run
from boxwright.dockerfile.errors import DockerfileError
from boxwright.dockerfile.expand import expand
from boxwright.dockerfile.golang import parse_int, quote
from boxwright.dockerfile.instructions import expand_command, expand_contents
from boxwright.dockerfile.lint import report_secret_key
from boxwright.dockerfile.syntax import (
    Add,
    Arg,
    ArgDefinition,
    Cmd,
    CommandLine,
    Copy,
    Entrypoint,
    Env,
    Expose,
    Healthcheck,
    Label,
    Maintainer,
    OnBuild,
    Run,
    Shell,
    StopSignal,
    User,
    Volume,
    Workdir,
)
from boxwright.llb import build_paths as paths
from boxwright.llb import file_op
from boxwright.oci.image import Healthcheck as HealthcheckConfig

_SIGNALS = frozenset(
    "ABRT ALRM BUS CHLD CLD CONT FPE HUP ILL INT IO IOT KILL PIPE POLL PROF PWR QUIT SEGV STKFLT"
    " STOP SYS TERM TRAP TSTP TTIN TTOU URG USR1 USR2 VTALRM WINCH XCPU XFSZ RTMIN RTMAX".split()
    + [f"RTMIN+{number}" for number in range(1, 16)]
    + [f"RTMAX-{number}" for number in range(1, 15)]
)


def dispatch(stage: StageState, bound: BoundCommand, context: DispatchContext) -> None:
    """Carry out one instruction.

    Raises:
        DockerfileError: it can't be carried out; perhaps without lines, which the caller
            knows.
    """
    command = bound.command
    if command.comments:
        context = replace(context, linter=context.linter.for_comments(command.comments))
    stage.in_on_build = bound.on_build
    command = expand_command(command, lambda word: context.expand(stage, command, word))
    command = expand_contents(command, lambda word: context.expand_raw(stage, command, word))
    match command:
        case Run():
            dispatch_run(stage, command, bound.sources, context)
        case Add():
            dispatch_copy(stage, command, context.build_context, context)
            stage.ctx_paths |= {
                paths.join("/", src)
                for src in command.sources
                if not src.startswith(("http://", "https://"))
            }
        case Copy():
            _copy(stage, command, bound.sources, context)
        case _:
            _HANDLERS[type(command)](stage, command, context)


def _copy(
    stage: StageState, command: Copy, sources: tuple[StageState, ...], context: DispatchContext
) -> None:
    used = {paths.join("/", src) for src in command.sources}
    if not sources:
        dispatch_copy(stage, command, context.build_context, context)
        stage.ctx_paths |= used
        return
    source = sources[0]
    if not source.dispatched:
        raise DockerfileError(
            f'cannot copy from stage "{command.from_}", it needs to be defined before current'
            f' stage "{stage.display_name}"',
            token=command.from_,
        )
    dispatch_copy(stage, command, source.state, context)
    source.paths |= used


def _commit(stage: StageState, text: str) -> None:
    images.commit(stage.image, text, layer=False, by_vertex=False, epoch=stage.epoch)


def _env(stage: StageState, command: Env, context: DispatchContext) -> None:
    text = "ENV"
    for pair in command.pairs:
        if pair.legacy:
            context.linter.emit(
                rules.LEGACY_KEY_VALUE_FORMAT, command.ranges, command=command.name
            )
        report_secret_key(context.linter, "ENV", pair.key, command.ranges)
        text += f" {pair}"
        stage.state = stage.state.add_env(pair.key, pair.value)
        images.set_env(stage.image.config.env, pair.key, pair.value)
    _commit(stage, text)


def _label(stage: StageState, command: Label, context: DispatchContext) -> None:
    text = "LABEL"
    for pair in command.pairs:
        if pair.legacy:
            context.linter.emit(
                rules.LEGACY_KEY_VALUE_FORMAT, command.ranges, command=command.name
            )
        stage.image.config.labels[pair.key] = pair.value
        text += f" {pair}"
    _commit(stage, text)


def _maintainer(stage: StageState, command: Maintainer, _: DispatchContext) -> None:
    stage.image.author = command.maintainer
    _commit(stage, f"MAINTAINER {command.maintainer}")


def _on_build(stage: StageState, command: OnBuild, _: DispatchContext) -> None:
    stage.image.config.on_build.append(command.expression)


def set_workdir(stage: StageState, path: str) -> str:
    """Set the working directory of stage and config; return it with forward slashes."""
    os = stage.require_platform().os
    directory = ospaths.workdir(stage.image.config.working_dir, path, os)
    stage.image.config.working_dir = directory
    directory = ospaths.to_slash(directory, os)
    stage.state = stage.state.dir(directory)
    return directory


def _workdir(stage: StageState, command: Workdir, context: DispatchContext) -> None:
    platform = stage.require_platform()
    if not stage.workdir_set and not ospaths.is_abs(command.path, platform.os):
        context.linter.emit(rules.WORKDIR_RELATIVE_PATH, command.ranges, path=command.path)
    stage.workdir_set = True
    directory = set_workdir(stage, command.path)
    if directory != "/":
        env = stage.state.env
        shown = upper_keyword(expanded(command.original, env, context.escape))
        action = file_op.mkdir(
            directory,
            0o755,
            parents=True,
            owner=stage.image.config.user or None,
            created_ns=None if stage.epoch is None else stage.epoch * 1_000_000_000,
        )
        stage.state = stage.state.file(
            action,
            name=step_name(stage, shown, platform, env),
            locations=context.location(command.ranges),
            platform=platform,
        )
    images.commit(
        stage.image,
        f"WORKDIR {directory}",
        layer=directory != "/",
        by_vertex=False,
        epoch=stage.epoch,
    )


def set_user(stage: StageState, user: str) -> None:
    """Set the user of stage and config."""
    stage.state = stage.state.with_user(user)
    stage.image.config.user = user


def _user(stage: StageState, command: User, _: DispatchContext) -> None:
    set_user(stage, command.user)
    _commit(stage, f"USER {command.user}")


def _volume(stage: StageState, command: Volume, _: DispatchContext) -> None:
    for volume in command.volumes:
        if not volume:
            raise DockerfileError("VOLUME specified can not be an empty string")
        stage.image.config.volumes[volume] = None
    _commit(stage, f"VOLUME [{' '.join(command.volumes)}]")


def _expose(stage: StageState, command: Expose, context: DispatchContext) -> None:
    specs: list[str] = []
    for port in command.ports:
        specs.extend(expand(port, stage.state.env, escape=context.escape).words)
    ports = parse_ports(specs, context.linter, command.ranges)
    stage.image.config.exposed_ports |= dict.fromkeys(ports)
    _commit(stage, f"EXPOSE [{' '.join(ports)}]")


def _once(stage: StageState, name: str, command: Any, context: DispatchContext) -> None:  # noqa: ANN401
    """Report the instruction before this one, which has no effect any more."""
    before = stage.last_used.get(name)
    if before is not None:
        context.linter.emit(rules.MULTIPLE_INSTRUCTIONS_DISALLOWED, before, command=name)
    stage.last_used[name] = command.ranges


def _arguments(
    stage: StageState, command: Cmd | Entrypoint, line: CommandLine, context: DispatchContext
) -> list[str]:
    if not line.shell_form:
        return list(line.args)
    if not stage.image.config.shell:
        context.linter.emit(rules.JSON_ARGS_RECOMMENDED, command.ranges, command=command.name)
    return images.with_shell(stage.image, line.args)


def _quoted(values: list[str]) -> str:
    return f"[{' '.join(quote(value) for value in values)}]"


def _cmd(stage: StageState, command: Cmd, context: DispatchContext) -> None:
    _once(stage, "CMD", command, context)
    args = _arguments(stage, command, command.line, context)
    stage.image.config.cmd = args
    stage.image.config.args_escaped = True
    _commit(stage, f"CMD {_quoted(args)}")


def _entrypoint(stage: StageState, command: Entrypoint, context: DispatchContext) -> None:
    _once(stage, "ENTRYPOINT", command, context)
    args = _arguments(stage, command, command.line, context)
    stage.image.config.entrypoint = args
    if "CMD" not in stage.last_used:
        stage.image.config.cmd = []  # a base image's CMD were arguments for another program
    _commit(stage, f"ENTRYPOINT {_quoted(args)}")


def _healthcheck(stage: StageState, command: Healthcheck, context: DispatchContext) -> None:
    _once(stage, "HEALTHCHECK", command, context)
    stage.image.config.healthcheck = HealthcheckConfig(
        list(command.test),
        command.interval,
        command.timeout,
        command.start_period,
        command.start_interval,
        command.retries,
    )
    _commit(
        stage,
        f"HEALTHCHECK {{Test:[{' '.join(command.test)}]"
        f" Interval:{format_duration(command.interval)}"
        f" Timeout:{format_duration(command.timeout)}"
        f" StartPeriod:{format_duration(command.start_period)}"
        f" StartInterval:{format_duration(command.start_interval)}"
        f" Retries:{command.retries}}}",
    )


def format_duration(nanoseconds: int) -> str:
    """Return a duration as history entries have it: ``1h2m3.5s``, ``30s``, ``500ms``, ``0s``."""
    if nanoseconds == 0:
        return "0s"
    if nanoseconds < 0:
        return "-" + format_duration(-nanoseconds)
    for unit, size in (("ns", 1), ("\u00b5s", 1_000), ("ms", 1_000_000)):
        if nanoseconds < size * 1_000:
            return _decimal(nanoseconds, size) + unit
    minutes, rest = divmod(nanoseconds, 60_000_000_000)
    hours, minutes = divmod(minutes, 60)
    out = f"{hours}h" if hours else ""
    out += f"{minutes}m" if hours or minutes else ""
    return out + _decimal(rest, 1_000_000_000) + "s"


def _decimal(value: int, unit: int) -> str:
    whole, fraction = divmod(value, unit)
    digits = str(fraction).rjust(len(str(unit)) - 1, "0").rstrip("0")
    return f"{whole}.{digits}" if fraction else str(whole)


def _stop_signal(stage: StageState, command: StopSignal, _: DispatchContext) -> None:
    try:
        known = parse_int(command.signal, bits=64) != 0
    except ValueError:
        known = command.signal.upper().removeprefix("SIG") in _SIGNALS
    if not known:
        raise DockerfileError(f"invalid signal: {command.signal}", token=command.signal)
    stage.image.config.stop_signal = command.signal
    _commit(stage, f"STOPSIGNAL {command.signal}")


def _shell(stage: StageState, command: Shell, _: DispatchContext) -> None:
    stage.image.config.shell = list(command.shell)
    _commit(stage, f"SHELL [{' '.join(command.shell)}]")


def _arg(stage: StageState, command: Arg, context: DispatchContext) -> None:
    shown = []
    for definition in command.args:
        report_secret_key(context.linter, "ARG", definition.key, command.ranges)
        arg, inherited = _arg_value(stage, command, definition, context)
        if arg.value is not None and arg.key not in NON_ENV_ARGS:
            stage.state = stage.state.add_env(arg.key, arg.value)
        if not inherited:
            stage.outline.all_args[arg.key] = ArgInfo(arg, command.ranges, arg.value or "")
        stage.outline.used_args[arg.key] = None
        stage.build_args.append(arg)
        shown.append(arg.key if arg.value is None else f"{arg.key}={arg.value}")
    _commit(stage, f"ARG {' '.join(shown)}")


def _arg_value(
    stage: StageState, command: Arg, arg: ArgDefinition, context: DispatchContext
) -> tuple[ArgDefinition, bool]:
    """Return the argument with its value, and whether that comes from above the first FROM."""
    given = context.options.build_args.get(arg.key)
    if given is not None:
        return replace(arg, value=given), False
    if arg.value is not None:
        return replace(arg, value=context.expand(stage, command, arg.value)), False
    inherited = context.global_args.get(arg.key)
    return replace(arg, value=inherited), inherited is not None


_HANDLERS: dict[type, Callable[[StageState, Any, DispatchContext], None]] = {
    Env: _env,
    Label: _label,
    Maintainer: _maintainer,
    OnBuild: _on_build,
    Workdir: _workdir,
    User: _user,
    Volume: _volume,
    Expose: _expose,
    Cmd: _cmd,
    Entrypoint: _entrypoint,
    Healthcheck: _healthcheck,
    StopSignal: _stop_signal,
    Shell: _shell,
    Arg: _arg,
}
