"""Vertex progress: one vertex reports to all jobs that want it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace

from boxwright.core.clock import Clock
from boxwright.core.digest import Digest
from boxwright.llb.graph import Vertex
from boxwright.progress.events import (
    SKIPPED,
    Event,
    LogEvent,
    SourceRange,
    StatusEvent,
    VertexEvent,
    WarningEvent,
)
from boxwright.progress.stream import ProgressStream

_LATE_LOG_BYTES = 1 << 20
"""How much of a step's output is kept for builds that come to share it."""
_CANCELLED = "context canceled"  # the words that clients know


class JobProgress:
    """The progress of one job, with the conclusions that only the whole build allows.

    When a vertex starts whose inputs never ended, those were not needed: the cache knew their
    keys. Clients are told so, else these vertices would stay open for ever.
    """

    def __init__(self, stream: ProgressStream, clock: Clock) -> None:
        self.stream = stream
        self._clock = clock
        self._open: dict[Digest, VertexEvent] = {}
        self._cached: set[Digest] = set()

    def write(self, event: Event) -> None:
        """Pass an event on, preceded by what follows from it."""
        if isinstance(event, VertexEvent):
            self._open[event.digest] = event
            if event.started_ns is not None:
                self._mark_inputs(event)
            if event.cached:
                self._cached.add(event.digest)
        self.stream.write(event)

    def _mark_inputs(self, event: VertexEvent) -> None:
        pending = [event]
        while pending:
            current = pending.pop()
            for digest in current.inputs:
                seen = self._open.get(digest)
                if seen is None or seen.cached or seen.completed_ns is not None:
                    continue
                at = event.started_ns
                ended = replace(seen, cached=True, started_ns=at, completed_ns=at, origin=SKIPPED)
                self._cached.add(digest)
                self._open[digest] = ended
                self.stream.write(ended)
                pending.append(ended)

    def finish(self) -> None:
        """End every vertex that is still shown as running."""
        now = self._clock.now_ns()
        for event in self._open.values():
            if event.started_ns is not None and event.completed_ns is None:
                lost = event.digest not in self._cached and not event.error
                error = _CANCELLED if lost else event.error
                ended = event.ended(now, cached=event.cached, error=error, origin=event.origin)
                self.stream.write(ended)
        self._open.clear()


class _Past:
    """What a job that joins late has missed: statuses as they are, warnings, recent output."""

    def __init__(self) -> None:
        self._statuses: dict[str, StatusEvent] = {}
        self._warnings: list[WarningEvent] = []
        self._logs: deque[LogEvent] = deque()
        self._log_bytes = 0
        self._dropped_bytes = 0

    def add(self, event: Event) -> None:
        """Keep an event, at the cost of the oldest output where that is too much."""
        match event:
            case StatusEvent():
                self._statuses[event.id] = event
            case WarningEvent():
                self._warnings.append(event)
            case LogEvent():
                self._logs.append(event)
                self._log_bytes += len(event.data)
                while self._log_bytes > _LATE_LOG_BYTES and len(self._logs) > 1:
                    dropped = len(self._logs.popleft().data)
                    self._log_bytes -= dropped
                    self._dropped_bytes += dropped

    def open_statuses(self) -> list[StatusEvent]:
        """Return the parts of the work that have begun and not ended."""
        return [
            status
            for status in self._statuses.values()
            if status.started_ns is not None and status.completed_ns is None
        ]

    def events(self) -> Iterator[Event]:
        """Yield what was kept, in an order that makes sense."""
        yield from self._statuses.values()
        yield from self._warnings
        if self._dropped_bytes:
            first = self._logs[0]
            note = f"[{self._dropped_bytes} bytes of earlier output are in the build before]\n"
            yield replace(first, data=note.encode())
        yield from self._logs


class VertexProgress:
    """Where one vertex reports to. Given to ops as ``ctx.progress``."""

    def __init__(
        self, digest: Digest, vertex: Vertex, inputs: tuple[Digest, ...], clock: Clock
    ) -> None:
        self.digest = digest
        self._clock = clock
        self._jobs: dict[JobProgress, None] = {}
        self._event = VertexEvent(
            digest=digest,
            name=vertex.name,
            inputs=inputs,
            group=vertex.options.progress_group,
        )
        self._running = 0
        self._past = _Past()

    def connect(self, job: JobProgress) -> None:
        """Report to one more job, starting with what the vertex has reported so far."""
        if job not in self._jobs:
            self._jobs[job] = None
            job.write(self._event)
            for event in self._past.events():
                job.write(event)

    def disconnect(self, job: JobProgress) -> None:
        """Stop reporting to a job."""
        self._jobs.pop(job, None)

    def write(self, event: Event) -> None:
        """Send an event to all jobs, and keep it for those that come later."""
        self._past.add(event)
        for job in self._jobs:
            job.write(event)

    def started(self, *, cached: bool = False) -> None:
        """Say that work on the vertex has begun."""
        self._running += 1
        self._event = replace(
            self._event,
            started_ns=self._clock.now_ns(),
            completed_ns=None,
            cached=cached,
            error="",
            origin="",
        )
        self.write(self._event)

    def ended(self, *, cached: bool = False, error: str = "", origin: str = "") -> None:
        """Say that work on the vertex has ended, and where it came from if it was cached."""
        self._running -= 1
        now_ns = self._clock.now_ns()
        if error and not self._running:
            # Clients hold an error back while a part of the vertex, such as a layer, is open.
            for status in self._past.open_statuses():
                self.write(replace(status, timestamp_ns=now_ns, completed_ns=now_ns))
        self._event = self._event.ended(now_ns, cached=cached, error=error, origin=origin)
        self.write(self._event)

    def status(
        self,
        status_id: str,
        *,
        name: str = "",
        current: int = 0,
        total: int = 0,
        started_ns: int | None = None,
        completed_ns: int | None = None,
    ) -> None:
        """Report on one part of the work, such as the bytes of a layer."""
        self.write(
            StatusEvent(
                id=status_id,
                vertex=self.digest,
                name=name,
                current=current,
                total=total,
                timestamp_ns=self._clock.now_ns(),
                started_ns=started_ns,
                completed_ns=completed_ns,
            )
        )

    def log(self, stream: int, data: bytes) -> None:
        """Pass on what a step wrote; ``stream`` is 1 for stdout, 2 for stderr."""
        self.write(LogEvent(self.digest, stream, data, self._clock.now_ns()))

    def warn(
        self,
        short: str,
        *,
        level: int = 1,
        detail: tuple[str, ...] = (),
        url: str = "",
        filename: str = "",
        source: bytes = b"",
        ranges: tuple[SourceRange, ...] = (),
    ) -> None:
        """Report a warning."""
        self.write(
            WarningEvent(
                vertex=self.digest,
                level=level,
                short=short.encode(),
                detail=tuple(line.encode() for line in detail),
                url=url,
                filename=filename,
                source=source,
                ranges=ranges,
            )
        )
