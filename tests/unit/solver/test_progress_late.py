"""A build that comes to share a running vertex is told what it has missed."""

from __future__ import annotations

import asyncio

from boxwright.core.clock import SystemClock
from boxwright.core.digest import Digest
from boxwright.llb.graph import Vertex
from boxwright.progress.events import LogEvent, StatusEvent, VertexEvent, WarningEvent
from boxwright.progress.stream import ProgressStream
from boxwright.solver import progress
from boxwright.solver.progress import JobProgress, VertexProgress
from boxwright.wire.pb import ops_pb2


def make_vertex() -> VertexProgress:
    digest = Digest.of(b"vertex")
    vertex = Vertex(digest=digest, op=ops_pb2.Op(), default_name="step")
    return VertexProgress(digest, vertex, (), SystemClock())


def seen_by_late_job(vertex: VertexProgress) -> list[object]:
    async def read() -> list[object]:
        stream = ProgressStream()
        vertex.connect(JobProgress(stream, SystemClock()))
        stream.close()
        return [event async for batch in stream.read() for event in batch]

    return asyncio.run(read())


def test_state_statuses_warnings_and_output_are_told() -> None:
    vertex = make_vertex()
    vertex.started()
    vertex.status("layer", current=1, total=2)
    vertex.status("layer", current=2, total=2)
    vertex.warn("careful")
    vertex.log(1, b"one\n")
    vertex.log(2, b"two\n")
    state, status, warning, one, two = seen_by_late_job(vertex)
    assert isinstance(state, VertexEvent)
    assert state.started_ns is not None
    assert isinstance(status, StatusEvent)
    assert status.current == 2
    assert isinstance(warning, WarningEvent)
    assert isinstance(one, LogEvent)
    assert isinstance(two, LogEvent)
    assert (one.data, two.data, two.stream) == (b"one\n", b"two\n", 2)


def test_much_output_loses_its_beginning_and_says_so(monkeypatch) -> None:
    monkeypatch.setattr(progress, "_LATE_LOG_BYTES", 10)
    vertex = make_vertex()
    for part in (b"aaaaa\n", b"bbbbb\n", b"cccc\n"):
        vertex.log(1, part)
    _, note, kept = seen_by_late_job(vertex)
    assert isinstance(note, LogEvent)
    assert isinstance(kept, LogEvent)
    assert note.data.startswith(b"[12 bytes")
    assert kept.data == b"cccc\n"


def test_parts_of_a_vertex_that_failed_have_ended() -> None:
    vertex = make_vertex()
    vertex.started()
    vertex.status("whole", current=2, total=2, started_ns=1, completed_ns=2)
    vertex.status("part", current=1, total=2, started_ns=1)
    vertex.started()
    vertex.ended(error="one of two pieces of work")
    assert {event.completed_ns for event in statuses(vertex)} == {2, None}
    vertex.ended(error="the other")
    whole, part = statuses(vertex)
    assert whole.completed_ns == 2
    assert part.completed_ns is not None
    assert (part.current, part.started_ns) == (1, 1)


def statuses(vertex: VertexProgress) -> list[StatusEvent]:
    return [event for event in seen_by_late_job(vertex) if isinstance(event, StatusEvent)]
