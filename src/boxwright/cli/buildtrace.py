"""The state of a build as its events tell it; what the renderers draw from."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from boxwright.core.dataclass import dataclass, field
from boxwright.progress.events import (
    Event,
    LogEvent,
    StatusEvent,
    VertexEvent,
    WarningEvent,
)

_KEPT_LINES = 12
_CANCELLED = ("context canceled", "cancelled", "canceled")


@dataclass(slots=True)
class Step:
    """One vertex, or a group of vertices that are shown as one.

    Attributes:
        number: As shown (``#1``), in the order of first sight.
        origin: Where it came from if it was cached, and all of it from one place.
        fresh_lines: Log lines that were not drawn yet, each with its time.
        last_lines: The newest log lines, for the error report.
    """

    key: str
    number: int
    name: str
    started_ns: int | None = None
    completed_ns: int | None = None
    cached: bool = False
    error: str = ""
    origin: str = ""
    statuses: dict[str, StatusEvent] = field(default_factory=dict)
    fresh_statuses: dict[str, StatusEvent] = field(default_factory=dict)
    fresh_lines: list[str] = field(default_factory=list)
    fresh_warnings: list[WarningEvent] = field(default_factory=list)
    last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=_KEPT_LINES))
    partial: bytes = b""
    is_reported: bool = False
    members: dict[str, VertexEvent] = field(default_factory=dict)

    @property
    def is_started(self) -> bool:
        """Whether work on it has begun."""
        return self.started_ns is not None

    @property
    def is_done(self) -> bool:
        """Whether it has ended."""
        return self.completed_ns is not None

    @property
    def is_cancelled(self) -> bool:
        """Whether it ended because the build was cancelled."""
        return self.error.endswith(_CANCELLED)

    @property
    def duration_ns(self) -> int:
        """How long it took; 0 while it is under way."""
        return (self.completed_ns or 0) - (self.started_ns or 0) if self.is_done else 0

    @property
    def has_news(self) -> bool:
        """Whether something about it was not drawn yet."""
        return bool(
            self.fresh_lines
            or self.fresh_statuses
            or self.fresh_warnings
            or (self.is_done and not self.is_reported)
        )


class BuildTrace:
    """Collects events into steps."""

    def __init__(self) -> None:
        self.steps: dict[str, Step] = {}
        self.warnings: list[WarningEvent] = []
        self._keys: dict[str, str] = {}

    def update(self, events: Iterable[Event]) -> None:
        """Take a batch of events."""
        for event in events:
            match event:
                case VertexEvent():
                    self._vertex(event)
                case StatusEvent():
                    if step := self._find(event.vertex):
                        step.statuses[event.id] = event
                        step.fresh_statuses[event.id] = event
                case LogEvent():
                    if step := self._find(event.vertex):
                        self._log(step, event)
                case WarningEvent():
                    self.warnings.append(event)
                    if step := self._find(event.vertex):
                        step.fresh_warnings.append(event)

    def _find(self, vertex: str) -> Step | None:
        return self.steps.get(self._keys.get(vertex, ""))

    def _vertex(self, event: VertexEvent) -> None:
        group = event.group
        key = group.id if group is not None else event.digest
        self._keys[event.digest] = key
        step = self.steps.get(key)
        if step is None:
            name = group.name if group is not None and group.name else event.name
            step = self.steps[key] = Step(key, 0, name)
        step.members[event.digest] = event
        members = step.members.values()
        starts = [m.started_ns for m in members if m.started_ns is not None]
        ends = [m.completed_ns for m in members if m.completed_ns is not None]
        open_members = [m for m in members if m.started_ns is not None and m.completed_ns is None]
        step.started_ns = min(starts) if starts else None
        step.completed_ns = max(ends) if ends and not open_members else None
        step.cached = all(m.cached for m in members)
        step.error = next((m.error for m in members if m.error), "")
        origins = {m.origin for m in members}
        step.origin = origins.pop() if len(origins) == 1 else ""
        if not step.is_done:
            step.is_reported = False

    def number(self, step: Step) -> int:
        """Return the number of a step, given when it is first drawn."""
        if not step.number:
            step.number = 1 + max(each.number for each in self.steps.values())
        return step.number

    def _log(self, step: Step, event: LogEvent) -> None:
        *whole, step.partial = (step.partial + event.data).split(b"\n")
        offset_ns = event.timestamp_ns - (step.started_ns or event.timestamp_ns)
        for line in whole:
            self._line(step, offset_ns, line)

    def _line(self, step: Step, offset_ns: int, line: bytes) -> None:
        elapsed_s = max(0.0, offset_ns / 1e9)
        decimals = 3 if elapsed_s < 10 else 2 if elapsed_s < 100 else 1
        shown = line.decode("utf-8", "replace").rstrip("\r").rpartition("\r")[2]
        text = f"{elapsed_s:.{decimals}f} {shown}"
        step.fresh_lines.append(text)
        step.last_lines.append(text)

    def finish(self) -> None:
        """Take unfinished log lines as whole ones: no more will come."""
        for step in self.steps.values():
            if step.partial:
                line, step.partial = step.partial, b""
                self._line(step, 0, line)

    def failed_steps(self) -> list[Step]:
        """Return the steps that failed on their own account."""
        return [step for step in self.steps.values() if step.error and not step.is_cancelled]
