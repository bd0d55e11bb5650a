"""Progress events as the messages of ``Control.Status``."""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.timestamp_pb2 import Timestamp

from boxwright.progress.events import Event, LogEvent, StatusEvent, VertexEvent, WarningEvent
from boxwright.wire.pb import control_pb2, ops_pb2

# A client's receive limit is 16 MiB; stay far below it so that one batch always fits.
_MAX_BATCH_BYTES = 1 << 20


def timestamp(time_ns: int) -> Timestamp:
    """Return nanoseconds since the epoch as a protobuf timestamp."""
    return Timestamp(seconds=time_ns // 1_000_000_000, nanos=time_ns % 1_000_000_000)


def to_responses(events: Iterable[Event]) -> list[control_pb2.StatusResponse]:
    """Turn a batch of events into one or more messages below the size limit."""
    responses: list[control_pb2.StatusResponse] = []
    current = control_pb2.StatusResponse()
    size = 0
    for event in events:
        if size >= _MAX_BATCH_BYTES:
            responses.append(current)
            current, size = control_pb2.StatusResponse(), 0
        size += 256
        match event:
            case VertexEvent():
                _vertex(current.vertexes.add(), event)
            case StatusEvent():
                _status(current.statuses.add(), event)
            case LogEvent():
                message = current.logs.add(
                    vertex=event.vertex, stream=event.stream, msg=event.data
                )
                message.timestamp.CopyFrom(timestamp(event.timestamp_ns))
                size += len(event.data)
            case WarningEvent():
                _warning(current.warnings.add(), event)
                size += len(event.source)
    if size:
        responses.append(current)
    return responses


def _vertex(message: control_pb2.Vertex, event: VertexEvent) -> None:
    message.digest = event.digest
    message.inputs.extend(event.inputs)
    message.name = event.name
    message.cached = event.cached
    message.error = event.error
    message.origin = event.origin
    if event.started_ns is not None:
        message.started.CopyFrom(timestamp(event.started_ns))
    if event.completed_ns is not None:
        message.completed.CopyFrom(timestamp(event.completed_ns))
    if event.group is not None:
        message.progressGroup.CopyFrom(
            ops_pb2.ProgressGroup(id=event.group.id, name=event.group.name, weak=event.group.weak)
        )


def _status(message: control_pb2.VertexStatus, event: StatusEvent) -> None:
    message.ID = event.id
    message.vertex = event.vertex
    message.name = event.name
    message.current = event.current
    message.total = event.total
    message.timestamp.CopyFrom(timestamp(event.timestamp_ns))
    if event.started_ns is not None:
        message.started.CopyFrom(timestamp(event.started_ns))
    if event.completed_ns is not None:
        message.completed.CopyFrom(timestamp(event.completed_ns))


def _warning(message: control_pb2.VertexWarning, event: WarningEvent) -> None:
    message.vertex = event.vertex
    message.level = event.level
    message.short = event.short
    message.detail.extend(event.detail)
    message.url = event.url
    if event.filename or event.source:
        message.info.filename = event.filename
        message.info.data = event.source
        message.info.language = event.language
        if event.definition:
            message.info.definition.ParseFromString(event.definition)
    for piece in event.ranges:
        message.ranges.add(
            start=ops_pb2.Position(line=piece.start_line, character=piece.start_column),
            end=ops_pb2.Position(line=piece.end_line, character=piece.end_column),
        )
