"""From ``pb.Definition`` to a verified graph of vertices.

A definition is a list of marshalled ops that name their inputs by digest; the last one has
no operation of its own and points at the result. It comes from outside: everything that the
solver and the ops rely on is checked here, before anything runs.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence

from google.protobuf.message import DecodeError

from boxwright.core.dataclass import dataclass
from boxwright.core.digest import Digest
from boxwright.core.platform import Platform
from boxwright.errors import InvalidInputError, LimitExceededError, UnimplementedError
from boxwright.llb.canonical import marshal_op
from boxwright.llb.graph import Edge, Vertex, VertexOptions
from boxwright.progress.events import ProgressGroup
from boxwright.wire.pb import ops_pb2 as pb

MAX_OPS = 65_536
MAX_INPUTS = 4_096
"""Inputs of one op; overlayfs and crun give up long before."""
MAX_TOTAL_INPUTS = 1 << 20
MAX_BYTES = 256 << 20

EMPTY = -1
ROOT_MOUNT = "/"


class InvalidDefinitionError(InvalidInputError):
    """A definition that can't be built; ``detail`` says where and why."""

    def __init__(self, detail: str, *, vertex: str = "") -> None:
        super().__init__("invalid build definition", detail=detail)
        self.vertex = vertex


class UnsupportedCapabilityError(UnimplementedError):
    """A vertex needs something that this version can't do."""

    def __init__(self, capability: str, *, vertex: str) -> None:
        super().__init__(
            "the build definition needs a capability that this daemon lacks",
            detail=capability,
            hint="update the daemon, or use an older frontend",
        )
        self.capability = capability
        self.vertex = vertex


@dataclass(slots=True)
class DecodedOp:
    """One op of a definition, with the metadata that came with it."""

    digest: Digest
    op: pb.Op
    metadata: pb.OpMetadata | None = None


def load(
    definition: pb.Definition,
    *,
    default_platform: Platform | None = None,
    capabilities: Container[str] | None = None,
) -> Edge:
    """Return the edge that a definition stands for.

    Args:
        definition: From a client or a frontend.
        default_platform: For ops that name none; this machine's, unless given.
        capabilities: What this version can do; not checked if None.

    Raises:
        InvalidDefinitionError: an op is malformed, or the ops are no graph with one result.
        LimitExceededError: it is over one of the limits of this module.
        UnsupportedCapabilityError: it needs a capability that is not in ``capabilities``.
    """
    ops = decode(definition)
    return assemble(ops, default_platform=default_platform, capabilities=capabilities)


def decode(definition: pb.Definition) -> list[DecodedOp]:
    """Return the ops in the order of the definition, the terminal one last.

    Between this and :func:`assemble` a source policy may change ops in place; call
    :func:`recompute` after that.

    Raises:
        InvalidDefinitionError: the definition is empty or an op can't be parsed.
        LimitExceededError: it is too large.
    """
    marshalled: Sequence[bytes] = getattr(definition, "def")
    if not marshalled:
        raise InvalidDefinitionError("it has no ops")
    if len(marshalled) > MAX_OPS:
        raise LimitExceededError(
            "the build definition is too large", detail=f"{len(marshalled)} ops > {MAX_OPS}"
        )
    if sum(map(len, marshalled)) > MAX_BYTES:
        raise LimitExceededError(
            "the build definition is too large", detail=f"> {MAX_BYTES} bytes"
        )
    found: dict[Digest, DecodedOp] = {}
    total_inputs = 0
    last: DecodedOp | None = None
    for number, data in enumerate(marshalled):
        op = pb.Op()
        try:
            op.ParseFromString(data)
        except DecodeError as error:
            raise InvalidDefinitionError(f"op {number} can't be parsed: {error}") from None
        total_inputs += len(op.inputs)
        if len(op.inputs) > MAX_INPUTS or total_inputs > MAX_TOTAL_INPUTS:
            raise LimitExceededError("the build definition has too many inputs")
        digest = Digest.of(data)
        metadata = definition.metadata.get(digest)
        last = found[digest] = DecodedOp(digest, op, metadata)
    assert last is not None
    ops = [op for op in found.values() if op is not last]
    return [*ops, last]


def recompute(ops: Iterable[DecodedOp]) -> None:
    """Give every op whose content or inputs changed its new digest, inputs first.

    Raises:
        InvalidDefinitionError: an input is missing, or ops depend on each other.
    """
    by_digest = {op.digest: op for op in ops}
    renamed: dict[str, Digest] = {}
    for old in _inputs_first(by_digest, by_digest):
        decoded = by_digest[old]
        for item in decoded.op.inputs:
            item.digest = renamed[item.digest]
        data = marshal_op(decoded.op)
        decoded.digest = renamed[old] = Digest.of(data)


def assemble(
    ops: list[DecodedOp],
    *,
    default_platform: Platform | None = None,
    capabilities: Container[str] | None = None,
) -> Edge:
    """Return the edge that the last of ``ops`` points at. See :func:`load`."""
    if len(ops) < 2:
        raise InvalidDefinitionError("it has no ops besides the terminal one")
    *rest, terminal = ops
    if not terminal.op.inputs:
        raise InvalidDefinitionError("its last op points at nothing", vertex=terminal.digest)
    by_digest = {op.digest: op for op in rest}
    result = terminal.op.inputs[0]
    platform = default_platform or Platform.host()
    vertices: dict[str, Vertex] = {}
    for digest in _inputs_first(by_digest, [result.digest]):
        decoded = by_digest[digest]
        validate(decoded.op, vertex=digest)
        _check_capabilities(decoded, capabilities)
        edges = tuple(_edge(vertices, item, digest) for item in decoded.op.inputs)
        vertices[digest] = Vertex(
            digest=decoded.digest,
            op=decoded.op,
            inputs=edges,
            options=_options(decoded),
            platform=_platform(decoded.op, platform),
            default_name=_name(decoded.op, edges),
        )
    return _edge(vertices, result, terminal.digest)


def _inputs_first(ops: Mapping[Digest, DecodedOp], roots: Iterable[str]) -> list[Digest]:
    """Return the digests that ``roots`` reach so that each comes after its inputs."""
    order: list[Digest] = []
    state: dict[str, bool] = {}  # False while its inputs are being visited
    for root in roots:
        stack: list[tuple[str, bool]] = [(root, False)]
        while stack:
            name, expanded = stack.pop()
            decoded = ops.get(name)  # type: ignore[call-overload]
            if decoded is None:
                raise InvalidDefinitionError(f"it lacks the op {name[:80]!r}")
            if expanded:
                state[name] = True
                order.append(decoded.digest)
                continue
            if name in state:
                if not state[name]:
                    raise InvalidDefinitionError("ops depend on each other", vertex=name)
                continue
            state[name] = False
            stack.append((name, True))
            stack.extend(
                (item.digest, False)
                for item in reversed(decoded.op.inputs)
                if not state.get(item.digest)
            )
    return order


def _edge(vertices: Mapping[str, Vertex], item: pb.Input, consumer: str) -> Edge:
    vertex = vertices[item.digest]
    if not 0 <= item.index < output_count(vertex.op):
        raise InvalidDefinitionError(
            f"output {item.index} of {vertex.name!r} does not exist", vertex=consumer
        )
    return Edge(vertex, item.index)


def output_count(op: pb.Op) -> int:
    """Return the number of outputs that an op has."""
    kind = op.WhichOneof("op")
    if kind == "exec":
        return len(output_mounts(op.exec))
    if kind == "file":
        return sum(1 for action in op.file.actions if action.output != EMPTY)
    if kind == "passthrough":
        return len(op.passthrough.outputs)
    return 1


# -- single ops ---------------------------------------------------------------------------


def validate(op: pb.Op, *, vertex: str = "") -> None:
    """Check what ops rely on.

    Raises:
        InvalidDefinitionError: something is missing or refers to what does not exist.
    """
    kind = op.WhichOneof("op")
    check = _VALIDATORS.get(kind or "")
    if check is None:
        raise InvalidDefinitionError("an op has no known operation", vertex=vertex)
    problem = check(op)
    if problem:
        raise InvalidDefinitionError(problem, vertex=vertex)


def _validate_source(op: pb.Op) -> str:
    if op.inputs:
        return "a source has inputs"
    return "" if op.source.identifier else "a source has no identifier"


def output_mounts(command: pb.ExecOp) -> list[int]:
    """Return which mounts of a command are its outputs, in the order of the outputs.

    Upstream counts: the numbers in the mounts only say whether there is an output, and may leave
    gaps or repeat. Mounts of other kinds than trees have none, and clients leave their field at 0.
    """
    return [
        position
        for position, mount in enumerate(command.mounts)
        if mount.output != EMPTY
        and (
            mount.mountType == pb.MountType.BIND
            or (mount.mountType == pb.MountType.CACHE and mount.input != EMPTY)
        )
    ]


def _validate_exec(op: pb.Op) -> str:
    if not op.exec.HasField("meta"):
        return "a command has no metadata"
    if not op.exec.meta.args:
        return "a command has no arguments"
    if not op.exec.mounts:
        return "a command has no mounts"
    if all(mount.dest != ROOT_MOUNT for mount in op.exec.mounts):
        return "a command has no root file system"
    for mount in op.exec.mounts:
        if not EMPTY <= mount.input < len(op.inputs):
            return f"the mount {mount.dest!r} refers to input {mount.input}"
    return ""


def _validate_file(op: pb.Op) -> str:
    actions = op.file.actions
    if not actions:
        return "a file operation has no actions"
    limit = len(op.inputs) + len(actions)
    for number, action in enumerate(actions):
        if action.WhichOneof("action") is None:
            return f"file action {number} is of no known kind"
        for source in (action.input, action.secondaryInput):
            if not EMPTY <= source < limit:
                return f"file action {number} refers to input {source}"
    outputs = sorted(a.output for a in actions if a.output != EMPTY)
    if not outputs:
        return "a file operation has no outputs"
    if outputs != list(range(len(outputs))):
        return f"a file operation's outputs are numbered {outputs[:10]}"
    return _file_loop(op)


def _file_loop(op: pb.Op) -> str:
    """Actions may use each other's outputs in any order, but not in a circle."""
    base = len(op.inputs)
    done: set[int] = set()
    for start in range(len(op.file.actions)):
        stack, path = [(start, False)], set[int]()
        while stack:
            number, expanded = stack.pop()
            if expanded:
                path.discard(number)
                done.add(number)
            elif number in path:
                return f"file action {number} depends on itself"
            elif number not in done:
                path.add(number)
                stack.append((number, True))
                action = op.file.actions[number]
                sources = (action.input - base, action.secondaryInput - base)
                stack.extend((s, False) for s in sources if s >= 0)
    return ""


def _validate_build(op: pb.Op) -> str:
    for name, item in op.build.inputs.items():
        if not 0 <= item.input < len(op.inputs):
            return f"the build input {name!r} refers to input {item.input}"
    return ""


def _validate_merge(op: pb.Op) -> str:
    named = [item.input for item in op.merge.inputs if item.input != EMPTY]
    if len(named) != len(op.inputs):
        return "a merge names another number of inputs than it has"
    for number in named:
        if not 0 <= number < len(op.inputs):
            return f"a merge refers to input {number}"
    return ""


def _validate_diff(op: pb.Op) -> str:
    if not (op.diff.HasField("lower") and op.diff.HasField("upper")):
        return "a diff lacks a side"
    sides = (op.diff.lower.input, op.diff.upper.input)
    for side in sides:
        if not EMPTY <= side < len(op.inputs):
            return f"a diff refers to input {side}"
    if sum(side != EMPTY for side in sides) != len(op.inputs):
        return "a diff names another number of inputs than it has"
    return ""


def _validate_passthrough(op: pb.Op) -> str:
    if not op.passthrough.id:
        return "a passthrough has no id"
    if not op.passthrough.outputs:
        return "a passthrough has no outputs"
    for item in op.passthrough.outputs:
        if not 0 <= item < len(op.inputs):
            return f"a passthrough refers to input {item}"
    return ""


_VALIDATORS: dict[str, Callable[[pb.Op], str]] = {
    "source": _validate_source,
    "exec": _validate_exec,
    "file": _validate_file,
    "build": _validate_build,
    "merge": _validate_merge,
    "diff": _validate_diff,
    "passthrough": _validate_passthrough,
}


def _check_capabilities(decoded: DecodedOp, capabilities: Container[str] | None) -> None:
    if capabilities is None or decoded.metadata is None:
        return
    for name, needed in decoded.metadata.caps.items():
        if needed and name not in capabilities:
            raise UnsupportedCapabilityError(name, vertex=decoded.digest)


def _options(decoded: DecodedOp) -> VertexOptions:
    meta = decoded.metadata
    if meta is None:
        return VertexOptions()
    group = meta.progress_group
    is_exec = decoded.op.WhichOneof("op") == "exec"
    return VertexOptions(
        ignore_cache=meta.ignore_cache,
        description=dict(meta.description),
        export_cache=meta.export_cache.Value if meta.HasField("export_cache") else None,
        progress_group=(
            ProgressGroup(group.id, group.name, group.weak)
            if meta.HasField("progress_group")
            else None
        ),
        caps=frozenset(name for name, needed in meta.caps.items() if needed),
        linux_resources=(
            meta.linux_resources if is_exec and meta.HasField("linux_resources") else None
        ),
    )


def _platform(op: pb.Op, default: Platform) -> Platform:
    if not op.HasField("platform"):
        return default
    given = op.platform
    return Platform(
        os=given.OS,
        architecture=given.Architecture,
        variant=given.Variant,
        os_version=given.OSVersion,
        os_features=tuple(given.OSFeatures),
    ).normalized()


def pruned_cache_ids(edge: Edge) -> dict[str, bool]:
    """Return the cache mounts that a build without cache empties first.

    Maps the mount's id to whether it starts from a snapshot.
    """
    found: dict[str, bool] = {}
    pending, seen = [edge.vertex], set[Vertex]()
    while pending:
        vertex = pending.pop()
        if vertex in seen:
            continue
        seen.add(vertex)
        pending.extend(e.vertex for e in vertex.inputs)
        if not vertex.options.ignore_cache or vertex.op.WhichOneof("op") != "exec":
            continue
        for mount in vertex.op.exec.mounts:
            if mount.mountType == pb.MountType.CACHE and mount.HasField("cacheOpt"):
                found[mount.cacheOpt.ID or mount.dest] = mount.input != EMPTY
    return found


# -- names --------------------------------------------------------------------------------


def _name(op: pb.Op, inputs: tuple[Edge, ...]) -> str:
    """Return what progress shows for a vertex that its client has not named."""
    match op.WhichOneof("op"):
        case "source":
            return op.source.identifier
        case "exec":
            return " ".join(op.exec.meta.args)
        case "file":
            return ", ".join(filter(None, map(_action_name, op.file.actions)))
        case "build":
            return "build"
        case "merge":
            return f"merge ({', '.join(e.vertex.name for e in inputs)})"
        case "diff":
            lower, upper = (
                "scratch" if side == EMPTY else f"({inputs[side].vertex.name})"
                for side in (op.diff.lower.input, op.diff.upper.input)
            )
            return f"diff {lower} -> {upper}"
        case "passthrough":
            return f"passthrough {op.passthrough.id}"
    return "unknown"


def _action_name(action: pb.FileAction) -> str:
    match action.WhichOneof("action"):
        case "copy":
            return f"copy {action.copy.src} {action.copy.dest}"
        case "mkfile":
            return f"mkfile {action.mkfile.path}"
        case "mkdir":
            return f"mkdir {action.mkdir.path}"
        case "rm":
            return f"rm {action.rm.path}"
        case "symlink":
            return f"symlink {action.symlink.newpath} -> {action.symlink.oldpath}"
    return ""
