"""LLB as JSON, as provenance documents have it (BuildKit ``solver/pb/json.go``).

Field names are the proto's own, empty fields are left out, oneofs are an object with the name of
their kind, enums are numbers.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from google.protobuf.message import Message

from boxwright.core.dataclass import dataclass
from boxwright.core.digest import Digest
from boxwright.wire.pb import ops_pb2 as pb

if TYPE_CHECKING:
    from google._upb._message import FieldDescriptor as UpbField
    from google.protobuf.descriptor import FieldDescriptor

    Field = FieldDescriptor | UpbField

_TYPE_MESSAGE, _TYPE_BYTES = 11, 12  # descriptor.proto
_SESSION_ATTRIBUTES = ("local.session", "local.unique")
# oneofs whose members are wrapped; of the index fields around them, zeros are written
_WRAPPED = {"Op": "Op", "FileAction": "Action", "UserOpt": "User"}
_ALWAYS = {"FileAction": ("input", "secondaryInput", "output")}
_RENAMED = {"byID": "byId"}


@dataclass(frozen=True, slots=True)
class BuildSteps:
    """The steps of a definition, inputs first, and their numbers by vertex digest."""

    steps: list[dict[str, Any]]
    numbers: Mapping[str, int]

    def mapping(self) -> dict[str, str]:
        """Return the steps' names by vertex digest, sorted."""
        return {digest: f"step{self.numbers[digest]}" for digest in sorted(self.numbers)}


def build_steps(definition: pb.Definition | None) -> BuildSteps:
    """Return the steps of a definition in the order of a depth-first walk.

    What names a client's session is left out. The definition is one that was built.
    """
    ops: dict[str, pb.Op] = {}
    last = ""
    for data in getattr(definition, "def") if definition is not None else ():
        last = Digest.of(data)
        ops[last] = pb.Op.FromString(data)
    order: dict[str, int] = {}
    stack: list[tuple[str, bool]] = [(last, False)] if last else []
    while stack:
        digest, done = stack.pop()
        if done:
            order.setdefault(digest, len(order))
        elif digest not in order:
            stack.append((digest, True))
            stack.extend((item.digest, False) for item in reversed(ops[digest].inputs))
    return BuildSteps([_step(ops[digest], order, order[digest]) for digest in order], order)


def _step(op: pb.Op, order: Mapping[str, int], number: int) -> dict[str, Any]:
    inputs = [f"step{order[item.digest]}:{item.index}" for item in op.inputs]
    if op.WhichOneof("op") == "source":
        for name in _SESSION_ATTRIBUTES:
            op.source.attrs.pop(name, None)
    op.ClearField("inputs")
    out: dict[str, Any] = {"id": f"step{number}", "op": to_json(op)}
    if inputs:
        out["inputs"] = inputs
    return out


def to_json(message: Message) -> dict[str, Any]:
    """Return a message of an LLB graph as a JSON object, fields in the proto's order."""
    kind = message.DESCRIPTOR.name
    wrapper = _WRAPPED.get(kind, "")
    always = _ALWAYS.get(kind, ())
    out: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        if field.containing_oneof is not None and wrapper:
            wrapped = out.setdefault(wrapper, {})
            if message.HasField(field.name):
                value = _value(field, getattr(message, field.name))
                if value or isinstance(value, dict):
                    wrapped[_RENAMED.get(field.name, field.name)] = value
            continue
        value = getattr(message, field.name)
        if field.type == _TYPE_MESSAGE and not field.is_repeated:
            if message.HasField(field.name):
                out[field.name] = to_json(value)
        elif field.is_repeated:
            if value:
                out[field.name] = _repeated(field, value)
        elif value or field.name in always:
            out[field.name] = _value(field, value)
    return out


def _repeated(field: Field, value: Any) -> Any:  # noqa: ANN401 - protobuf containers
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        item = kind.fields_by_name["value"]
        return {str(key): _value(item, value[key]) for key in sorted(value)}
    return [_value(field, item) for item in value]


def _value(field: Field, value: Any) -> Any:  # noqa: ANN401 - any field's value
    if field.type == _TYPE_MESSAGE:
        return to_json(value)
    if field.type == _TYPE_BYTES:
        return base64.b64encode(value).decode("ascii")
    return value
