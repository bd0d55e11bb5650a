"""From the flags of ``boxwright build`` to a build request (the flags are buildx's)."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from boxwright.cli import parse
from boxwright.cli.errors import UsageError
from boxwright.cli.parse import Output
from boxwright.core.dataclass import dataclass, field, replace
from boxwright.errors import BoxwrightError, Code, InvalidInputError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from boxwright.client.request import BuildRequest, Export

_REMOTE_CONTEXTS = ("http://", "https://", "git://", "git@", "ssh://", "github.com/")
_SUBREQUESTS = {
    "check": "frontend.lint",
    "lint": "frontend.lint",
    "outline": "frontend.outline",
    "targets": "frontend.targets",
    "subrequests.describe": "frontend.subrequests.describe",
}
_IMAGE_TYPES = frozenset(("image", "oci", "docker"))
_ARCHIVE_MAGICS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


@dataclass(slots=True)
class BuildFlags:
    """The values of the flags, as click hands them over."""

    context: str = "."
    file: str = ""
    tags: tuple[str, ...] = ()
    build_args: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    annotations: tuple[str, ...] = ()
    target: str = ""
    platforms: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    push: bool = False
    load: bool = False
    secrets: tuple[str, ...] = ()
    ssh: tuple[str, ...] = ()
    no_cache: bool = False
    no_cache_filter: tuple[str, ...] = ()
    pull: bool = False
    network: str = ""
    add_hosts: tuple[str, ...] = ()
    cache_from: tuple[str, ...] = ()
    cache_to: tuple[str, ...] = ()
    build_contexts: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    attests: tuple[str, ...] = ()
    provenance: str = ""
    sbom: str = ""
    ulimits: tuple[str, ...] = ()
    shm_size: str = ""
    cgroup_parent: str = ""
    source_policy_file: str = ""
    call: str = ""


@dataclass(slots=True)
class BuildPlan:
    """A request and what the command has to do around it.

    Attributes:
        stored_names: Names under which the embedded engine keeps the image.
        pushed_names: Names under which a registry gets it.
        warnings: To be shown before the build.
        cleanup: Temporary folders to remove afterwards.
        call_format: How the answer of a subrequest is printed: ``json``, or empty for text.
    """

    request: BuildRequest
    stored_names: tuple[str, ...] = ()
    pushed_names: tuple[str, ...] = ()
    warnings: list[str] = field(default_factory=list)
    cleanup: list[Path] = field(default_factory=list)
    call_format: str = ""

    def close(self) -> None:
        """Remove temporary folders."""
        for folder in self.cleanup:
            shutil.rmtree(folder, ignore_errors=True)


def plan_build(
    flags: BuildFlags, environ: Mapping[str, str], stdin: BinaryIO, *, is_embedded: bool
) -> BuildPlan:
    """Turn flags into a request.

    Args:
        flags: Of the command line.
        environ: The environment.
        stdin: Read if the context or the Dockerfile is ``-``.
        is_embedded: Whether the engine keeps images in its own store by default.

    Raises:
        UsageError: flags that make no sense.
        BoxwrightError: a config file, secret or agent that can't be used.
    """
    from boxwright.client import sourcepolicy
    from boxwright.client.request import BuildRequest
    from boxwright.session.providers.auth import AuthProvider
    from boxwright.session.providers.dockerconfig import DockerConfig

    opts = _options(flags, environ)
    request = BuildRequest(
        frontend="dockerfile.v0",
        opts=opts,
        secrets=parse.parse_secrets(flags.secrets),
        ssh=parse.parse_ssh(flags.ssh),
        auth=AuthProvider(DockerConfig.load(environ), environ),
        cache_from=parse.parse_cache(flags.cache_from, "--cache-from"),
        cache_to=parse.parse_cache(flags.cache_to, "--cache-to"),
        entitlements=_entitlements(flags),
    )
    if policy := flags.source_policy_file or environ.get(sourcepolicy.VARIABLE):
        request.source_policy = sourcepolicy.read_policy(policy)
    if syntax := opts.get("build-arg:BUILDKIT_SYNTAX"):
        request.frontend = "gateway.v0"
        opts.update({"source": syntax.split(" ", 1)[0], "cmdline": syntax})
    plan = BuildPlan(request)
    try:
        _add_context(plan, flags, stdin)
        _add_named_contexts(plan, flags)
        if flags.call and flags.call != "build":
            _add_call(plan, flags.call)
        else:
            _add_exports(plan, flags, is_embedded=is_embedded)
    except BaseException:
        plan.close()
        raise
    return plan


def _options(flags: BuildFlags, environ: Mapping[str, str]) -> dict[str, str]:
    opts: dict[str, str] = {}
    build_args = parse.parse_build_args(flags.build_args, environ)
    if "SOURCE_DATE_EPOCH" in environ:
        build_args.setdefault("SOURCE_DATE_EPOCH", environ["SOURCE_DATE_EPOCH"])
    opts |= {f"build-arg:{name}": value for name, value in build_args.items()}
    for item in flags.labels:
        name, _, value = item.partition("=")
        opts[f"label:{name}"] = value
    if flags.target:
        opts["target"] = flags.target
    if flags.platforms:
        opts["platform"] = ",".join(part for item in flags.platforms for part in item.split(","))
    if flags.pull:
        opts["image-resolve-mode"] = "pull"
    if flags.no_cache_filter:
        opts["no-cache"] = ",".join(flags.no_cache_filter)
    if flags.no_cache:
        opts["no-cache"] = ""
    if flags.network not in {"", "default"}:
        if flags.network not in {"host", "none"}:
            raise UsageError(
                f"network mode {flags.network!r} is not supported",
                hint="write default, host or none",
            )
        opts["force-network-mode"] = flags.network
    if flags.add_hosts:
        opts["add-hosts"] = ",".join(map(_host, flags.add_hosts))
    if flags.ulimits:
        opts["ulimit"] = ",".join(flags.ulimits)
    if flags.shm_size:
        opts["shm-size"] = str(parse.parse_bytes(flags.shm_size, "--shm-size"))
    if flags.cgroup_parent:
        opts["cgroup-parent"] = flags.cgroup_parent
    return opts | _attestations(flags)


def _host(text: str) -> str:
    """Turn ``name:ip`` and ``name=ip`` into the form of the frontend."""
    name, separator, address = text.partition("=")
    if not separator:
        name, separator, address = text.partition(":")
    if not name or not address:
        raise UsageError(f"invalid value for --add-host: {text!r}", hint="write HOST:IP")
    return f"{name}={address.strip('[]')}"


def _attestations(flags: BuildFlags) -> dict[str, str]:
    wanted: dict[str, str | None] = {}
    for item in flags.attests:
        pairs = parse.parse_pairs(item, "--attest")
        kind = pairs.pop("type", "")
        if not kind:
            raise UsageError("--attest requires type=<type>", detail=item)
        disabled = parse.parse_bool(pairs.pop("disabled", "false"), "--attest")
        fields = ",".join(f"{key}={value}" for key, value in pairs.items())
        wanted[kind] = None if disabled else fields
    for kind, text in (("provenance", flags.provenance), ("sbom", flags.sbom)):
        lowered = text.lower()
        if lowered in {"false", "0"}:
            wanted[kind] = None
        elif lowered in {"true", "1"}:
            wanted[kind] = ""
        elif text:
            wanted[kind] = text if "=" in text else f"mode={text}"
    return {f"attest:{kind}": text for kind, text in wanted.items() if text is not None}


def _entitlements(flags: BuildFlags) -> tuple[str, ...]:
    wanted = list(flags.allow)
    if flags.network == "host" and "network.host" not in wanted:
        wanted.append("network.host")
    return tuple(wanted)


class DockerfileMissingError(BoxwrightError):
    """The file that ``--file`` names is neither here nor in the context."""

    code = Code.SOURCE_NOT_FOUND

    def __init__(self, file: str, context: Path) -> None:
        super().__init__(
            f"failed to read dockerfile: open {file}: no such file",
            detail=f"looked in {os.getcwd()} and in {context}",
            hint="give the path of a Dockerfile with --file, or '-' to read standard input",
        )


def _add_context(plan: BuildPlan, flags: BuildFlags, stdin: BinaryIO) -> None:
    request, context = plan.request, flags.context
    if context == "-":
        if flags.file == "-":
            raise UsageError("can't read both context and Dockerfile from standard input")
        _context_from_stdin(plan, flags, stdin)
        return
    if context.startswith(_REMOTE_CONTEXTS):
        request.opts["context"] = context
        if flags.file == "-":
            request.locals = {"dockerfile": _dockerfile_from_stdin(plan, stdin.read())}
            request.opts["dockerfilekey"] = "dockerfile"  # not the context's own
        elif flags.file:
            request.opts["filename"] = flags.file
        return
    root = Path(context)
    if not root.is_dir():
        raise UsageError(
            f"unable to prepare context: path {context!r} not found"
            if not root.exists()
            else f"unable to prepare context: {context!r} is not a directory",
            hint="CONTEXT is a folder, a URL, or '-' for a tar archive on standard input",
        )
    if flags.file == "-":
        folder = _dockerfile_from_stdin(plan, stdin.read())
    else:
        file = Path(flags.file) if flags.file else root / "Dockerfile"
        if flags.file and not file.is_absolute() and not file.exists():
            file = root / flags.file
        if flags.file and (file.is_dir() or not file.exists()):
            raise DockerfileMissingError(flags.file, root)
        folder = file.parent
        if file.is_fifo():  # bash's <(...)
            folder = _dockerfile_from_stdin(plan, file.read_bytes())
        elif file.name != "Dockerfile" or flags.file:
            request.opts["filename"] = file.name
    request.locals = {"context": root, "dockerfile": folder}
    request.shared_key = shared_key(root)


def shared_key(root: Path) -> str:
    """Return what tells a daemon that a context is the one of an earlier build."""
    text = f"{socket.gethostname()}:{os.getuid()}:{os.path.realpath(root)}"
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _temporary_folder() -> Path:
    import tempfile

    return Path(tempfile.mkdtemp(prefix="boxwright-"))


def _dockerfile_from_stdin(plan: BuildPlan, content: bytes) -> Path:
    folder = _temporary_folder()
    plan.cleanup.append(folder)
    (folder / "Dockerfile").write_bytes(content)
    return folder


def _context_from_stdin(plan: BuildPlan, flags: BuildFlags, stdin: BinaryIO) -> None:
    """A tar archive is the context; anything else is a Dockerfile without context."""
    from boxwright.session.providers.uploads import UploadProvider

    head = stdin.read(512)
    if not head:
        raise UsageError("unable to prepare context: standard input is empty")
    if head[257:262] == b"ustar" or head.startswith(_ARCHIVE_MAGICS):
        uploads = UploadProvider()
        plan.request.uploads = uploads
        plan.request.opts["context"] = uploads.add(io.BufferedReader(_Joined(head, stdin)))
        if flags.file:
            plan.request.opts["filename"] = flags.file
        return
    if flags.file:
        raise UsageError("ambiguous Dockerfile source: both standard input and --file")
    folder = _dockerfile_from_stdin(plan, head + stdin.read())
    empty = _temporary_folder()
    plan.cleanup.append(empty)
    plan.request.locals = {"context": empty, "dockerfile": folder}


class _Joined(io.RawIOBase):
    """What was read already, then the rest of a stream."""

    def __init__(self, head: bytes, rest: BinaryIO) -> None:
        super().__init__()
        self._head = head
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        data = self._head[: len(view)] or self._rest.read(len(view))
        self._head = self._head[len(view) :]
        view[: len(data)] = data
        return len(data)


def _add_named_contexts(plan: BuildPlan, flags: BuildFlags) -> None:
    extra: dict[str, Path] = {}
    for name, value in parse.parse_assignments(flags.build_contexts, "--build-context").items():
        if value.startswith("oci-layout://"):
            plan.request.opts[f"context:{name}"] = _offer_layout(plan, value)
            continue
        if "://" in value or value.startswith(_REMOTE_CONTEXTS):
            plan.request.opts[f"context:{name}"] = value
            continue
        folder = Path(value)
        if not folder.is_dir():
            raise UsageError(f"named context {name}: {value!r} is not a directory")
        local = name if name not in {"context", "dockerfile"} else f"_{name}"
        extra[local] = folder
        plan.request.opts[f"context:{name}"] = f"local:{local}"
    plan.request.locals = {**plan.request.locals, **extra}


def _offer_layout(plan: BuildPlan, value: str) -> str:
    """Offer an OCI layout to the build; return the context that names the image in it."""
    from boxwright.session.providers.contents import OciLayouts, resolve_tag, split_layout
    from boxwright.session.services import new_id

    folder, reference = split_layout(value.removeprefix("oci-layout://"))
    digest, tag = resolve_tag(folder, reference)
    layouts = plan.request.layouts or OciLayouts()
    store = new_id()
    layouts.add_source(store, folder)
    plan.request.layouts = layouts
    return f"oci-layout://{store}:{tag}@{digest}"


def _add_call(plan: BuildPlan, call: str) -> None:
    name, _, rest = call.partition(",")
    fields = parse.parse_pairs(rest, "--call") if rest else {}
    plan.call_format = fields.pop("format", "")
    if fields or plan.call_format not in {"", "json", "text"}:
        raise UsageError(f"invalid value for --call: {call!r}", hint="write METHOD[,format=json]")
    request = plan.request
    request.opts["requestid"] = _SUBREQUESTS.get(name, name)
    request.opts["frontend.caps"] = "moby.buildkit.frontend.subrequests"
    request.via_gateway = True


def _add_exports(plan: BuildPlan, flags: BuildFlags, *, is_embedded: bool) -> None:
    outputs = _outputs(flags)
    if not outputs and is_embedded:
        outputs = [Output("image", "", {})]
    elif not outputs:
        plan.warnings.append(
            "No output specified. Build result will only remain in the build cache. "
            "To push result image into registry use --push or to load image into docker use --load"
        )
    for tag in flags.tags:
        _check_name(tag, "--tag")
    name = ",".join(flags.tags)
    exports: list[Export] = []
    for output in outputs:
        if output.type == "cacheonly":
            continue
        attrs = dict(output.attrs)
        if output.type in _IMAGE_TYPES:
            if name:
                attrs["name"] = name
            attrs |= _annotation_attrs(flags.annotations)
        if output.type == "image":
            names = tuple(filter(None, attrs.get("name", "").split(",")))
            if _check_image_output(attrs):
                plan.pushed_names = names
            elif is_embedded and _is_set(attrs, "store", unless=True):
                plan.stored_names = tuple(name for name in names if name != "*")  # the frontend's
                for each in plan.stored_names:
                    _check_name(each, "--output")
        exports.append(_export(replace(output, attrs=attrs)))
    plan.request.exports = tuple(exports)


def _outputs(flags: BuildFlags) -> list[Output]:
    outputs = [parse.parse_output(text) for text in flags.outputs]
    if flags.push:
        images = [output for output in outputs if output.type == "image"]
        if not images:
            images = [Output("image", "", {})]
            outputs += images
        outputs = [
            replace(output, attrs={**output.attrs, "push": "true"}) if output in images else output
            for output in outputs
        ]
    if flags.load and not any(o.type == "docker" and not o.dest for o in outputs):
        outputs.append(Output("docker", "", {}))
    return outputs


def _check_name(name: str, flag: str) -> None:
    """Refuse what can't name an image before anything is built: nothing could ask for it."""
    from boxwright.core.reference import Reference

    try:
        Reference.parse(name)
    except InvalidInputError as exc:
        raise UsageError(f"{flag}: invalid image name {name!r}", detail=str(exc)) from exc


def _check_image_output(attrs: Mapping[str, str]) -> bool:
    """Return whether the image is pushed."""
    pushes = _is_set(attrs, "push")
    if pushes and not attrs.get("name"):
        raise UsageError("tag is needed when pushing to registry", hint="add --tag NAME")
    return pushes


def _is_set(attrs: Mapping[str, str], key: str, *, unless: bool = False) -> bool:
    """Return a flag of an output, ``unless`` it is not there; empty is on."""
    if key not in attrs:
        return unless
    return not attrs[key] or parse.parse_bool(attrs[key], key)


def _export(output: Output) -> Export:
    if output.type == "docker" and not output.dest:
        from boxwright.cli.load import load_export

        return load_export(output.attrs)
    return parse.to_export(output)


def _annotation_attrs(items: Sequence[str]) -> dict[str, str]:
    """Turn ``[TYPE[,TYPE…]:]KEY=VALUE`` into exporter attributes (manifest is the default)."""
    attrs: dict[str, str] = {}
    types = {"manifest", "index", "manifest-descriptor", "index-descriptor"}
    for item in items:
        head, separator, value = item.partition("=")
        if not separator:
            raise UsageError(f"invalid annotation {item!r}", hint="write [TYPE:]KEY=VALUE")
        kinds, colon, key = head.partition(":")
        chosen = [kind.partition("[")[0] for kind in kinds.split(",")]
        if not colon or not set(chosen) <= types:
            attrs[f"annotation.{head}"] = value
            continue
        for kind in kinds.split(","):
            attrs[f"annotation-{kind}.{key}"] = value
    return attrs
