"""What a job's vertices turned out to be: their keys, and whether they ran.

Read at the end of a build, while its results are still held. Nothing is recorded while the
build runs, so telling costs a build nothing until somebody asks.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator

from boxwright.core.dataclass import dataclass
from boxwright.core.digest import Digest
from boxwright.llb.graph import Vertex
from boxwright.progress.events import IMPORTED
from boxwright.solver.active import ActiveVertex, Owner
from boxwright.solver.edge import EdgeNode
from boxwright.solver.types import CacheMapDep, Op, Result


class Outcome(enum.Enum):
    """How a vertex got its result."""

    UNKNOWN = "unknown"
    RAN = "ran"
    LOCAL = "local"
    IMPORTED = "imported"
    SKIPPED = "skipped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class InputFacts:
    """One input of a vertex.

    Attributes:
        digest: Of the vertex that it is an output of.
        output: Its number.
        dep: How it enters the key.
        content: The digest of what it holds; empty if that was never needed.
        result: The input itself, borrowed from the job; None if it was never needed.
    """

    digest: Digest
    output: int
    dep: CacheMapDep
    content: str
    result: Result | None


@dataclass(frozen=True, slots=True)
class VertexFacts:
    """One vertex of a job.

    Attributes:
        digest: As in the job's progress.
        cache_maps: Digests of the op's share of the key; several are equivalent.
        inputs: In their order; empty as long as there is no cache map.
        origin: Where a cached result came from (:class:`boxwright.progress.events.VertexEvent`).
        load_failures: Why records that the key led to could not be loaded.
        op: The op, if anything was asked of it.
    """

    digest: Digest
    vertex: Vertex
    cache_maps: tuple[str, ...]
    inputs: tuple[InputFacts, ...]
    outcome: Outcome
    origin: str
    load_failures: tuple[str, ...]
    op: Op | None


def facts_of(owner: Owner) -> list[VertexFacts]:
    """Return the vertices of a job, and of the graphs that they solve, inputs first."""
    order: dict[ActiveVertex, None] = {}
    stack = [(active, False) for active in reversed(owner.owned)]
    entered: set[ActiveVertex] = set()
    while stack:
        active, expanded = stack.pop()
        if expanded:
            order[active] = None
        elif active not in entered:
            entered.add(active)
            stack.append((active, True))
            stack.extend((dep, False) for dep, _ in active.inputs)
            stack.extend((each, False) for each in active.owned)
    return [_facts(active) for active in order]


def _facts(active: ActiveVertex) -> VertexFacts:
    maps = active.op.cache_maps()
    outcome, origin = _outcome(active)
    return VertexFacts(
        digest=active.digest,
        vertex=active.vertex,
        cache_maps=tuple(each.digest for each in maps),
        inputs=tuple(_inputs(active)),
        outcome=outcome,
        origin=origin,
        load_failures=tuple(active.load_failures),
        op=active.op.resolved,
    )


def _inputs(active: ActiveVertex) -> Iterator[InputFacts]:
    maps = active.op.cache_maps()
    deps = maps[0].deps if maps else ()
    for index, (source, output) in enumerate(active.inputs):
        dep = deps[index] if index < len(deps) else CacheMapDep()
        node = source.nodes.get(output)
        result = node.resolved().result if node is not None else None
        content = active.op.content_digest(index)
        yield InputFacts(
            source.digest, output, dep, content, result.result if result is not None else None
        )


def _outcome(active: ActiveVertex) -> tuple[Outcome, str]:
    """Return how the vertex, or the one that did its work, got its result."""
    nodes = list(active.nodes.values())
    doers = dict.fromkeys([active, *(node.resolved().active for node in nodes)])
    if any(each.op.has_run for each in doers):
        return Outcome.RAN, ""
    for each in doers:
        if each.origin:
            imported = each.origin.startswith(IMPORTED)
            return Outcome.IMPORTED if imported else Outcome.LOCAL, each.origin
    if any(_failed(node) for node in nodes):
        return Outcome.FAILED, ""
    return (Outcome.SKIPPED if active.op.cache_maps() else Outcome.UNKNOWN), ""


def _failed(node: EdgeNode) -> bool:
    return node.resolved().error is not None
