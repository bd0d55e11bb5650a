"""What a build was made from: requests, sources, secrets, remembered while it runs.

Every solve of a build happens in a :class:`RequestScope`: the one of the client, or that of the
frontend that asked for it. From the scopes and the vertices that the job still claims,
:func:`capture_result` tells for each ref of a result what went into it. BuildKit's rules
(solver/llbsolver/provenance): a frontend's other refs, such as the Dockerfile's own folder, count
for all of its results; images count when they were resolved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

from boxwright.core.dataclass import dataclass, field, replace
from boxwright.core.platform import Platform
from boxwright.core.reference import Reference
from boxwright.engine.results import FrontendResult, LazyRef
from boxwright.errors import InvalidInputError
from boxwright.llb.build_giturl import parse_git_ref
from boxwright.llb.graph import Vertex
from boxwright.oci.platforms import parse_platforms
from boxwright.ops.execop import ExecOp, StepUsage
from boxwright.ops.graphops import SourceOp
from boxwright.solver.jobs import Job
from boxwright.sources.bloblocator import BLOB_SCHEMES, LAYOUT_SCHEME
from boxwright.sources.git_remote import GitAttributes
from boxwright.wire.pb import ops_pb2 as pb

_HOST_OPTIONS = frozenset({"cgroup-parent", "image-resolve-mode", "platform", "cache-imports"})
_MASK = "xxxxx"
_MAX_REMEMBERED = 4096


class FrontendRequest(Protocol):
    """What a frontend is asked for; a solve's specification is one."""

    @property
    def frontend(self) -> str:
        """Its name."""
        ...

    @property
    def options(self) -> Mapping[str, str] | None:
        """Its options."""
        ...

    @property
    def inputs(self) -> Mapping[str, pb.Definition] | None:
        """Definitions given to it."""
        ...


@dataclass(frozen=True, slots=True)
class ImageMaterial:
    """An image that a build used."""

    ref: str
    platform: Platform | None
    digest: str
    local: bool = False

    def is_same(self, other: ImageMaterial) -> bool:
        """Return whether both stand for one image, whatever their digests."""
        if (self.ref, self.local) != (other.ref, other.local):
            return False
        if self.platform is None or other.platform is None:
            return self.platform is other.platform
        mine, theirs = self.platform, other.platform
        return replace(mine, os_features=()) == replace(theirs, os_features=())


@dataclass(slots=True)
class Capture:
    """What one result was made from.

    Attributes:
        images: In the order they were found until :meth:`sort`.
        blobs: Digests by reference, and whether it is of a client's layout.
        git: Commits by URL with ref.
        bundles: URL with ref of commits that came in a blob, and the blob.
        http: Digests by URL.
        local: Names of the client's folders.
        secrets: Whether they are optional, by id; likewise ``ssh``.
        network: A step could reach the network.
        incomplete: Something was used that can't be named.
        usage: What the commands that ran have used, by vertex digest.
        request: The request that led here, as in the document.
    """

    images: list[ImageMaterial] = field(default_factory=list)
    blobs: dict[tuple[str, bool], str] = field(default_factory=dict)
    git: dict[str, str] = field(default_factory=dict)
    bundles: dict[tuple[str, str], None] = field(default_factory=dict)
    http: dict[str, str] = field(default_factory=dict)
    local: dict[str, None] = field(default_factory=dict)
    secrets: dict[str, bool] = field(default_factory=dict)
    ssh: dict[str, bool] = field(default_factory=dict)
    network: bool = False
    incomplete: bool = False
    usage: dict[str, StepUsage] = field(default_factory=dict)
    request: dict[str, Any] = field(default_factory=dict)

    def add_image(self, image: ImageMaterial) -> None:
        """Add an image unless it is there."""
        if not any(image.is_same(other) for other in self.images):
            self.images.append(image)

    def add_secret(self, name: str, *, optional: bool) -> None:
        """Add a secret; it is optional only if it is so everywhere."""
        self.secrets[name] = self.secrets.get(name, True) and optional

    def add_ssh(self, name: str, *, optional: bool) -> None:
        """Add a forwarded agent."""
        name = name or "default"
        self.ssh[name] = self.ssh.get(name, True) and optional

    def merge(self, other: Capture) -> None:
        """Add what another result was made from."""
        for image in other.images:
            self.add_image(image)
        for name, optional in other.secrets.items():
            self.add_secret(name, optional=optional)
        for name, optional in other.ssh.items():
            self.add_ssh(name, optional=optional)
        self.blobs = {**other.blobs, **self.blobs}
        self.git = {**other.git, **self.git}
        self.bundles |= other.bundles
        self.http = {**other.http, **self.http}
        self.local |= other.local
        self.network |= other.network
        self.incomplete |= other.incomplete
        self.usage |= other.usage

    def finish(self) -> None:
        """Sort, and drop images named by digest that are there by tag, too."""
        names = {i: Reference.parse(i.ref) for i in self.images}
        tagged = {_with_tag(ref) for ref in names.values() if ref.digest is None}
        self.images = sorted(
            (i for i, r in names.items() if r.digest is None or _with_tag(r) not in tagged),
            key=lambda image: image.ref,
        )
        self.blobs = dict(sorted(self.blobs.items()))
        self.git = dict(sorted(self.git.items()))
        self.bundles = dict(sorted(self.bundles.items()))
        self.http = dict(sorted(self.http.items()))
        self.local = dict(sorted(self.local.items()))
        self.secrets = dict(sorted(self.secrets.items()))
        self.ssh = dict(sorted(self.ssh.items()))

    # --- vertices ------------------------------------------------------------------------

    def add_vertex(self, vertex: Vertex, op: object) -> None:
        """Add what one step used."""
        match vertex.op.WhichOneof("op"):
            case "source":
                pin = op.pin if isinstance(op, SourceOp) else ""
                self._add_source(vertex.op.source, vertex.platform, pin)
            case "exec":
                self._add_exec(vertex.op.exec)
                if isinstance(op, ExecOp) and op.usage is not None:
                    self.usage[vertex.digest] = op.usage
            case "build":
                self.incomplete = True

    def _add_source(self, op: pb.SourceOp, platform: Platform | None, pin: str) -> None:
        scheme, _, rest = op.identifier.partition("://")
        if scheme == "local":
            self.local[rest] = None
        elif scheme in {"docker-image", "oci-layout"} and pin:
            platform = platform or Platform.host()
            self.add_image(ImageMaterial(rest, platform, pin, scheme == "oci-layout"))
        elif scheme in BLOB_SCHEMES and pin:
            self.blobs[rest, scheme == LAYOUT_SCHEME] = pin
        elif scheme in {"http", "https"} and pin:
            self.http.setdefault(redact(op.identifier), pin)
        elif scheme == "git" and pin:
            self._add_git(GitAttributes.parse(rest, op.attrs), pin)

    def _add_git(self, source: GitAttributes, pin: str) -> None:
        url = source.remote + (f"#{source.ref}" if source.ref else "")
        if source.login is not None:  # the remote comes without it
            scheme, _, rest = url.partition("://")
            user, password = source.login
            masked = (_MASK if user else "") + (f":{_MASK}" if password else "")
            url = f"{scheme}://{masked}@{rest}"
        self.git.setdefault(redact(url), pin)
        if source.bundle is not None:
            self.bundles[redact(url), str(source.bundle)] = None
        for name in (source.token_secret, source.header_secret):
            if name:
                self.add_secret(name, optional=True)
        if source.ssh_id:
            self.add_ssh(source.ssh_id, optional=True)

    def _add_exec(self, op: pb.ExecOp) -> None:
        for mount in op.mounts:
            if mount.mountType == pb.SECRET:
                self.add_secret(mount.secretOpt.ID, optional=mount.secretOpt.optional)
            if mount.mountType == pb.SSH:
                self.add_ssh(mount.SSHOpt.ID, optional=mount.SSHOpt.optional)
        for secret in op.secretenv:
            self.add_secret(secret.ID, optional=secret.optional)
        self.network |= op.network != pb.NONE


def _with_tag(ref: Reference) -> str:
    return f"{ref.name}:{ref.tag or 'latest'}"


def redact(url: str) -> str:
    """Return a URL with user and password masked; what is no URL stays as it is."""
    try:
        parts = urlsplit(url)
        user, password = parts.username, parts.password
    except ValueError:
        return url
    if not parts.scheme or (not user and password is None):
        return url
    login = _MASK if user else ""
    if password is not None:
        login += f":{_MASK}"
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{login}@{host}"))


# --- requests ------------------------------------------------------------------------------


class RequestRecords:
    """Which request each definition comes from, engine-wide and as long as builds last.

    One build's result may be another's input (``bake``); its document then tells how the input
    was made.
    """

    def __init__(self) -> None:
        self._by_head: dict[str, dict[object, dict[str, Any]]] = {}
        self._heads: dict[object, list[str]] = {}

    def add(self, owner: object, definition: pb.Definition, request: dict[str, Any]) -> None:
        """Remember a request until its owner's :meth:`forget`."""
        head = head_digest(definition)
        if not head or len(self._by_head) >= _MAX_REMEMBERED:
            return
        self._by_head.setdefault(head, {})[owner] = request
        self._heads.setdefault(owner, []).append(head)

    def forget(self, owner: object) -> None:
        """Forget all that an owner has added."""
        for head in self._heads.pop(owner, ()):
            records = self._by_head.get(head)
            if records is not None:
                records.pop(owner, None)
                if not records:
                    del self._by_head[head]

    def find(self, definition: pb.Definition) -> dict[str, Any] | None:
        """Return the request of a definition, if all that know one agree."""
        found = [
            _without_root(item) for item in self._by_head.get(head_digest(definition), {}).values()
        ]
        return found[0] if found and all(item == found[0] for item in found) else None


def _without_root(record: dict[str, Any]) -> dict[str, Any]:
    request = {key: value for key, value in record["request"].items() if key != "root"}
    return {**record, "request": request}


def head_digest(definition: pb.Definition) -> str:
    """Return the vertex that a definition's terminal op points at; empty if there is none."""
    marshalled: Sequence[bytes] = getattr(definition, "def")
    if not marshalled:
        return ""
    inputs = pb.Op.FromString(marshalled[-1]).inputs
    return inputs[0].digest if inputs else ""


def filter_options(options: Mapping[str, str]) -> dict[str, str]:
    """Return the options that belong into a document, logins in URLs masked, sorted."""
    context = options.get("contextkey") or "context"
    out = {}
    for key in sorted(options):
        if key in _HOST_OPTIONS or key.startswith("attest:"):
            continue
        value = options[key]
        masked = key in {context, "vcs:source"} or key.startswith("context:")
        out[key] = redact(value) if masked else value
    return out


@dataclass(slots=True)
class RequestScope:
    """One frontend's run, or (without a request) the client's own calls.

    Attributes:
        request: What the frontend was asked for.
        root: What the build was asked for.
        results: Of definitions solved in it, and of the frontend itself.
        children: Frontends that it ran.
        images: Images that it has looked up.
    """

    request: FrontendRequest | None = None
    root: FrontendRequest | None = None
    results: list[FrontendResult] = field(default_factory=list)
    children: list[RequestScope] = field(default_factory=list)
    images: list[ImageMaterial] = field(default_factory=list)

    def child(self, request: FrontendRequest) -> RequestScope:
        """Return the scope of a frontend that is run from here; it counts once it is added."""
        return RequestScope(request, self.root if _says_anything(self.root) else self.request)

    def clear(self) -> None:
        """Forget all that was done so far; the build begins again."""
        self.results.clear()
        self.children.clear()
        self.images.clear()

    def find(self, ref: LazyRef) -> RequestScope | None:
        """Return the innermost scope that has made a ref."""
        for child in self.children:
            found = child.find(ref)
            if found is not None:
                return found
        made = any(ref is item for result in self.results for item in result.all_refs())
        return self if made else None

    def refs(self) -> Iterator[LazyRef]:
        """Yield all refs made here and below."""
        for result in self.results:
            yield from result.all_refs()
        for child in self.children:
            yield from child.refs()

    def all_images(self) -> list[ImageMaterial]:
        """Return the images looked up here and below."""
        found = list(self.images)
        for child in self.children:
            found += child.all_images()
        return found


def _says_anything(request: FrontendRequest | None) -> bool:
    return request is not None and bool(request.frontend or request.options or request.inputs)


class Provenance:
    """Tells what the refs of one build were made from."""

    def __init__(self, root: RequestScope, records: RequestRecords) -> None:
        self.root = root
        self._records = records

    def register(self, scope: RequestScope, result: FrontendResult) -> None:
        """Let other builds find the request behind a frontend's result."""
        if scope.request is None:
            return
        request = self._with_inputs(scope.request, Capture())
        for ref in result.all_refs():
            self._records.add(self, ref.definition, request)

    def close(self) -> None:
        """Forget what other builds could find."""
        self._records.forget(self)

    def capture(self, result: FrontendResult, key: str, ref: LazyRef, job: Job) -> Capture | None:
        """Return what a ref of a result was made from; None if nothing in this build made it.

        Args:
            result: What is exported.
            key: The ref's platform id, or empty for the only one.
            ref: One of its refs, evaluated.
            job: Still claims the vertices.
        """
        scope = self.root.find(ref)
        if scope is None:
            return None
        found = self._own(ref, scope, job)
        seen = {id(item) for item in result.all_refs()}
        for other in scope.refs():
            if id(other) not in seen and other.is_evaluated:
                seen.add(id(other))
                found.merge(self._own(other, scope, job))
        for image in _for_platform(scope.all_images(), key, result.metadata):
            found.add_image(image)
        found.finish()
        return found

    def _own(self, ref: LazyRef, scope: RequestScope, job: Job) -> Capture:
        found = Capture()
        for vertex, op in job.operations(ref.edge):
            found.add_vertex(vertex, op)
        if scope.request is not None:
            found.request = self._request(scope, found)
        return found

    def _request(self, scope: RequestScope, found: Capture) -> dict[str, Any]:
        assert scope.request is not None
        options = filter_options(scope.request.options or {})
        request: dict[str, Any] = {"frontend": scope.request.frontend, "args": options}
        inputs = self._inputs(scope.request)
        if inputs:
            request["inputs"] = inputs
        if scope.root is not None and _says_anything(scope.root):
            root = self._with_inputs(scope.root, found)
            if root["request"] and root != self._with_inputs(scope.request, found):
                request["root"] = root
        return request

    def _with_inputs(self, asked: FrontendRequest, found: Capture) -> dict[str, Any]:
        record = request_record(asked.frontend, filter_options(asked.options or {}), found)
        inputs = self._inputs(asked)
        if inputs:
            record["request"]["inputs"] = inputs
        return record

    def _inputs(self, asked: FrontendRequest) -> dict[str, Any]:
        found = {
            name: self._records.find(definition)
            for name, definition in sorted((asked.inputs or {}).items())
        }
        return {name: record for name, record in found.items() if record is not None}


def request_record(frontend: str, options: Mapping[str, str], found: Capture) -> dict[str, Any]:
    """Return a request as documents have it: where it came from, and what it was.

    Args:
        frontend: Its name.
        options: Filtered ones.
        found: Knows the commit or digest of a context that is a URL.
    """
    args = dict(options)
    key = "context"
    if args.get("contextkey"):
        key = args["contextkey"]
    elif args.get("input:context"):
        key = "input:context"
    config: dict[str, Any] = {}
    if uri := args.get(key):
        config = _material(uri, found) or {"uri": uri}
        config["uri"] = redact(config["uri"])
        del args[key]
    if path := args.pop("filename", ""):
        config["path"] = path
    request: dict[str, Any] = {}
    if frontend:
        request["frontend"] = frontend
    if args:
        request["args"] = args
    return {"configSource": config, "request": request}


def _material(uri: str, found: Capture) -> dict[str, Any] | None:
    """Return URI and digest of a context that is a git repository or a file of the web."""
    if uri in found.http:
        kind, _, digest = found.http[uri].partition(":")
        return {"uri": uri, "digest": {kind: digest}}
    plain, full = _git_urls(uri)
    commit = found.git.get(plain)
    if commit is not None:
        return {"uri": full, "digest": commit_digest(commit)}
    return None


def _git_urls(uri: str) -> tuple[str, str]:
    """Return a git context as sources name it, and with its sub-directory."""
    try:
        found = parse_git_ref(uri)
    except InvalidInputError:
        found = None
    if found is None:
        return uri, uri
    plain = found.remote + (f"#{found.ref}" if found.ref else "")
    if not found.subdir:
        return plain, plain
    return plain, f"{found.remote}#{found.ref}:{found.subdir.strip('/')}"


def commit_digest(commit: str) -> dict[str, str]:
    """Return a commit as in-toto writes digests."""
    return {"sha256" if len(commit) == 64 else "sha1": commit}


def _for_platform(
    images: Sequence[ImageMaterial], key: str, metadata: Mapping[str, bytes]
) -> list[ImageMaterial]:
    """Leave out images for other platforms, if there is one for every platform."""
    if not key:
        return list(images)
    platforms = parse_platforms(metadata)
    current = next((item.platform for item in platforms if item.id == key), None)
    by_ref: dict[str, list[Platform]] = {}
    for image in images:
        if image.platform is not None:
            by_ref.setdefault(image.ref, []).append(image.platform)
    everywhere = {
        ref
        for ref, offered in by_ref.items()
        if all(any(item.platform.matches(p) for p in offered) for item in platforms)
    }
    return [
        image
        for image in images
        if image.ref not in everywhere
        or image.platform is None
        or current is None
        or (image.platform.os, image.platform.architecture) == (current.os, current.architecture)
    ]
