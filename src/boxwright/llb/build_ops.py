"""Merge, diff and pass-through vertices, and vertices taken from a finished definition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Unpack

from boxwright.core.digest import Digest
from boxwright.errors import InvalidInputError
from boxwright.llb import build_caps as caps
from boxwright.llb.marshal import (
    EMPTY,
    Constraints,
    Marshalled,
    Marshaller,
    OpMetadata,
    OpOptions,
    Output,
    SourceLocation,
    SourceMap,
    SourceRange,
    platform_from_pb,
)
from boxwright.llb.state import State
from boxwright.wire.pb import ops_pb2 as pb

_LLB_BUILDER = -1
_DEFINITION_INPUT = "buildkit.llb.definition"


class MergeOp:
    """A vertex that lays several filesystems over each other (``pb.MergeOp``)."""

    def __init__(self, outputs: Sequence[Output], constraints: Constraints) -> None:
        self._outputs = tuple(outputs)
        self._constraints = constraints.with_caps(caps.MERGE_OP)

    def inputs(self) -> Sequence[Output]:
        """Return the filesystems, the lowest first."""
        return self._outputs

    def marshal(self, marshaller: Marshaller) -> Marshalled:
        """Return the op's bytes."""
        op = marshaller.new_op(self._constraints, platform=False)
        op.merge.SetInParent()
        for number, output in enumerate(self._outputs):
            edge = marshaller.input(output)
            if edge is not None:
                op.inputs.append(edge)
                op.merge.inputs.append(pb.MergeInput(input=number))
        return Marshalled.of(op, self._constraints)


class DiffOp:
    """A vertex with what ``upper`` changed against ``lower`` (``pb.DiffOp``)."""

    def __init__(self, lower: Output, upper: Output | None, constraints: Constraints) -> None:
        self._lower = lower
        self._upper = upper
        self._constraints = constraints.with_caps(caps.DIFF_OP)

    def inputs(self) -> Sequence[Output]:
        """Return lower and upper."""
        return (self._lower,) if self._upper is None else (self._lower, self._upper)

    def marshal(self, marshaller: Marshaller) -> Marshalled:
        """Return the op's bytes."""
        op = marshaller.new_op(self._constraints, platform=False)
        indexes = []
        for output in (self._lower, self._upper):
            edge = marshaller.input(output)
            indexes.append(len(op.inputs) if edge is not None else EMPTY)
            if edge is not None:
                op.inputs.append(edge)
        op.diff.lower.CopyFrom(pb.LowerDiffInput(input=indexes[0]))
        op.diff.upper.CopyFrom(pb.UpperDiffInput(input=indexes[1]))
        return Marshalled.of(op, self._constraints)


class PassthroughOp:
    """A vertex whose outputs are some of its inputs, once all of them are there."""

    def __init__(
        self,
        identity: str,
        kept: Sequence[Output],
        required: Sequence[Output],
        constraints: Constraints,
    ) -> None:
        if not identity or not kept:
            raise InvalidInputError("a pass-through needs an id and at least one output")
        self._identity = identity
        self._kept = tuple(kept)
        self._required = tuple(required)
        self._constraints = constraints.with_caps(caps.PASSTHROUGH_OP)

    def inputs(self) -> Sequence[Output]:
        """Return what is passed on, then what is only required."""
        return (*self._kept, *self._required)

    def marshal(self, marshaller: Marshaller) -> Marshalled:
        """Return the op's bytes."""
        op = marshaller.new_op(self._constraints, platform=False)
        op.passthrough.id = self._identity
        for output in self.inputs():
            edge = marshaller.input(output)
            if edge is None:
                raise InvalidInputError("an empty filesystem can't be passed through")
            op.inputs.append(edge)
        op.passthrough.outputs.extend(range(len(self._kept)))
        return Marshalled.of(op, self._constraints)


class BuildOp:
    """A vertex with the result of a definition that lies as a file in a state (``pb.BuildOp``)."""

    def __init__(self, source: Output, filename: str, constraints: Constraints) -> None:
        self._source = source
        self._filename = filename
        self._constraints = constraints.with_caps(
            *([caps.BUILD_OP_LLB_FILE_NAME] if filename else [])
        )

    def inputs(self) -> Sequence[Output]:
        """Return what holds the file."""
        return (self._source,)

    def marshal(self, marshaller: Marshaller) -> Marshalled:
        """Return the op's bytes."""
        op = marshaller.new_op(self._constraints, platform=False)
        op.build.builder = _LLB_BUILDER
        op.build.inputs[_DEFINITION_INPUT].CopyFrom(pb.BuildInput(input=0))
        if self._filename:
            op.build.attrs["llbbuild.filename"] = self._filename
        edge = marshaller.input(self._source)
        if edge is None:
            raise InvalidInputError("an empty filesystem holds no definition")
        op.inputs.append(edge)
        return Marshalled.of(op, self._constraints)


def build(source: State, filename: str = "", **options: Unpack[OpOptions]) -> State:
    """Return the result of the definition that lies as a file in ``source``.

    Args:
        source: What holds the marshalled definition.
        filename: Where; ``/buildkit.llb.definition`` if empty.
        options: See :class:`boxwright.llb.marshal.OpOptions`.

    Raises:
        InvalidInputError: ``source`` is empty.
    """
    if source.output is None:
        raise InvalidInputError("an empty filesystem holds no definition")
    return State.new(Output(BuildOp(source.output, filename, Constraints.of(options))))


def merge(states: Sequence[State], **options: Unpack[OpOptions]) -> State:
    """Lay states over each other, later ones on top; empty ones have no effect.

    The result has the first state's settings.
    """
    present = [state for state in states if state.output is not None]
    if len(present) < 2:
        return present[0] if present else State()
    outputs = [state.output for state in present if state.output is not None]
    return present[0].with_output(Output(MergeOp(outputs, Constraints.of(options))))


def diff(lower: State, upper: State, **options: Unpack[OpOptions]) -> State:
    """Return what changed from ``lower`` to ``upper``, for use with :func:`merge`."""
    if lower.output is None:
        return upper if upper.output is not None else State()
    op = DiffOp(lower.output, upper.output, Constraints.of(options))
    return lower.with_output(Output(op))


def passthrough(
    identity: str,
    kept: Sequence[State],
    required: Sequence[State] = (),
    **options: Unpack[OpOptions],
) -> State:
    """Return the first of ``kept``, available only when all states have been built.

    Raises:
        InvalidInputError: the id is empty, or nothing of ``kept`` is a real filesystem.
    """
    kept_outputs = [state.output for state in kept if state.output is not None]
    others = [state.output for state in required if state.output is not None]
    op = PassthroughOp(identity, kept_outputs, others, Constraints.of(options))
    return State.new(Output(op))


class DefinitionOp:
    """A vertex of a definition that came over the wire; keeps its bytes as they are."""

    def __init__(self, graph: _Graph, digest: Digest) -> None:
        self._graph = graph
        self._digest = digest

    def inputs(self) -> Sequence[Output]:
        """Return the outputs it uses."""
        return [self._graph.output(edge) for edge in self._graph.ops[self._digest].inputs]

    def marshal(self, marshaller: Marshaller) -> Marshalled:
        """Return the bytes as they came."""
        graph = self._graph
        return Marshalled(
            self._digest,
            graph.data[self._digest],
            graph.metadata.get(self._digest, OpMetadata()),
            graph.locations.get(self._digest, ()),
        )


class _Graph:
    """A definition taken apart; vertices are made once per digest."""

    def __init__(self, definition: pb.Definition) -> None:
        self.data: dict[Digest, bytes] = {}
        self.ops: dict[Digest, pb.Op] = {}
        self.last: pb.Op | None = None
        for data in getattr(definition, "def"):
            digest = Digest.of(data)
            self.last = pb.Op.FromString(data)
            self.data[digest], self.ops[digest] = data, self.last
        self.metadata: Mapping[str, OpMetadata] = {
            digest: OpMetadata.from_pb(message) for digest, message in definition.metadata.items()
        }
        self.locations = _locations(definition)
        self._vertices: dict[Digest, DefinitionOp] = {}

    def output(self, edge: pb.Input) -> Output:
        digest = Digest(edge.digest)
        op = self.ops.get(digest)
        if op is None or edge.index < 0:
            raise InvalidInputError("a definition names an input that it lacks", detail=digest)
        vertex = self._vertices.setdefault(digest, DefinitionOp(self, digest))
        platform = platform_from_pb(op.platform) if op.HasField("platform") else None
        return Output(vertex, edge.index, platform)


def _locations(definition: pb.Definition) -> dict[str, tuple[SourceLocation, ...]]:
    maps = [
        SourceMap(
            info.filename,
            info.language,
            info.data,
            info.definition if info.HasField("definition") else None,
        )
        for info in definition.Source.infos
    ]
    out: dict[str, tuple[SourceLocation, ...]] = {}
    for digest, entry in definition.Source.locations.items():
        found = []
        for location in entry.locations:
            if not 0 <= location.sourceIndex < len(maps):
                raise InvalidInputError("a source location names no source file")
            ranges = tuple(
                SourceRange(
                    item.start.line, item.start.character, item.end.line, item.end.character
                )
                for item in location.ranges
            )
            found.append(SourceLocation(maps[location.sourceIndex], ranges))
        out[digest] = tuple(found)
    return out


def from_definition(definition: pb.Definition) -> State:
    """Return the state that a finished definition builds.

    Its ops keep their bytes and so their digests.

    Raises:
        InvalidInputError: the definition is malformed.
    """
    graph = _Graph(definition)
    if graph.last is None or not graph.last.inputs:
        return State()
    return State.new(graph.output(graph.last.inputs[0]))
