"""Marshalling: from vertices to the ``pb.Definition`` that goes over the wire.

The bytes of an op are its identity (the vertex digest), so field contents and the order
of repeated fields are fixed here and compared with upstream's in the tests. A definition
lists inputs before the ops that use them and ends with a terminal op of one input.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypedDict

from google.protobuf.message import Message

from boxwright.core.dataclass import dataclass, field, replace
from boxwright.core.digest import Digest
from boxwright.core.platform import Platform
from boxwright.llb import build_caps as caps_
from boxwright.wire.pb import ops_pb2 as pb

EMPTY = -1
"""The input index of something that starts empty, and the output index of none."""


class SourceRange(NamedTuple):
    """A range of a source file (``pb.Range``): lines from 1, characters from 0."""

    start_line: int
    start_character: int
    end_line: int
    end_character: int

    def to_pb(self) -> pb.Range:
        """Return the message."""
        return pb.Range(
            start=pb.Position(line=self.start_line, character=self.start_character),
            end=pb.Position(line=self.end_line, character=self.end_character),
        )


@dataclass(frozen=True, slots=True, eq=False)
class SourceMap:
    """A source file that vertices can point into (``pb.SourceInfo``).

    Attributes:
        language: A name from GitHub's linguist list, such as ``Dockerfile``.
        definition: What the file was read from, so that a client can fetch it again.
    """

    filename: str
    language: str = ""
    data: bytes = b""
    definition: pb.Definition | None = None

    def to_pb(self) -> pb.SourceInfo:
        """Return the message."""
        return pb.SourceInfo(
            filename=self.filename,
            data=self.data,
            language=self.language,
            definition=self.definition,
        )

    def same(self, other: SourceMap) -> bool:
        """Return whether both describe the same file with the same content."""
        return self is other or (
            (self.filename, self.language, self.data)
            == (other.filename, other.language, other.data)
        )


@dataclass(frozen=True, slots=True, eq=False)
class SourceLocation:
    """Where in a source file a vertex comes from."""

    source_map: SourceMap
    ranges: tuple[SourceRange, ...]


@dataclass(frozen=True, slots=True)
class ProgressGroup:
    """A group that progress displays fold into one line; a weak one yields to others."""

    id: str
    name: str
    weak: bool = False


@dataclass(frozen=True, slots=True)
class LinuxResources:
    """Limits of one exec vertex; bytes, microseconds; 0 or "" where not limited.

    Not part of the op and so of no cache key (``OpMetadata.linux_resources``).
    """

    memory: int = 0
    memory_swap: int = 0
    cpu_shares: int = 0
    cpu_period: int = 0
    cpu_quota: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""

    def to_pb(self) -> pb.LinuxResources:
        """Return the message."""
        return pb.LinuxResources(
            memory=self.memory,
            memorySwap=self.memory_swap,
            cpuShares=self.cpu_shares,
            cpuPeriod=self.cpu_period,
            cpuQuota=self.cpu_quota,
            cpusetCpus=self.cpuset_cpus,
            cpusetMems=self.cpuset_mems,
        )


@dataclass(frozen=True, slots=True)
class OpMetadata:
    """What is said about a vertex outside its digest (``pb.OpMetadata``)."""

    ignore_cache: bool = False
    description: Mapping[str, str] = field(default_factory=dict)
    export_cache: bool | None = None
    caps: frozenset[str] = frozenset()
    progress_group: ProgressGroup | None = None
    linux_resources: LinuxResources | None = None

    def merge(self, other: OpMetadata) -> OpMetadata:
        """Return both together; what ``other`` sets wins."""
        return OpMetadata(
            self.ignore_cache or other.ignore_cache,
            {**self.description, **other.description},
            self.export_cache if other.export_cache is None else other.export_cache,
            self.caps | other.caps,
            other.progress_group or self.progress_group,
            other.linux_resources or self.linux_resources,
        )

    def to_pb(self) -> pb.OpMetadata:
        """Return the message."""
        out = pb.OpMetadata(
            ignore_cache=self.ignore_cache,
            description=dict(self.description),
            caps=dict.fromkeys(self.caps, True),
        )
        if self.export_cache is not None:
            out.export_cache.Value = self.export_cache
        if group := self.progress_group:
            out.progress_group.CopyFrom(
                pb.ProgressGroup(id=group.id, name=group.name, weak=group.weak)
            )
        if self.linux_resources is not None:
            out.linux_resources.CopyFrom(self.linux_resources.to_pb())
        return out

    @classmethod
    def from_pb(cls, message: pb.OpMetadata) -> OpMetadata:
        """Read the message."""
        group = message.progress_group
        resources = message.linux_resources
        return cls(
            message.ignore_cache,
            dict(message.description),
            message.export_cache.Value if message.HasField("export_cache") else None,
            frozenset(name for name, on in message.caps.items() if on),
            ProgressGroup(group.id, group.name, group.weak)
            if message.HasField("progress_group")
            else None,
            LinuxResources(
                resources.memory,
                resources.memorySwap,
                resources.cpuShares,
                resources.cpuPeriod,
                resources.cpuQuota,
                resources.cpusetCpus,
                resources.cpusetMems,
            )
            if message.HasField("linux_resources")
            else None,
        )


class OpOptions(TypedDict, total=False):
    """Keyword arguments that every vertex takes.

    Attributes:
        name: The vertex's name in progress (``llb.customname``).
        description: More free text for clients, by key.
        platform: The platform the op runs for.
        ignore_cache: Never take this vertex from the cache.
        export_cache: Whether to export this vertex's cache; None leaves it to the build.
        filters: Worker constraints, containerd filter syntax.
        locations: Where in a source file it comes from.
    """

    name: str
    description: Mapping[str, str]
    platform: Platform | None
    ignore_cache: bool
    export_cache: bool | None
    progress_group: ProgressGroup | None
    linux_resources: LinuxResources | None
    filters: Sequence[str]
    locations: Sequence[SourceLocation]


@dataclass(frozen=True, slots=True, eq=False)
class Constraints:
    """The options of one vertex in normal form."""

    platform: Platform | None = None
    filters: tuple[str, ...] = ()
    metadata: OpMetadata = field(default_factory=OpMetadata)
    locations: tuple[SourceLocation, ...] = ()

    @classmethod
    def of(cls, options: OpOptions) -> Constraints:
        """Build from keyword arguments."""
        description = dict(options.get("description") or {})
        if name := options.get("name", ""):
            description["llb.customname"] = name
        return cls(
            options.get("platform"),
            tuple(options.get("filters", ())),
            OpMetadata(
                ignore_cache=options.get("ignore_cache", False),
                description=description,
                export_cache=options.get("export_cache"),
                progress_group=options.get("progress_group"),
                linux_resources=options.get("linux_resources"),
            ),
            tuple(options.get("locations", ())),
        )

    def with_caps(self, *names: str) -> Constraints:
        """Return these constraints asking for more capabilities."""
        metadata = replace(self.metadata, caps=self.metadata.caps | set(names))
        return replace(self, metadata=metadata)


class Vertex(Protocol):
    """One op of the graph; compared by identity."""

    def inputs(self) -> Sequence[Output]:
        """Return the outputs it uses, in the order a definition lists them."""

    def marshal(self, marshaller: Marshaller) -> Marshalled:
        """Return the op's bytes; all inputs have been marshalled before."""


class Output:
    """One output of a vertex."""

    __slots__ = ("_index", "_vertex", "platform")

    def __init__(self, vertex: Vertex, index: int = 0, platform: Platform | None = None) -> None:
        self._vertex = vertex
        self._index = index
        self.platform = platform

    def resolve(self) -> tuple[Vertex, int] | None:
        """Return vertex and output index, or None for an empty filesystem."""
        return self._vertex, self._index


class DeferredOutput(Output):
    """An output that is decided later, at the latest before marshalling.

    The build context of a Dockerfile is one: which of its files are needed is known only
    when every instruction has been seen.
    """

    __slots__ = ("_target", "platform")

    def __init__(self) -> None:
        self._target: Output | None = None
        self.platform = None

    def set(self, target: Output | None) -> None:
        """Decide; ``None`` is an empty filesystem."""
        self._target = target

    def resolve(self) -> tuple[Vertex, int] | None:
        """Return the target's vertex and index."""
        return None if self._target is None else self._target.resolve()


@dataclass(frozen=True, slots=True, eq=False)
class Marshalled:
    """A marshalled op: its digest, bytes, and what is said about it."""

    digest: Digest
    data: bytes
    metadata: OpMetadata
    locations: tuple[SourceLocation, ...] = ()

    @classmethod
    def of(cls, op: pb.Op, constraints: Constraints) -> Marshalled:
        """Encode ``op`` and take it apart: it is not to be used afterwards."""
        data = encode_op(op)
        return cls(Digest.of(data), data, constraints.metadata, constraints.locations)


def encode_op(op: pb.Op) -> bytes:
    """Return the bytes of ``op`` in the order in which Go's encoder writes them.

    Map keys are sorted, and fields come by number, except that the kind of op (a oneof)
    comes last although its numbers are lower than those of platform and constraints.
    Clears the kind in ``op``.
    """
    kind = op.WhichOneof("op")
    tail = pb.Op()
    if kind is not None:
        getattr(tail, kind).CopyFrom(getattr(op, kind))
        op.ClearField(kind)
    head = op.SerializeToString(deterministic=True)
    return head + (_encode_source(tail.source) if kind == "source" else _encode(tail))


def _encode(message: Message) -> bytes:
    return message.SerializeToString(deterministic=True)


def _encode_source(source: pb.SourceOp) -> bytes:
    """Return a source op as a field of ``pb.Op``, its attributes sorted by name.

    The encoder's own order of keys is another where one key is the beginning of another.
    """
    body = _encode(pb.SourceOp(identifier=source.identifier))
    for key in sorted(source.attrs):
        body += _encode(pb.SourceOp(attrs={key: source.attrs[key]}))
    return bytes([pb.Op.SOURCE_FIELD_NUMBER << 3 | 2]) + _varint(len(body)) + body


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


class Marshaller:
    """One marshalling of a graph.

    Args:
        platform: For ops that have none of their own; the host's where None.
        caps: Capabilities of the daemon; None where unknown.
        local_unique_id: Given to local sources that name no session, so that two builds
            never share them; random where empty.
    """

    def __init__(
        self,
        platform: Platform | None = None,
        caps: frozenset[str] | None = None,
        local_unique_id: str = "",
    ) -> None:
        self.platform = platform or Platform.host()
        self.caps = caps
        self.local_unique_id = local_unique_id or secrets.token_hex(16)
        self._done: dict[int, Marshalled] = {}
        self._alive: list[Vertex] = []

    def new_op(self, constraints: Constraints, *, platform: bool = True) -> pb.Op:
        """Return an op with platform and worker constraints filled in."""
        op = pb.Op()
        op.constraints.filter.extend(constraints.filters)
        if platform:
            op.platform.CopyFrom(platform_to_pb(constraints.platform or self.platform))
        return op

    def vertex(self, vertex: Vertex) -> Marshalled:
        """Return the marshalled form of ``vertex``, made once."""
        known = self._done.get(id(vertex))
        if known is None:
            known = vertex.marshal(self)
            self._done[id(vertex)] = known
            self._alive.append(vertex)  # keeps the id from being used again
        return known

    def input(self, output: Output | None) -> pb.Input | None:
        """Return the edge to ``output``, or None for an empty filesystem."""
        resolved = output.resolve() if output is not None else None
        if resolved is None:
            return None
        vertex, index = resolved
        return pb.Input(digest=self.vertex(vertex).digest, index=index)

    def in_order(self, output: Output) -> Iterable[Marshalled]:
        """Yield all vertices below ``output``, inputs first, each once."""
        resolved = output.resolve()
        if resolved is None:
            return
        seen: set[int] = set()
        # Explicit stack: a chain of thousands of steps must not meet the recursion limit.
        stack: list[tuple[Vertex, bool]] = [(resolved[0], False)]
        while stack:
            vertex, expanded = stack.pop()
            if id(vertex) in seen:
                continue
            if expanded:
                seen.add(id(vertex))
                yield self.vertex(vertex)
                continue
            stack.append((vertex, True))
            for item in reversed(vertex.inputs()):
                below = item.resolve()
                if below is not None and id(below[0]) not in seen:
                    stack.append((below[0], False))

    def definition(self, output: Output | None) -> pb.Definition:
        """Return the definition whose result is ``output``; an empty one for None."""
        out = pb.Definition()
        last = self.input_of_terminal(output)
        if output is None or last is None:
            return out
        metadata: dict[Digest, OpMetadata] = {}
        collector = _SourceCollector()
        ops = getattr(out, "def")
        for item in self.in_order(output):
            if item.digest in metadata:
                metadata[item.digest] = metadata[item.digest].merge(item.metadata)
            else:
                metadata[item.digest] = item.metadata
                ops.append(item.data)
            collector.add(item)
        terminal = pb.Op(inputs=[last]).SerializeToString(deterministic=True)
        ops.append(terminal)
        metadata[Digest.of(terminal)] = OpMetadata(caps=_terminal_caps(metadata.values()))
        for digest, value in metadata.items():
            out.metadata[digest].CopyFrom(value.to_pb())
        out.Source.CopyFrom(collector.to_pb())
        return out

    def input_of_terminal(self, output: Output | None) -> pb.Input | None:
        """Return the terminal op's one input, marshalling the graph without recursion."""
        if output is not None:
            for _ in self.in_order(output):
                pass
        return self.input(output)


def _terminal_caps(all_metadata: Iterable[OpMetadata]) -> frozenset[str]:
    out = {caps_.CONSTRAINTS, caps_.PLATFORM}
    for metadata in all_metadata:
        if metadata.ignore_cache:
            out.add(caps_.META_IGNORE_CACHE)
        if metadata.description:
            out.add(caps_.META_DESCRIPTION)
        if metadata.export_cache is not None:
            out.add(caps_.META_EXPORT_CACHE)
    return frozenset(out)


class _SourceCollector:
    """Gathers the source map of a definition (``pb.Source``)."""

    def __init__(self) -> None:
        self._maps: list[SourceMap] = []
        self._index: dict[int, int] = {}
        self._locations: dict[Digest, list[SourceLocation]] = {}

    def add(self, item: Marshalled) -> None:
        for location in item.locations:
            key = id(location.source_map)
            if key not in self._index:
                self._index[key] = self._position(location.source_map)
        self._locations.setdefault(item.digest, []).extend(item.locations)

    def _position(self, source_map: SourceMap) -> int:
        for index, known in enumerate(self._maps):
            if known.same(source_map):
                return index
        self._maps.append(source_map)
        return len(self._maps) - 1

    def to_pb(self) -> pb.Source:
        out = pb.Source(infos=[source_map.to_pb() for source_map in self._maps])
        for digest, locations in self._locations.items():
            entry = out.locations[digest]
            for location in locations:
                entry.locations.append(
                    pb.Location(
                        sourceIndex=self._index[id(location.source_map)],
                        ranges=[item.to_pb() for item in location.ranges],
                    )
                )
        return out


def platform_to_pb(platform: Platform) -> pb.Platform:
    """Return the message for a platform, written as it is."""
    return pb.Platform(
        Architecture=platform.architecture,
        OS=platform.os,
        Variant=platform.variant,
        OSVersion=platform.os_version,
        OSFeatures=platform.os_features,
    )


def platform_from_pb(message: pb.Platform) -> Platform:
    """Read the message as it is, without normalising."""
    return Platform(
        os=message.OS,
        architecture=message.Architecture,
        variant=message.Variant,
        os_version=message.OSVersion,
        os_features=tuple(message.OSFeatures),
    )
