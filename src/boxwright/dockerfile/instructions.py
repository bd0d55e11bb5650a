"""Statements to typed commands, and typed commands to their expanded copies."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar, cast

from boxwright.dockerfile.errors import DockerfileError
from boxwright.dockerfile.golang import SPACE, parse_duration, parse_int, quote
from boxwright.dockerfile.heredoc import chomp, is_heredoc
from boxwright.dockerfile.instructions_flags import FlagKind, Flags
from boxwright.dockerfile.instructions_run import Expander, parse_device, parse_mount
from boxwright.dockerfile.parser_line import INSTRUCTIONS, Statement
from boxwright.dockerfile.suggest import did_you_mean, nearest
from boxwright.dockerfile.syntax import (
    Add,
    Arg,
    ArgDefinition,
    Cmd,
    Command,
    CommandLine,
    Copy,
    Entrypoint,
    Env,
    Expose,
    FileTransfer,
    From,
    Healthcheck,
    InlineFile,
    KeyValue,
    Label,
    Maintainer,
    OnBuild,
    Run,
    Shell,
    SourceContent,
    StopSignal,
    User,
    Volume,
    Workdir,
)

C = TypeVar("C", bound=Command)

_STAGE_NAME = re.compile(r"[a-z][a-z0-9-_.]*\Z")
_ONBUILD = re.compile(r"[\t\n\f\r ]*ONBUILD[\t\n\f\r ]*", re.IGNORECASE)
_ADD_FLAGS: dict[str, FlagKind] = {
    "chown": "text",
    "chmod": "text",
    "link": "bool",
    "keep-git-dir": "bool",
    "checksum": "text",
    "unpack": "bool",
    "exclude": "list",
}
_COPY_FLAGS: dict[str, FlagKind] = {
    "chown": "text",
    "from": "text",
    "chmod": "text",
    "link": "bool",
    "exclude": "list",
    "parents": "bool",
}
_RUN_FLAGS: dict[str, FlagKind] = {
    "mount": "list",
    "network": "text",
    "security": "text",
    "device": "list",
}
_HEALTH_FLAGS: dict[str, FlagKind] = {
    "interval": "text",
    "timeout": "text",
    "start-period": "text",
    "start-interval": "text",
    "retries": "text",
}
_MILLISECOND = 1_000_000


def build_command(statement: Statement) -> Command:
    """Type one statement.

    Raises:
        DockerfileError: unknown instruction, or arguments or flags it does not take; with
            the statement's lines and, where possible, the words at fault.
    """
    build = _BUILDERS.get(statement.name)
    try:
        if build is None:
            raise _unknown_instruction(statement.keyword)
        return build(statement)
    except DockerfileError as error:
        raise error.located(statement.ranges, focus=statement.locate(error.token)) from None


def expand_command(command: C, expander: Expander) -> C:
    """Return a copy with variables replaced where the instruction expands them.

    RUN expands its mounts only. ARG and EXPOSE are left as they are, since ARG's values may
    be overridden and EXPOSE splits after expansion: the converter does those.

    Raises:
        DockerfileError: from the expander, or from a mount once its values are known.
    """
    changes: dict[str, Any] = {}
    match command:
        case Env(pairs=pairs) | Label(pairs=pairs):
            changes["pairs"] = tuple(
                replace(pair, key=expander(pair.key), value=expander(pair.value)) for pair in pairs
            )
        case Add() | Copy():
            changes["chown"] = expander(command.chown)
            changes["chmod"] = expander(command.chmod)
            if isinstance(command, Add):
                changes["checksum"] = expander(command.checksum)
            changes["sources"] = tuple(expander(source) for source in command.sources)
            changes["destination"] = expander(command.destination)
        case Run(mount_flags=flags):
            changes["mounts"] = tuple(parse_mount(flag, expander) for flag in flags)
        case Workdir():
            changes["path"] = expander(command.path)
        case User():
            changes["user"] = expander(command.user)
        case Volume():
            changes["volumes"] = tuple(expander(volume) for volume in command.volumes)
        case StopSignal():
            changes["signal"] = expander(command.signal)
        case _:
            return command
    return replace(command, **changes)


def expand_contents(command: C, expander: Expander) -> C:
    """Return a copy in which the heredoc files of COPY and ADD are expanded.

    The expander is to take quotes for ordinary characters and the backslash for the escape,
    whatever the file's own is (``expand(..., skip_quotes=True)``).
    """
    if not isinstance(command, FileTransfer):
        return command
    contents = tuple(
        replace(item, data=expander(item.data)) if item.expand else item
        for item in command.contents
    )
    return cast("C", replace(command, contents=contents))


def doc_comment(comments: tuple[str, ...], name: str) -> str:
    """Return what the first comment that begins with ``name`` says about it, or ""."""
    if name:
        for comment in comments:
            if comment.startswith(f"{name} "):
                return comment[len(name) + 1 :]
    return ""


def _unknown_instruction(keyword: str) -> DockerfileError:
    suggestion = nearest(keyword, INSTRUCTIONS, case_sensitive=False)
    hint = f"write {suggestion}" if suggestion else f"use one of {', '.join(INSTRUCTIONS)}"
    return DockerfileError(
        did_you_mean(f"unknown instruction: {keyword}", suggestion), token=keyword, hint=hint
    )


def _base(statement: Statement) -> dict[str, Any]:
    return {
        "keyword": statement.keyword,
        "original": statement.text.strip(SPACE),
        "ranges": statement.ranges,
        "comments": statement.comments,
        "flags": statement.flags,
    }


def _no_flags(statement: Statement) -> None:
    Flags(statement.flags, {})


def _at_least_one(statement: Statement) -> None:
    if not statement.args:
        raise DockerfileError(f"{statement.name} requires at least one argument")


def _exactly_one(statement: Statement) -> str:
    if len(statement.args) != 1:
        raise DockerfileError(f"{statement.name} requires exactly one argument")
    return statement.args[0]


def _from(statement: Statement) -> From:
    args = statement.args
    name = ""
    if len(args) == 3 and args[1].lower() == "as":
        name = args[2].lower()
        if not _STAGE_NAME.match(name):
            raise DockerfileError(
                f"invalid name for build stage: {quote(args[2])}, name can't start with a"
                " number or contain symbols",
                token=args[2],
            )
    elif len(args) != 1:
        raise DockerfileError(
            "FROM requires either one or three arguments",
            hint="write FROM <image> or FROM <image> AS <name>",
        )
    flags = Flags(statement.flags, {"platform": "text"})
    return From(
        base=args[0],
        stage_name=name,
        platform=flags.text("platform"),
        doc_comment=doc_comment(statement.comments, name),
        **_base(statement),
    )


def _command_line(statement: Statement, args: tuple[str, ...]) -> CommandLine:
    if args and not statement.is_json:
        args = (" ".join(args),)
    files = tuple(InlineFile(doc.name, doc.content, doc.chomp) for doc in statement.heredocs)
    return CommandLine(args, shell_form=not statement.is_json, files=files)


def _run(statement: Statement) -> Run:
    flags = Flags(statement.flags, _RUN_FLAGS)
    mounts = tuple(parse_mount(text) for text in flags.all("mount"))
    network = flags.text("network", "default")
    if network not in {"default", "none", "host"}:
        raise DockerfileError(
            f"invalid network mode {quote(network)}",
            token=network,
            hint="use one of default, none, host",
        )
    security = flags.text("security", "sandbox")
    if security not in {"sandbox", "insecure"}:
        raise DockerfileError(
            f"security {quote(security)} is not valid",
            token=security,
            hint="use one of sandbox, insecure",
        )
    return Run(
        line=_command_line(statement, statement.args),
        mount_flags=flags.all("mount"),
        mounts=mounts,
        network=cast("Any", network),
        security=cast("Any", security),
        devices=tuple(parse_device(text) for text in flags.all("device")),
        flags_used=flags.used,
        **_base(statement),
    )


def _cmd(statement: Statement) -> Cmd:
    _no_flags(statement)
    return Cmd(line=_command_line(statement, statement.args), **_base(statement))


def _entrypoint(statement: Statement) -> Entrypoint:
    _no_flags(statement)
    return Entrypoint(line=_command_line(statement, statement.args), **_base(statement))


def _shell(statement: Statement) -> Shell:
    _no_flags(statement)
    _at_least_one(statement)
    if not statement.is_json:
        raise DockerfileError(
            "SHELL requires the arguments to be in JSON form",
            hint='write SHELL ["program", "argument"]',
        )
    return Shell(shell=statement.args, **_base(statement))


def _transfer(statement: Statement, known: dict[str, FlagKind]) -> tuple[Flags, dict[str, Any]]:
    """Read what COPY and ADD share."""
    name = statement.name
    if len(statement.args) < 2:
        raise DockerfileError(
            f"{name} requires at least two arguments, but only one was provided."
            " Destination could not be determined"
        )
    flags = Flags(statement.flags, known)
    *words, destination = statement.args
    if is_heredoc(destination):
        raise DockerfileError(f"{name} cannot accept a heredoc as a destination")
    bodies = {doc.name: doc.content for doc in statement.heredocs}
    sources: list[str] = []
    contents: list[SourceContent] = []
    for word in words:
        doc = is_heredoc(word)
        if doc is None:
            sources.append(word)
            continue
        body = bodies.get(doc.name, "")
        contents.append(SourceContent(doc.name, chomp(body) if doc.chomp else body, doc.expand))
    return flags, {
        "sources": tuple(sources),
        "contents": tuple(contents),
        "destination": destination,
        "chown": flags.text("chown"),
        "chmod": flags.text("chmod"),
        "link": flags.truth("link"),
        "exclude": flags.all("exclude"),
        **_base(statement),
    }


def _add(statement: Statement) -> Add:
    flags, fields = _transfer(statement, _ADD_FLAGS)
    return Add(
        checksum=flags.text("checksum"),
        keep_git_dir=flags.maybe("keep-git-dir"),
        unpack=flags.maybe("unpack"),
        **fields,
    )


def _copy(statement: Statement) -> Copy:
    flags, fields = _transfer(statement, _COPY_FLAGS)
    return Copy(from_=flags.text("from"), parents=flags.truth("parents"), **fields)


def _pairs(statement: Statement) -> tuple[KeyValue, ...]:
    _no_flags(statement)
    _at_least_one(statement)
    keys, values, separators = (statement.args[start::3] for start in range(3))
    if not all(keys):
        raise DockerfileError(f"{statement.name} names can not be blank")
    return tuple(
        KeyValue(key, value, legacy=not separator)
        for key, value, separator in zip(keys, values, separators, strict=True)
    )


def _env(statement: Statement) -> Env:
    return Env(pairs=_pairs(statement), **_base(statement))


def _label(statement: Statement) -> Label:
    return Label(pairs=_pairs(statement), **_base(statement))


def _arg(statement: Statement) -> Arg:
    _at_least_one(statement)
    definitions: list[ArgDefinition] = []
    for word in statement.args:
        key, equals, value = word.partition("=")
        if equals and not key:
            raise DockerfileError("ARG names can not be blank", token=word)
        definitions.append(
            ArgDefinition(key, value if equals else None, doc_comment(statement.comments, key))
        )
    return Arg(args=tuple(definitions), **_base(statement))


def _maintainer(statement: Statement) -> Maintainer:
    maintainer = _exactly_one(statement)
    _no_flags(statement)
    return Maintainer(maintainer=maintainer, **_base(statement))


def _workdir(statement: Statement) -> Workdir:
    path = _exactly_one(statement)
    _no_flags(statement)
    return Workdir(path=path, **_base(statement))


def _user(statement: Statement) -> User:
    user = _exactly_one(statement)
    _no_flags(statement)
    return User(user=user, **_base(statement))


def _stop_signal(statement: Statement) -> StopSignal:
    return StopSignal(signal=_exactly_one(statement), **_base(statement))


def _expose(statement: Statement) -> Expose:
    _at_least_one(statement)
    _no_flags(statement)
    ports = tuple(sorted(statement.args, key=lambda port: port.encode("utf-8", "replace")))
    return Expose(ports=ports, **_base(statement))


def _volume(statement: Statement) -> Volume:
    _at_least_one(statement)
    _no_flags(statement)
    volumes = tuple(word.strip(SPACE) for word in statement.args)
    if not all(volumes):
        raise DockerfileError("VOLUME specified can not be an empty string")
    return Volume(volumes=volumes, **_base(statement))


def _healthcheck(statement: Statement) -> Healthcheck:
    _at_least_one(statement)
    kind, args = statement.args[0].upper(), statement.args[1:]
    if kind == "NONE":
        if args:
            raise DockerfileError("HEALTHCHECK NONE takes no arguments")
        return Healthcheck(test=(kind,), **_base(statement))
    flags = Flags(statement.flags, _HEALTH_FLAGS)
    if kind != "CMD":
        raise DockerfileError(
            f"Unknown type {quote(kind)} in HEALTHCHECK (try CMD)", token=statement.args[0]
        )
    command = _command_line(statement, args).args
    if not command:
        raise DockerfileError("Missing command after HEALTHCHECK CMD")
    return Healthcheck(
        test=("CMD" if statement.is_json else "CMD-SHELL", *command),
        interval=_interval(flags, "interval"),
        timeout=_interval(flags, "timeout"),
        start_period=_interval(flags, "start-period"),
        start_interval=_interval(flags, "start-interval"),
        retries=_retries(flags.text("retries")),
        **_base(statement),
    )


def _interval(flags: Flags, name: str) -> int:
    text = flags.text(name)
    if not text:
        return 0
    try:
        value = parse_duration(text)
    except ValueError as error:
        raise DockerfileError(str(error), token=text, hint="write 30s, 1m30s, …") from None
    if value != 0 and value < _MILLISECOND:
        raise DockerfileError(f"Interval {quote(name)} cannot be less than 1ms", token=text)
    return value


def _retries(text: str) -> int:
    if not text:
        return 0
    try:
        value = parse_int(text)
    except ValueError as error:
        raise DockerfileError(str(error), token=text) from None
    if value < 0:
        raise DockerfileError(f"--retries cannot be negative ({value})", token=text)
    return value


def _on_build(statement: Statement) -> OnBuild:
    _at_least_one(statement)
    _no_flags(statement)
    trigger = statement.args[0].strip(SPACE).upper()
    if trigger == "ONBUILD":
        raise DockerfileError("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
    if trigger in {"MAINTAINER", "FROM"}:
        raise DockerfileError(f"{trigger} isn't allowed as an ONBUILD trigger", token=trigger)
    match = _ONBUILD.match(statement.text)
    expression = statement.text[match.end() :] if match else statement.text
    bodies = "".join(f"\n{doc.content}{doc.name}" for doc in statement.heredocs)
    return OnBuild(expression=expression + bodies, **_base(statement))


_BUILDERS: dict[str, Callable[[Statement], Command]] = {
    "ADD": _add,
    "ARG": _arg,
    "CMD": _cmd,
    "COPY": _copy,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "FROM": _from,
    "HEALTHCHECK": _healthcheck,
    "LABEL": _label,
    "MAINTAINER": _maintainer,
    "ONBUILD": _on_build,
    "RUN": _run,
    "SHELL": _shell,
    "STOPSIGNAL": _stop_signal,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}
