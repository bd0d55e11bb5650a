"""``SOURCE_DATE_EPOCH``: seconds since 1970, or where to take the date from.

Where is ``context``, a named context, or a stage that is nothing but one remote ADD; the
date is a git commit's, a download's, or that of the newest file in a downloaded archive.
"""

from __future__ import annotations

import re
from dataclasses import replace

from boxwright.core.digest import Digest
from boxwright.dockerfile.contexts import BuildContexts, NamedContext, archive_newest_mtime
from boxwright.dockerfile.convert_stage import SCRATCH
from boxwright.dockerfile.dispatch_context import located
from boxwright.dockerfile.dispatch_copy import git_state, http_filename, is_http_source
from boxwright.dockerfile.errors import DockerfileError
from boxwright.dockerfile.expand import expand
from boxwright.dockerfile.golang import parse_int
from boxwright.dockerfile.options import BuildOptions
from boxwright.dockerfile.syntax import Add, Arg, Dockerfile, Stage
from boxwright.errors import InvalidInputError, NotFoundError
from boxwright.llb.build_env import EnvList
from boxwright.llb.build_giturl import parse_git_ref
from boxwright.llb.source_op import http, source
from boxwright.llb.state import State
from boxwright.wire.pb import ops_pb2 as pb

_KEY = "SOURCE_DATE_EPOCH"
_COMMITTER = re.compile(rb"^committer .* (-?\d+) [+-]\d{4}$", re.MULTILINE)
# The years 1 to 9999 are what RFC 3339 can write.
_MIN_EPOCH, _MAX_EPOCH = -62135596800, 253402300799
_ONE_ADD = "SOURCE_DATE_EPOCH stage must contain exactly one remote ADD"


async def resolve_epoch(
    build: BuildOptions, args: EnvList, parsed: Dockerfile, contexts: BuildContexts | None
) -> tuple[BuildOptions, EnvList, int | None]:
    """Find the date and put it, as a number, where the value was given.

    Returns:
        Options and arguments with the number in place, and the number; None where there is
        no date, and then the argument is unset as well.

    Raises:
        InvalidInputError: the value is neither a number nor a place.
        DockerfileError: the stage named has other instructions than it may have.
    """
    value = build.build_args.get(_KEY)
    if value is None:
        value = args.get(_KEY) or None
    if value is None:
        return build, args, None
    epoch = await _resolve(value, build, args, parsed, contexts)
    if _KEY in build.build_args:
        given = {key: item for key, item in build.build_args.items() if key != _KEY}
        if epoch is not None:
            given[_KEY] = str(epoch)
        build = replace(build, build_args=given)
    if _KEY in args:
        args = args.delete(_KEY) if epoch is None else args.set(_KEY, str(epoch))
    return build, args, epoch


async def _resolve(
    value: str,
    build: BuildOptions,
    args: EnvList,
    parsed: Dockerfile,
    contexts: BuildContexts | None,
) -> int | None:
    if not value:
        return None
    try:
        epoch = parse_int(value, bits=64)
    except ValueError:
        pass
    else:
        if not _MIN_EPOCH <= epoch <= _MAX_EPOCH:
            raise InvalidInputError(f"invalid {_KEY}: {value}", hint="give seconds since 1970")
        return epoch
    if contexts is None:
        return None
    if value == "context":
        state = await contexts.main_context()
        return await _date_of(state, contexts, "[internal] resolve main build context metadata")
    named = _named(value, contexts)
    if named is not None:
        state, _ = await named.load()
        log_name = f"[internal] resolve {_KEY} named context {value}"
        return await _date_of(state, contexts, log_name)
    for stage in parsed.stages:
        if stage.name.lower() == value.lower():
            with located(stage.ranges):
                state = _stage_source(stage, build, args.delete(_KEY), parsed.escape)
            log_name = f"[internal] resolve {_KEY} source stage {stage.name}"
            return await _date_of(state, contexts, log_name)
    raise InvalidInputError(
        f"invalid {_KEY}: {value}", hint="give seconds since 1970, context, or a stage's name"
    )


def _named(value: str, contexts: BuildContexts) -> NamedContext | None:
    try:
        return contexts.named(value)
    except InvalidInputError:
        return None  # no context can have this name; a stage may


def _stage_source(stage: Stage, build: BuildOptions, env: EnvList, escape: str) -> State:
    """Return the source of a stage that is one remote ADD on scratch."""
    if expand(stage.base, env, escape=escape).text != SCRATCH:
        raise DockerfileError("SOURCE_DATE_EPOCH stage must use FROM scratch")
    found: State | None = None
    for command in stage.commands:
        if isinstance(command, Arg):
            for arg in command.args:
                if arg.key in build.build_args:
                    env = env.set(arg.key, build.build_args[arg.key])
                elif arg.value is not None:
                    env = env.set(arg.key, expand(arg.value, env, escape=escape).text)
        elif isinstance(command, Add):
            if found is not None:
                raise DockerfileError(_ONE_ADD)
            found = _add_source(command, env, escape)
        else:
            raise DockerfileError(
                "SOURCE_DATE_EPOCH stage does not meet source-only requirements: unsupported"
                f" {command.name} instruction"
            )
    if found is None:
        raise DockerfileError(_ONE_ADD)
    return found


def _add_source(command: Add, env: EnvList, escape: str) -> State:
    if command.contents or len(command.sources) != 1:
        raise DockerfileError(_ONE_ADD + " source")
    src = expand(command.sources[0], env, escape=escape).text
    checksum = expand(command.checksum, env, escape=escape).text
    if is_http_source(src):
        digest = Digest(checksum) if checksum else None
        return http(src, filename=http_filename(src), checksum=digest)
    ref = parse_git_ref(src)
    if ref is None or ref.looks_local:
        raise DockerfileError("SOURCE_DATE_EPOCH stage source must be a single HTTP(S) or Git ADD")
    keep = bool(command.keep_git_dir) or bool(ref.keep_git_dir)
    return git_state(ref, keep_git_dir=keep, checksum=checksum or ref.checksum)


async def _date_of(state: State, contexts: BuildContexts, log_name: str) -> int | None:
    op = _only_source(state)
    if op is None:
        return None
    is_git = op.identifier.startswith("git://")
    metadata = await contexts.bridge.resolve_source_metadata(
        op, log_name=log_name, return_object=is_git
    )
    if metadata.git is not None and metadata.git.commit_object:
        return _committer_time(metadata.git.commit_object)
    if metadata.http_last_modified_ns is not None:
        return metadata.http_last_modified_ns // 1_000_000_000
    filename = op.attrs.get("http.filename", "")
    if not filename or not op.identifier.startswith(("http://", "https://")):
        return None
    ref = await contexts.bridge.solve(source(op.identifier, dict(op.attrs)).marshal())
    if ref is None:
        return None
    try:
        return archive_newest_mtime(await ref.read_file(filename))
    except NotFoundError:
        return None


def _only_source(state: State) -> pb.SourceOp | None:
    ops = [pb.Op.FromString(data) for data in getattr(state.marshal(), "def")]
    sources = [op.source for op in ops if op.HasField("source")]
    return sources[0] if len(sources) == 1 else None


def _committer_time(commit: bytes) -> int | None:
    header = commit.partition(b"\n\n")[0]
    match = _COMMITTER.search(header)
    return int(match[1]) if match else None
