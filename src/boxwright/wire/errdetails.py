"""Typed facts beside a gRPC error, in the encoding that BuildKit registers for them.

BuildKit packs these messages as JSON: most as Go's ``encoding/json`` writes the generated
structs (proto field names, numbers as numbers, bytes as base64), ``Solve`` as protobuf's own
JSON mapping. The type URL is ``github.com/moby/buildkit/`` plus the registered name.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any as Json
from typing import Final

from google.protobuf import json_format
from google.protobuf.any_pb2 import Any
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from boxwright.errors import InvalidInputError
from boxwright.wire.pb import (
    boxerror_pb2,
    errdefs_pb2,
    gateway_pb2,
    policysession_pb2,
    stack_pb2,
)

_PREFIX: Final = "github.com/moby/buildkit/"
_BOX_URL: Final = "boxwright.dev/boxwright.wire.rpc.BoxError"

_TYPES: Final[dict[str, type[Message]]] = {
    _PREFIX + "errdefs.Vertex+json": errdefs_pb2.Vertex,
    _PREFIX + "errdefs.Source+json": errdefs_pb2.Source,
    _PREFIX + "errdefs.Solve+json": errdefs_pb2.Solve,
    _PREFIX + "errdefs.Frontend+json": errdefs_pb2.Frontend,
    _PREFIX + "errdefs.FrontendCap+json": errdefs_pb2.FrontendCap,
    _PREFIX + "errdefs.Subrequest+json": errdefs_pb2.Subrequest,
    _PREFIX + "errdefs.CompatibilityFeature+json": errdefs_pb2.CompatibilityFeature,
    _PREFIX
    + "errdefs.ProvenanceMaterialsIncomplete+json": errdefs_pb2.ProvenanceMaterialsIncomplete,
    _PREFIX + "gatewayapi.ExitMessage+json": gateway_pb2.ExitMessage,
    _PREFIX + "policysession.DecisionResponse+json": policysession_pb2.DecisionResponse,
    _PREFIX + "stack.Stack+json": stack_pb2.Stack,
}
_URLS: Final = {kind.DESCRIPTOR.full_name: url for url, kind in _TYPES.items()}
_PROTOJSON: Final = frozenset({errdefs_pb2.Solve.DESCRIPTOR.full_name})
_BYTES: Final = FieldDescriptor.TYPE_BYTES
_MESSAGE: Final = FieldDescriptor.TYPE_MESSAGE


def pack(message: Message) -> Any:
    """Return ``message`` as a status detail that BuildKit's clients understand.

    Raises:
        InvalidInputError: BuildKit registers no such detail.
    """
    name = message.DESCRIPTOR.full_name
    if isinstance(message, boxerror_pb2.BoxError):
        return Any(type_url=_BOX_URL, value=message.SerializeToString())
    url = _URLS.get(name)
    if url is None:
        raise InvalidInputError("not an error detail", detail=name)
    if name in _PROTOJSON:
        text = json_format.MessageToJson(message, indent=None)
    else:
        text = json.dumps(_to_json(message), separators=(",", ":"), ensure_ascii=False)
    return Any(type_url=url, value=text.encode())


def unpack(detail: Any) -> Message | None:
    """Return the typed message of ``detail``, or None if it is unknown or malformed."""
    if detail.type_url == _BOX_URL:
        try:
            return boxerror_pb2.BoxError.FromString(detail.value)
        except ValueError:  # DecodeError is one
            return None
    kind = _TYPES.get(detail.type_url)
    if kind is None:
        return None
    message = kind()
    try:
        if kind.DESCRIPTOR.full_name in _PROTOJSON:
            json_format.Parse(detail.value, message, ignore_unknown_fields=True)
        else:
            _from_json(json.loads(detail.value), message)
    except (ValueError, TypeError, AttributeError, RecursionError, json_format.ParseError):
        return None
    return message


def _to_json(message: Message) -> dict[str, Json]:
    out: dict[str, Json] = {}
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            item = field.message_type.fields_by_name["value"]
            out[field.name] = {str(k): _value_to_json(item, value[k]) for k in sorted(value)}
        elif field.is_repeated:
            out[field.name] = [_value_to_json(field, item) for item in value]
        else:
            out[field.name] = _value_to_json(field, value)
    return out


def _value_to_json(field: FieldDescriptor, value: Json) -> Json:  # noqa: ANN401 - JSON
    if field.type == _MESSAGE:
        return _to_json(value)
    if field.type == _BYTES:
        return base64.b64encode(value).decode()
    return value


def _from_json(data: Json, message: Message) -> None:  # noqa: ANN401 - JSON
    """Fill ``message``; Go matches names without regard to case, and null means absent."""
    fields = {field.name.lower(): field for field in message.DESCRIPTOR.fields}
    for key, value in data.items():
        field = fields.get(key.lower())
        if field is None or value is None:
            continue
        target = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            item = field.message_type.fields_by_name["value"]
            for entry, content in value.items():
                if item.type == _MESSAGE:
                    _from_json(content or {}, target[entry])
                else:
                    target[entry] = _scalar(item.type, content)
        elif field.is_repeated:
            for content in value:
                if field.type == _MESSAGE:
                    _from_json(content or {}, target.add())
                else:
                    target.append(_scalar(field.type, content))
        elif field.type == _MESSAGE:
            target.SetInParent()
            _from_json(value, target)
        else:
            setattr(message, field.name, _scalar(field.type, value))


def _scalar(field_type: int, value: Json) -> Json:  # noqa: ANN401 - JSON
    if field_type == _BYTES:
        try:
            return base64.b64decode(value, validate=True)
        except binascii.Error as exc:
            raise ValueError(str(exc)) from None
    return value


def is_box_error(detail: Any) -> bool:
    """Whether ``detail`` is Boxwright's own error message."""
    return detail.type_url == _BOX_URL
