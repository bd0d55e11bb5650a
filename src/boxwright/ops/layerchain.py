"""Which steps of a graph make the layers of its result.

Known from the graph alone, before anything has run: a step stands on the tree that it changes,
not on those that it only reads. What is said here only decides what is prepared early, so a
graph that will be refused later gives an answer as well.
"""

from __future__ import annotations

from collections.abc import Iterable

from boxwright.llb.definition import output_mounts
from boxwright.llb.graph import Edge, Vertex


def layer_edges(root: Edge) -> set[Edge]:
    """Return ``root`` and all edges below it whose trees become layers of its tree."""
    found: set[Edge] = set()
    pending = [root]
    while pending:
        edge = pending.pop()
        if edge in found:
            continue
        found.add(edge)
        inputs = edge.vertex.inputs
        pending += [inputs[at] for at in _bases(edge.vertex, edge.index) if 0 <= at < len(inputs)]
    return found


def _bases(vertex: Vertex, output: int) -> Iterable[int]:
    """Return which inputs the tree of an output stands on."""
    op = vertex.op
    match op.WhichOneof("op"):
        case "exec":
            mounts = output_mounts(op.exec)
            return [op.exec.mounts[mounts[output]].input] if output < len(mounts) else []
        case "file":
            return _file_base(vertex, output)
        case "merge":
            return [item.input for item in op.merge.inputs]
        case "diff":
            return [op.diff.upper.input]
        case "passthrough":
            chosen = op.passthrough.outputs
            return [chosen[output]] if output < len(chosen) else []
        case _:
            return []


def _file_base(vertex: Vertex, output: int) -> Iterable[int]:
    """Follow the actions of a file op from an output to the input that they change."""
    actions = vertex.op.file.actions
    first = len(vertex.inputs)
    index = next((first + n for n, each in enumerate(actions) if each.output == output), -1)
    for _ in actions:
        if not first <= index < first + len(actions):
            break
        index = actions[index - first].input
    return [index]
