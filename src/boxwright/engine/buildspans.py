"""What a finished build did, as the OpenTelemetry spans that BuildKit's clients read.

Made from the record of a build when somebody asks for it (``buildx history trace``): the build,
its steps, and the parts of their work that were timed. One JSON object for each span, with the
fields of OpenTelemetry's Go ``tracetest.SpanStub``; nothing is exported anywhere by itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from boxwright._version import __version__
from boxwright.core import gojson
from boxwright.core.dataclass import dataclass
from boxwright.wire.pb import control_pb2

MEDIA_TYPE = "application/vnd.buildkit.otlp.json.v0"
_INTERNAL, _SERVER = 1, 2
_MAX_PARTS = 10_000
_Value = str | bool | int
_NO_SPAN = {
    "TraceID": "0" * 32,
    "SpanID": "0" * 16,
    "TraceFlags": "00",
    "TraceState": "",
    "Remote": False,
}


@dataclass(slots=True)
class _Interval:
    """Something that took time."""

    name: str
    started: Timestamp
    completed: Timestamp
    parent: str
    attributes: dict[str, _Value]
    error: str = ""
    kind: int = _INTERNAL


def build_spans(
    record: control_pb2.BuildHistoryRecord, messages: Iterable[control_pb2.StatusResponse]
) -> bytes:
    """Return the spans of a build, one JSON object a line.

    Ids follow from the build's ref: the same record gives the same bytes.

    Args:
        record: Of the build.
        messages: Its progress; may be read once and be long.
    """
    root = ""
    found: dict[str, _Interval] = {
        root: _Interval(
            "moby.buildkit.v1.Control/Solve",
            record.CreatedAt,
            record.CompletedAt,
            "",
            {"ref": record.Ref, "frontend": record.Frontend},
            record.error.message,
            _SERVER,
        )
    }
    for message in messages:
        for vertex in message.vertexes:
            if vertex.HasField("started") and vertex.HasField("completed"):
                facts: dict[str, _Value] = {"vertex": vertex.digest}
                if vertex.cached:
                    facts["cached"] = True
                # A step may run more than once in a build: every run has a span of its own.
                key = f"{vertex.digest} {vertex.started.ToNanoseconds()}"
                found[key] = _Interval(
                    vertex.name, vertex.started, vertex.completed, root, facts, vertex.error
                )
        for part in message.statuses:
            if part.HasField("started") and part.HasField("completed"):
                key = f"{part.vertex} {part.ID} {part.started.ToNanoseconds()}"
                if key in found or len(found) < _MAX_PARTS:
                    found[key] = _part(part)
    _find_parents(found)
    trace = hashlib.sha256(record.Ref.encode()).hexdigest()[:32]
    return b"".join(gojson.encode(_span(trace, key, each)) + b"\n" for key, each in found.items())


def _part(part: control_pb2.VertexStatus) -> _Interval:
    facts: dict[str, _Value] = {"bytes": part.current} if part.current else {}
    return _Interval(part.name or part.ID, part.started, part.completed, part.vertex, facts)


def _find_parents(found: dict[str, _Interval]) -> None:
    """Put parts below the last run of their step that had begun by then."""
    runs: dict[str, list[str]] = {}
    for key, each in found.items():
        if "vertex" in each.attributes:
            runs.setdefault(str(each.attributes["vertex"]), []).append(key)
    for each in found.values():
        if each.parent:
            moment = each.started.ToNanoseconds()
            known = runs.get(each.parent, [])
            begun = [key for key in known if found[key].started.ToNanoseconds() <= moment]
            each.parent = (begun or known or [""])[-1]


def _span(trace: str, key: str, each: _Interval) -> dict[str, Any]:
    return {
        "Name": each.name,
        "SpanContext": _context(trace, key),
        "Parent": _NO_SPAN if each.kind == _SERVER else _context(trace, each.parent),
        "SpanKind": each.kind,
        "StartTime": gojson.time_text(each.started.ToNanoseconds()),
        "EndTime": gojson.time_text(each.completed.ToNanoseconds()),
        "Attributes": [_attribute(name, value) for name, value in each.attributes.items()],
        "Events": None,
        "Links": None,
        "Status": {"Code": "Error" if each.error else "Ok", "Description": each.error},
        "DroppedAttributes": 0,
        "DroppedEvents": 0,
        "DroppedLinks": 0,
        "ChildSpanCount": 0,
        "Resource": [
            _attribute("service.name", "boxwright"),
            _attribute("service.version", __version__),
        ],
        "InstrumentationLibrary": {"Name": "boxwright", "Version": __version__, "SchemaURL": ""},
    }


def _context(trace: str, key: str) -> dict[str, Any]:
    identity = hashlib.sha256(f"{trace} {key}".encode()).hexdigest()[:16]
    return {**_NO_SPAN, "TraceID": trace, "SpanID": identity, "TraceFlags": "01"}


def _attribute(name: str, value: _Value) -> dict[str, Any]:
    kind = {str: "STRING", bool: "BOOL", int: "INT64"}[type(value)]
    return {"Key": name, "Value": {"Type": kind, "Value": value}}
