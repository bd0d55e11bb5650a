"""``debug dump-llb``: a build definition as readable JSON or as a graph."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Any

from boxwright.cli.errors import UsageError

if TYPE_CHECKING:
    from boxwright.wire.pb.ops_pb2 import Definition, Op


def read_definition(stream: IO[bytes]) -> Definition:
    """Read a marshalled ``pb.Definition``.

    Raises:
        UsageError: it is none.
    """
    from google.protobuf.message import DecodeError

    from boxwright.wire.pb import ops_pb2

    try:
        definition = ops_pb2.Definition.FromString(stream.read())
    except DecodeError as exc:
        raise UsageError("the input is no build definition", detail=str(exc)) from exc
    if not getattr(definition, "def"):
        raise UsageError("empty definition", hint="pipe the output of an LLB program in")
    return definition


def dump(definition: Definition, *, as_dot: bool) -> None:
    """Print every op of a definition."""
    from boxwright.core.digest import Digest
    from boxwright.wire.pb import ops_pb2

    ops = [(Digest.of(raw), ops_pb2.Op.FromString(raw)) for raw in getattr(definition, "def")]
    if as_dot:
        _write_dot(ops)
        return
    from google.protobuf.json_format import MessageToDict

    for digest, op in ops:
        record: dict[str, Any] = {"Op": MessageToDict(op, preserving_proto_field_name=True)}
        record["Digest"] = digest
        metadata = definition.metadata.get(digest)
        if metadata is not None:
            record["OpMetadata"] = MessageToDict(metadata, preserving_proto_field_name=True)
        sys.stdout.write(json.dumps(record) + "\n")


def _write_dot(ops: Sequence[tuple[str, Op]]) -> None:
    write = sys.stdout.write
    write("digraph {\n")
    for digest, op in ops:
        label, shape = describe(op)
        write(f'  "{digest}" [label={json.dumps(label)} shape="{shape}"];\n')
    for digest, op in ops:
        for number, item in enumerate(op.inputs):
            note = f"{number}" if not item.index else f"{number}:{item.index}"
            write(f'  "{item.digest}" -> "{digest}" [label="{note}"];\n')
    write("}\n")


def describe(op: Op) -> tuple[str, str]:
    """Return what an op does in a few words, and the shape that it is drawn with."""
    kind = op.WhichOneof("op")
    if kind == "source":
        return op.source.identifier, "ellipse"
    if kind == "exec":
        return " ".join(op.exec.meta.args), "box"
    if kind == "file":
        actions = [action.WhichOneof("action") or "" for action in op.file.actions]
        return ",".join(actions), "note"
    if kind in {"merge", "diff", "build"}:
        return str(kind), "invtriangle"
    return "return", "plaintext"
