"""Build contexts: the main one, the Dockerfile's own, and those given by name.

A context is a client's directory, a git repository, a file or archive on the web, an
image, an OCI layout, or the result of another build. What is read here of a context are the
Dockerfile and ``.dockerignore``; everything else the graph refers to.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
from base64 import b64decode
from collections.abc import Callable, Sequence

from boxwright.core.dataclass import dataclass, field, replace
from boxwright.core.platform import Platform
from boxwright.core.reference import Reference
from boxwright.dockerfile.bridge import FrontendBridge, FrontendRef, NotAnImageError, OciStore
from boxwright.dockerfile.dockerignore import parse_dockerignore
from boxwright.dockerfile.golang import parse_bool
from boxwright.dockerfile.options import BuildOptions
from boxwright.errors import BoxwrightError, Code, InvalidInputError, NotFoundError, named
from boxwright.llb.build_giturl import GitRef, parse_git_ref
from boxwright.llb.build_ops import from_definition
from boxwright.llb.file_op import CopyOptions, copy
from boxwright.llb.marshal import Output, SourceMap, Vertex
from boxwright.llb.source_op import git, http, image, local, oci_layout
from boxwright.llb.state import State
from boxwright.oci.image import Image
from boxwright.wire.pb import ops_pb2 as pb

DOCKERFILE = "Dockerfile"
DOCKERIGNORE = ".dockerignore"
_NO_FOLDER = frozenset({Code.NOT_FOUND, Code.UNIMPLEMENTED})  # of this name, or at all
_HTTP = re.compile(r"https?://")
_HTTP_FILENAME = "context"
_HEADER_SIZE = 1024
_TAR_BLOCK = 512
_ARCHIVE_MAGIC = (b"BZh", b"\x1f\x8b\x08", b"\xfd7zXZ\x00")
_CONFIG_KEY = "containerimage.config"


class DockerfileNotFoundError(NotFoundError):
    """The context has no file of the Dockerfile's name."""

    code = Code.SOURCE_NOT_FOUND

    def __init__(self, filename: str) -> None:
        super().__init__(
            f"failed to read dockerfile: open {filename}: no such file or directory",
            hint="name it with --file, or run the build in its directory",
        )


@dataclass(frozen=True, slots=True)
class Entrypoint:
    """The Dockerfile as it was read."""

    source_map: SourceMap
    vertex: str
    """Digest of the vertex it came from, which warnings are shown beside."""


@dataclass(slots=True)
class MainContext:
    """Where the main context and the Dockerfile come from; states are None for local ones."""

    filename: str
    dockerfile_name: str = "dockerfile"
    context_name: str = "context"
    context: State | None = None
    dockerfile: State | None = None
    local_dockerfile: bool = False
    source: State | None = None
    http_ref: FrontendRef | None = None
    http_is_archive: bool = False


@dataclass(slots=True)
class BuildContexts:
    """Gives access to the contexts of one build; each is looked up once."""

    bridge: FrontendBridge
    options: BuildOptions
    _main: MainContext | None = None
    _ignore: bytes | None = None
    _ignore_name: str = DOCKERIGNORE
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def main(self) -> MainContext:
        """Return where the main context comes from."""
        async with self._lock:
            if self._main is None:
                self._main = await self._locate()
            return self._main

    async def _locate(self) -> MainContext:
        opts = self.bridge.opts
        main = MainContext(opts.get("filename", DOCKERFILE))
        if "dockerfilekey" in opts:
            main.local_dockerfile, main.dockerfile_name = True, opts["dockerfilekey"]
        where = opts.get(opts.get("contextkey", "context"), "")
        ref = parse_git_ref(where)
        if ref is not None:
            main.context = main.dockerfile = main.source = self._git_context(ref, where)
        elif _HTTP.match(where):
            await self._http_context(main, where)
        else:
            inputs = await self.bridge.inputs()
            if not main.local_dockerfile and main.dockerfile_name in inputs:
                main.dockerfile = from_definition(inputs[main.dockerfile_name])
            if "context" in inputs:
                main.context = from_definition(inputs["context"])
        if main.context is not None and "contextsubdir" in opts:
            how = CopyOptions(contents_only=True)
            main.context = State().file(copy(main.context, opts["contextsubdir"], "/", how))
        return main

    def _git_context(self, ref: GitRef, text: str) -> State:
        build_args = self.options.build_args
        keep = ref.keep_git_dir or _is_true(build_args.get("BUILDKIT_CONTEXT_KEEP_GIT_DIR", ""))
        by_commit = bool(build_args.get("SOURCE_DATE_EPOCH"))
        return git_context(ref, text, keep=keep, mtime="commit" if by_commit else "")

    async def _http_context(self, main: MainContext, url: str) -> None:
        state = http(url, filename=_HTTP_FILENAME, name="[internal] load remote build context")
        ref = await self.bridge.solve(state.marshal())
        header = b""
        if ref is not None:
            header = await ref.read_file(_HTTP_FILENAME, length=_HEADER_SIZE)
        main.source, main.http_ref = state, ref
        if is_archive(header):
            main.http_is_archive = True
            how = CopyOptions(unpack=True)
            main.context = State().file(copy(state, f"/{_HTTP_FILENAME}", "/", how))
        else:
            main.context, main.filename = state, _HTTP_FILENAME
        main.dockerfile = main.context

    def _session(self, name: str) -> str:
        return self.options.session_ids.get(name, self.bridge.session_id)

    async def read_entrypoint(self) -> Entrypoint:
        """Read the Dockerfile, and the ``.dockerignore`` that is named after it.

        Raises:
            DockerfileNotFoundError: there is no Dockerfile.
        """
        main = await self.main()
        filename = main.filename
        alternative = _lower_case_name(filename)
        state = None if main.local_dockerfile else main.dockerfile
        if state is None:
            state = local(
                main.dockerfile_name,
                session_id=self._session(main.dockerfile_name),
                follow=[filename, filename + DOCKERIGNORE, *alternative],
                shared_key=main.dockerfile_name,
                differ="none",
                name=f"[internal] load build definition from {filename}",
            )
        definition = state.marshal()
        ref = await self.bridge.solve(definition)
        with named("failed to read dockerfile"):
            data = await _first_of(ref, (filename, *alternative))
        if data is None:
            raise DockerfileNotFoundError(filename)
        ignore = await _ignore_of(ref, filename + DOCKERIGNORE)
        if ignore is not None:
            self._ignore, self._ignore_name = ignore, filename + DOCKERIGNORE
        source_map = SourceMap(filename, "Dockerfile", data, definition)
        return Entrypoint(source_map, _head(definition))

    async def ignore_patterns(self) -> Sequence[str]:
        """Return the patterns of what is no part of the main context.

        A remote context has none: it is taken whole.
        """
        main = await self.main()
        if main.context is not None:
            return ()
        async with self._lock:
            if self._ignore is None:
                self._ignore = await self._read_ignore(main)
        return parse_dockerignore(self._ignore)

    async def _read_ignore(self, main: MainContext) -> bytes:
        state = local(
            main.context_name,
            session_id=self._session(main.context_name),
            follow=[DOCKERIGNORE],
            shared_key=f"{main.context_name}-{DOCKERIGNORE}",
            differ="none",
            name=f"[internal] load {DOCKERIGNORE}",
        )
        ref = await self.bridge.solve(state.marshal())
        try:
            return await _ignore_of(ref, DOCKERIGNORE) or b""
        except BoxwrightError as exc:
            if exc.code not in _NO_FOLDER:
                raise
            return b""  # if files of it are needed, the build fails at the step that does

    async def main_context(self, follow: Sequence[str] = ()) -> State:
        """Return the main context, of a local one only the paths in ``follow`` if any."""
        main = await self.main()
        if main.context is not None:
            return main.context
        return local(
            main.context_name,
            session_id=self._session(main.context_name),
            exclude=await self.ignore_patterns(),
            follow=follow,
            shared_key=main.context_name,
            name="[internal] load build context",
        )

    def named(
        self,
        name: str,
        *,
        platform: Platform | None = None,
        resolve_mode: str = "default",
        follow: Callable[[], Sequence[str]] | None = None,
    ) -> NamedContext | None:
        """Return the context that stands for ``name``, or None.

        Args:
            name: A stage, image or context name.
            platform: A context given for this platform is preferred.
            resolve_mode: For images.
            follow: Tells, once everything is known, which paths of a local one are used.

        Raises:
            InvalidInputError: ``name`` is no valid name.
        """
        try:
            name = Reference.parse(name).familiar.removesuffix(":latest")
        except InvalidInputError as error:
            raise InvalidInputError(
                f"invalid context name {name}", detail=error.detail, hint=error.hint
            ) from error
        wanted = (platform or Platform.host()).normalized()
        for key in (f"{name}::{wanted}", name):
            value = self.bridge.opts.get(f"context:{key}")
            if value is not None:
                return NamedContext(self, name, key, value, platform, resolve_mode, follow)
        return None


@dataclass(frozen=True, slots=True)
class NamedContext:
    """A context given with ``--build-context name=value``."""

    contexts: BuildContexts
    name: str
    key: str
    value: str
    platform: Platform | None
    resolve_mode: str
    follow: Callable[[], Sequence[str]] | None = None

    async def load(self) -> tuple[State, Image | None]:
        """Return the context's filesystem and, where it is an image, its config.

        Raises:
            InvalidInputError: the value is of no known form.
        """
        scheme, colon, rest = self.value.partition(":")
        if not colon:
            raise InvalidInputError(f"invalid context specifier {self.value} for {self.key}")
        match scheme:
            case "docker-image":
                return await self._image(rest.removeprefix("//"))
            case "oci-layout":
                return await self._oci_layout(rest.removeprefix("//"))
            case "local":
                return await self._local(rest), None
            case "input":
                return await self._input(rest)
            case "http" | "https":
                return self._web(), None
        if scheme == "git" or scheme.startswith("git@"):
            ref = parse_git_ref(self.value)
            if ref is None:
                raise InvalidInputError(f"invalid git context {self.value}")
            return git_context(ref, self.value), None
        raise InvalidInputError(
            f"unsupported context source {scheme} for {self.key}",
            hint="use a directory, docker-image://, oci-layout://, a git or http URL, or target:",
        )

    def _web(self) -> State:
        ref = parse_git_ref(self.value)
        if ref is not None:
            return git_context(ref, self.value)
        name = f"[context {self.key}] {self.value}"
        return http(self.value, filename=_HTTP_FILENAME, name=name)

    async def _image(self, ref: str) -> tuple[State, Image | None]:
        if ref == "scratch":
            return State(), None
        full = str(Reference.parse(ref).with_default_tag())
        try:
            resolved = await self.contexts.bridge.resolve_image_config(
                full,
                platform=self.platform,
                resolve_mode=self.resolve_mode,
                log_name=f"[context {self.key}] load metadata for {ref}",
            )
        except NotAnImageError as exc:
            return await replace(self, value=_context_value(exc.identifier)).load()
        state = image(resolved.ref, name=f"[context {self.key}] {ref}", platform=self.platform)
        state, config = _with_config(state, resolved.config)
        config.created = ""
        return state, config

    async def _oci_layout(self, text: str) -> tuple[State, Image | None]:
        # The part before the digest is the client's name for the layout, no image's.
        store_id, at, digest = text.partition("@")
        if not at:
            raise InvalidInputError(f'oci-layout reference "{text}" has no digest')
        store_id = _without_tag(store_id)
        ref = str(Reference.parse(f"{self.name}@{digest}"))
        bridge = self.contexts.bridge
        resolved = await bridge.resolve_image_config(
            ref,
            platform=self.platform,
            resolve_mode="",
            log_name=f"[context {self.key}] load metadata for {ref}",
            store=OciStore(bridge.session_id, store_id),
        )
        state = oci_layout(
            ref,
            session_id=bridge.session_id,
            store_id=store_id,
            name=f"[context {self.key}] OCI load from client",
            platform=self.platform,
        )
        return _with_config(state, resolved.config)

    async def _local(self, directory: str) -> State:
        session = self.contexts.options.session_ids.get(directory, self.contexts.bridge.session_id)
        state = local(
            directory,
            session_id=session,
            follow=[DOCKERIGNORE],
            shared_key=f"context:{self.key}-{DOCKERIGNORE}",
            differ="none",
            name=f"[context {self.key}] load {DOCKERIGNORE}",
        )
        ref = await self.contexts.bridge.solve(state.marshal(), evaluate=True)
        ignore = await _ignore_of(ref, DOCKERIGNORE) or b""
        shared = self.contexts.bridge.opts.get(f"sharedkey:localdir:{self.key}", "")

        def load() -> State:
            return local(
                directory,
                session_id=session,
                exclude=parse_dockerignore(ignore),
                follow=self.follow() if self.follow is not None else (),
                shared_key=f"context:{self.key}-{shared}",
                name=f"[context {self.key}] load from client",
            )

        return State.new(LateOutput(load))

    async def _input(self, name: str) -> tuple[State, Image | None]:
        inputs = await self.contexts.bridge.inputs()
        if name not in inputs:
            raise InvalidInputError(f"invalid input {name} for {self.key}")
        state = from_definition(inputs[name])
        metadata = self.contexts.bridge.opts.get(f"input-metadata:{name}")
        config = _input_config(metadata) if metadata is not None else None
        return (state, None) if config is None else _with_config(state, config)


def _context_value(identifier: str) -> str:
    """Return a source's identifier as the value of a build context."""
    scheme, _, rest = identifier.partition("://")
    return f"{scheme}:{rest}" if scheme == "local" else identifier


class LateOutput(Output):
    """An output made when it is first needed, when all that it depends on is known."""

    __slots__ = ("_load", "_loaded")

    def __init__(self, load: Callable[[], State]) -> None:
        self._load: Callable[[], State] | None = load
        self._loaded: Output | None = None
        self.platform = None

    def resolve(self) -> tuple[Vertex, int] | None:
        """Return vertex and index, loading them the first time."""
        if self._load is not None:
            self._loaded = self._load().output
            self._load = None
        return self._loaded.resolve() if self._loaded is not None else None


def git_context(ref: GitRef, text: str, *, keep: bool = False, mtime: str = "") -> State:
    """Return the state of a git context, written as ``text``."""
    return git(
        ref.remote,
        ref.ref,
        subdir=ref.subdir,
        keep_git_dir=keep or bool(ref.keep_git_dir),
        checksum=ref.checksum,
        skip_submodules=ref.submodules is False,
        mtime=ref.mtime or mtime,
        fetch_by_commit=ref.fetch_by_commit,
        name=f"[internal] load git source {text}",
    )


def is_archive(header: bytes) -> bool:
    """Return whether a file that begins like this is a tar archive, compressed or not."""
    if header.startswith(_ARCHIVE_MAGIC):
        return True
    if len(header) < _TAR_BLOCK:
        return False
    import tarfile

    try:
        tarfile.TarInfo.frombuf(header[:_TAR_BLOCK], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def archive_newest_mtime(data: bytes) -> int | None:
    """Return the latest time of a regular file in an archive, in seconds; None if none."""
    import tarfile

    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            times = [int(member.mtime) for member in archive if member.isreg()]
    except (tarfile.TarError, EOFError, OSError):
        return None
    return max(times, default=None)


def _with_config(state: State, data: bytes) -> tuple[State, Image]:
    config = Image.decode(data)
    return state.with_image_config(json.loads(data)), config


def _input_config(text: str) -> bytes | None:
    """Return the image config in an input's metadata, a JSON object of base64 values."""
    try:
        values = json.loads(text)
        encoded = values.get(_CONFIG_KEY)
        return None if encoded is None else b64decode(encoded, validate=True)
    except (ValueError, AttributeError, TypeError) as exc:
        raise InvalidInputError("failed to parse input metadata", detail=str(exc)) from exc


def _without_tag(name: str) -> str:
    head, colon, tail = name.rpartition(":")
    return head if colon and "/" not in tail else name


def _lower_case_name(filename: str) -> tuple[str, ...]:
    """Return the other spelling under which a ``Dockerfile`` may be found."""
    folder, slash, name = filename.rpartition("/")
    return (folder + slash + name.lower(),) if name == DOCKERFILE else ()


async def _first_of(ref: FrontendRef | None, names: Sequence[str]) -> bytes | None:
    for name in names:
        if ref is None:
            return None
        try:
            return await ref.read_file(name)
        except NotFoundError as exc:
            if exc.vertex:
                raise  # of a step that was to make the folder, such as a branch that is not there
    return None


async def _ignore_of(ref: FrontendRef | None, name: str) -> bytes | None:
    """Return the text of an ignore file; as upstream has it, a folder of that name is none."""
    try:
        return await _first_of(ref, (name,))
    except InvalidInputError as exc:
        if exc.vertex:
            raise
        return None


def _head(definition: pb.Definition) -> str:
    ops = getattr(definition, "def")
    if not ops:
        return ""
    inputs = pb.Op.FromString(ops[-1]).inputs
    return inputs[0].digest if inputs else ""


def _is_true(text: str) -> bool:
    try:
        return parse_bool(text)
    except ValueError:
        return False
