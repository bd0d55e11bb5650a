"""Status messages of a daemon as typed progress events."""

from __future__ import annotations

from contextlib import suppress

from google.protobuf.timestamp_pb2 import Timestamp

from boxwright.core.digest import Digest
from boxwright.errors import InvalidInputError
from boxwright.progress.events import (
    Event,
    LogEvent,
    ProgressGroup,
    SourceRange,
    StatusEvent,
    VertexEvent,
    WarningEvent,
)
from boxwright.wire.pb import control_pb2


def from_response(response: control_pb2.StatusResponse) -> list[Event]:
    """Return the events of a message; parts with malformed digests are left out."""
    events: list[Event] = []
    for vertex in response.vertexes:
        with suppress(InvalidInputError):
            events.append(_vertex(vertex))
    for status in response.statuses:
        with suppress(InvalidInputError):
            events.append(_status(status))
    for log in response.logs:
        with suppress(InvalidInputError):
            events.append(LogEvent(Digest(log.vertex), log.stream, log.msg, _ns(log.timestamp)))
    for warning in response.warnings:
        with suppress(InvalidInputError):
            events.append(_warning(warning))
    return events


def _status(message: control_pb2.VertexStatus) -> StatusEvent:
    return StatusEvent(
        message.ID,
        Digest(message.vertex),
        message.name,
        message.current,
        message.total,
        _ns(message.timestamp),
        _maybe_ns(message, "started"),
        _maybe_ns(message, "completed"),
    )


def _vertex(message: control_pb2.Vertex) -> VertexEvent:
    group = None
    if message.HasField("progressGroup"):
        found = message.progressGroup
        group = ProgressGroup(found.id, found.name, found.weak)
    return VertexEvent(
        Digest(message.digest),
        message.name,
        tuple(Digest(text) for text in message.inputs),
        _maybe_ns(message, "started"),
        _maybe_ns(message, "completed"),
        message.cached,
        message.error,
        group,
        message.origin,
    )


def _warning(message: control_pb2.VertexWarning) -> WarningEvent:
    info = message.info
    return WarningEvent(
        Digest(message.vertex),
        message.level,
        bytes(message.short),
        tuple(bytes(line) for line in message.detail),
        message.url,
        info.filename,
        bytes(info.data),
        tuple(
            SourceRange(r.start.line, r.start.character, r.end.line, r.end.character)
            for r in message.ranges
        ),
        info.language,
        info.definition.SerializeToString() if info.HasField("definition") else b"",
    )


def _ns(stamp: Timestamp) -> int:
    return stamp.seconds * 1_000_000_000 + stamp.nanos


def _maybe_ns(message: control_pb2.Vertex | control_pb2.VertexStatus, name: str) -> int | None:
    return _ns(getattr(message, name)) if message.HasField(name) else None
