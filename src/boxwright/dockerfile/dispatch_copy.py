"""COPY and ADD: file vertices over the context, stages, URLs, git and inline files."""

from __future__ import annotations

import re
import secrets
from urllib.parse import unquote, urlsplit

from boxwright.core.dataclass import dataclass
from boxwright.core.digest import Digest
from boxwright.dockerfile import image as images
from boxwright.dockerfile import ospaths
from boxwright.dockerfile.convert_names import expanded, step_name, step_prefix, upper_keyword
from boxwright.dockerfile.convert_stage import StageState
from boxwright.dockerfile.dispatch_context import DispatchContext, description
from boxwright.dockerfile.dispatch_run import INLINE_NAME
from boxwright.dockerfile.errors import DockerfileError
from boxwright.dockerfile.golang import parse_uint
from boxwright.dockerfile.lint import report_ignored_source
from boxwright.dockerfile.syntax import Add, Copy, FileTransfer, SourceContent
from boxwright.errors import InvalidInputError
from boxwright.llb import build_caps as caps
from boxwright.llb import build_paths as paths
from boxwright.llb.build_giturl import GitRef, parse_git_ref
from boxwright.llb.build_ops import merge
from boxwright.llb.file_op import CopyOptions, FileAction, copy, mkfile
from boxwright.llb.marshal import OpOptions, ProgressGroup
from boxwright.llb.source_op import git, http
from boxwright.llb.state import State

_SYMBOLIC_MODE = re.compile(r"[augo]*(?:[-+=][rstwXxugo]*)+(?:,[augo]*(?:[-+=][rstwXxugo]*)+)*\Z")
_UNNAMED = "__unnamed__"
_ID_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"


@dataclass(slots=True)
class _Transfer:
    """One COPY or ADD while its actions are put together."""

    stage: StageState
    command: Copy | Add
    context: DispatchContext
    source: State
    in_context: bool
    destination: str
    mode: int | str | None
    os: str
    step: str = ""
    action: FileAction | None = None

    def copy(self, source: State, src: str, **options: object) -> None:
        """Append a copy; ``options`` are fields of :class:`CopyOptions`."""
        how = CopyOptions(
            mode=self.mode,
            owner=self.command.chown or None,
            exclude=self.command.exclude,
            create_parents=True,
            **options,  # type: ignore[arg-type]
        )
        action = copy(source, src, self.destination, how)
        self.action = action if self.action is None else self.action.then(action)


def dispatch_copy(
    stage: StageState, command: Copy | Add, source: State, context: DispatchContext
) -> None:
    """Add a COPY or ADD to the stage.

    Args:
        stage: The stage to change.
        command: The instruction with its variables replaced.
        source: What it copies from: the build context or another stage.
        context: The surroundings.

    Raises:
        DockerfileError: flags or sources that can't be.
    """
    platform = stage.require_platform()
    destination = _destination(stage, command.destination, platform.os)
    mode = parse_mode(command.chmod)
    _check_checksum(command)
    env = stage.state.env
    name = upper_keyword(expanded(command.original, env, context.escape))
    transfer = _Transfer(
        stage,
        command,
        context,
        source,
        source is context.build_context,
        destination,
        mode,
        platform.os,
    )
    transfer.step = step_name(stage, name, platform, env)
    git_settings = _GitSettings(
        command.keep_git_dir if isinstance(command, Add) else None,
        command.checksum if isinstance(command, Add) else "",
    )
    for src in command.sources:
        _add_source(transfer, src, git_settings)
    for content in command.contents:
        _add_content(transfer, content)
    _apply(transfer, name)
    images.commit(stage.image, _created_by(command), layer=True, by_vertex=True, epoch=stage.epoch)


@dataclass(slots=True)
class _GitSettings:
    """``--keep-git-dir`` and ``--checksum``, which a git URL's query may set as well."""

    keep_git_dir: bool | None
    checksum: str

    def merge(self, ref: GitRef) -> None:
        if ref.keep_git_dir is not None:
            if self.keep_git_dir is not None and self.keep_git_dir != ref.keep_git_dir:
                raise DockerfileError("inconsistent keep-git-dir configuration")
            self.keep_git_dir = ref.keep_git_dir
        if ref.checksum:
            if self.checksum and self.checksum != ref.checksum:
                raise DockerfileError(f'checksum mismatch "{self.checksum}" != "{ref.checksum}"')
            self.checksum = ref.checksum


def _add_source(transfer: _Transfer, src: str, settings: _GitSettings) -> None:
    ref = parse_git_ref(src)
    if ref is not None and not ref.looks_local:
        if not isinstance(transfer.command, Add):
            raise DockerfileError("source can't be a git ref for COPY", token=src)
        settings.merge(ref)
        state = git_state(
            ref,
            keep_git_dir=settings.keep_git_dir,
            checksum=settings.checksum,
            name=transfer.step,
        )
        transfer.copy(state, "/")
    elif is_http_source(src):
        _add_http(transfer, src, settings.checksum)
    else:
        _add_path(transfer, src)


def git_state(ref: GitRef, *, keep_git_dir: bool | None, checksum: str, name: str = "") -> State:
    """Return the state of a git source of ADD."""
    return git(
        ref.remote,
        ref.ref,
        subdir=ref.subdir,
        keep_git_dir=bool(keep_git_dir),
        checksum=checksum,
        skip_submodules=ref.submodules is False,
        fetch_by_commit=ref.fetch_by_commit,
        name=name,
    )


def _add_http(transfer: _Transfer, src: str, checksum: str) -> None:
    if not isinstance(transfer.command, Add):
        raise DockerfileError("source can't be a URL for COPY", token=src)
    filename = http_filename(src)
    state = http(
        src,
        filename=filename,
        checksum=_checksum(checksum) if checksum else None,
        name=transfer.step,
        description=description(""),
    )
    transfer.copy(state, filename, unpack=bool(transfer.command.unpack))


def _checksum(text: str) -> Digest:
    try:
        return Digest(text)
    except InvalidInputError as error:
        algorithm, _, hexpart = text.partition(":")
        if not algorithm or not hexpart:
            said = "invalid checksum digest format"
        elif algorithm not in {"sha256", "sha384", "sha512"}:
            said = "unsupported digest algorithm"
        else:
            is_short = len(hexpart) != int(algorithm[3:]) // 4
            said = f"invalid checksum digest {'length' if is_short else 'format'}"
        raise DockerfileError(said, token=text) from error


def http_filename(url: str) -> str:
    """Return the name that a download gets: the URL path's last part."""
    try:
        base = paths.base(unquote(urlsplit(url).path))
    except ValueError:
        return _UNNAMED
    return _UNNAMED if base in {".", "/"} else base


def is_http_source(src: str) -> bool:
    """Return whether a source is to be downloaded; a ``.git`` URL is git's."""
    if not src.startswith(("http://", "https://")):
        return False
    try:
        return parse_git_ref(src) is None
    except InvalidInputError:
        return False


def _add_path(transfer: _Transfer, src: str) -> None:
    command, os = transfer.command, transfer.os
    context = transfer.context
    if transfer.in_context and context.ignored is not None:
        report_ignored_source(context.linter, command.name, src, context.ignored, command.ranges)
    include: list[str] = []
    required: list[str] = []
    if isinstance(command, Copy) and command.parents:
        # Everything before "/./" is where to start from and not part of the result.
        root, pivot, pattern = src.partition("/./")
        if not pivot:
            root, pattern = "/", src
        src = root
        pattern = ospaths.normalize("/", pattern, os, keep_slash=False)
        include = [pattern.removeprefix("/")]
        if not has_wildcards(src) and not has_wildcards(pattern):
            joined = paths.join(src, pattern)
            required = [ospaths.normalize("/", joined, os, keep_slash=False)]
    unpack = isinstance(command, Add) and command.unpack is not False
    transfer.copy(
        transfer.source,
        ospaths.normalize("/", src, os, keep_slash=False),
        follow_symlinks=True,
        contents_only=True,
        include=include,
        required=required,
        unpack=unpack,
        wildcard=True,
        empty_wildcard=True,
    )


def has_wildcards(path: str) -> bool:
    """Return whether a path has an unescaped ``*``, ``?`` or ``[``."""
    return re.search(r"(?<!\\)(?:\\\\)*[*?\[]", path) is not None


def _add_content(transfer: _Transfer, content: SourceContent) -> None:
    path = ospaths.strip_drive(content.path, transfer.os)
    data = content.data.encode("utf-8", "surrogateescape")
    state = State().file(mkfile(path, data), name=INLINE_NAME, platform=transfer.stage.platform)
    transfer.copy(state, ospaths.to_slash(path, transfer.os))


def _apply(transfer: _Transfer, name: str) -> None:
    stage, command, context = transfer.stage, transfer.command, transfer.context
    assert transfer.action is not None
    options = OpOptions(
        name=transfer.step,
        locations=context.location(command.ranges),
        ignore_cache=stage.ignore_cache,
    )
    # A merged layer can't keep modes of directories that it only adds to.
    if not command.link or command.chmod or caps.MERGE_OP not in context.caps:
        stage.state = stage.state.file(transfer.action, **options)
        return
    env, platform = stage.state.env, stage.platform
    group = "".join(secrets.choice(_ID_ALPHABET) for _ in range(25))
    options["progress_group"] = ProgressGroup(group, transfer.step, weak=True)
    options["platform"] = platform
    copied = State().file(transfer.action, **options)
    del options["platform"]
    shown = ("ONBUILD " if stage.in_on_build else "") + "LINK " + name
    options["progress_group"] = ProgressGroup(group, transfer.step)
    options["name"] = step_prefix(stage, platform, env) + shown
    stage.state = stage.state.with_output(merge([stage.state, copied], **options).output)


def _destination(stage: StageState, path: str, os: str) -> str:
    path = ospaths.strip_drive(path, os, keep_slash=True)
    if ospaths.is_abs(path, os):
        return ospaths.normalize("/", path, os, keep_slash=True)
    if path in {"", "."}:
        path = "./"
    return ospaths.normalize(stage.state.cwd, path, os, keep_slash=True)


def parse_mode(text: str) -> int | str | None:
    """Return ``--chmod`` as permission bits, or symbolic text as it is; None for "".

    Raises:
        DockerfileError: neither octal up to 07777 nor symbolic.
    """
    if not text:
        return None
    try:
        bits = parse_uint(text, base=8)
    except ValueError:
        bits = 0o10000
        if not text[0].isdecimal():
            if _SYMBOLIC_MODE.match(text):
                return text
            raise DockerfileError(
                f"invalid chmod parameter: '{text}'. it should be octal or symbolic",
                token=text,
                hint="write --chmod=755 or --chmod=u=rwX,go=rX",
            ) from None
    if bits > 0o7777:
        raise DockerfileError(
            f"invalid chmod parameter: '{text}'. it should be octal string and between 0 and"
            " 07777",
            token=text,
        )
    return bits


def _check_checksum(command: FileTransfer) -> None:
    if not isinstance(command, Add) or not command.checksum:
        return
    if len(command.sources) != 1:
        raise DockerfileError("checksum can't be specified for multiple sources")
    src = command.sources[0]
    if not is_http_source(src) and not _is_git(src):
        raise DockerfileError("checksum requires HTTP(S) or Git sources", token=src)


def _is_git(src: str) -> bool:
    try:
        return parse_git_ref(src) is not None
    except InvalidInputError:
        return True


def _created_by(command: Copy | Add) -> str:
    words: list[str] = [command.name]
    if isinstance(command, Copy) and command.parents:
        words.append("--parents")
    if command.chown:
        words.append(f"--chown={command.chown}")
    if command.chmod:
        words.append(f"--chmod={command.chmod}")
    words += command.sources
    words += [f"<<{content.path}" for content in command.contents]
    return " ".join([*words, command.destination])
