"""Typed progress events, one to one with control.proto's StatusResponse parts.

Times are nanoseconds since the Unix epoch. Events are immutable; later events about the same
vertex or status replace earlier ones, log events add up.
"""

from __future__ import annotations

from typing import Final

from boxwright.core.dataclass import dataclass, field, replace
from boxwright.core.digest import Digest

LOCAL: Final = "local"
"""Taken from the engine's own cache."""
SKIPPED: Final = "skipped"
"""Not even looked at: what stands on it was cached."""
IMPORTED: Final = "import:"
"""Taken from the cache import whose name follows."""


@dataclass(frozen=True, slots=True)
class ProgressGroup:
    """Vertices that a client shows as one (pb.ProgressGroup)."""

    id: str
    name: str = ""
    weak: bool = False


@dataclass(frozen=True, slots=True)
class VertexEvent:
    """The state of one vertex; ``completed_ns`` set means that it has ended.

    Attributes:
        origin: Where a cached vertex came from: ``LOCAL``, ``SKIPPED``, or ``IMPORTED`` and the
            name of a cache import. Empty if not cached, or if the daemon does not tell.
    """

    digest: Digest
    name: str
    inputs: tuple[Digest, ...] = ()
    started_ns: int | None = None
    completed_ns: int | None = None
    cached: bool = False
    error: str = ""
    group: ProgressGroup | None = None
    origin: str = ""

    def ended(
        self, completed_ns: int, *, cached: bool = False, error: str = "", origin: str = ""
    ) -> VertexEvent:
        """Return this vertex as completed."""
        return replace(self, completed_ns=completed_ns, cached=cached, error=error, origin=origin)


@dataclass(frozen=True, slots=True)
class StatusEvent:
    """Progress of one part of a vertex, such as the bytes of a layer."""

    id: str
    vertex: Digest
    name: str = ""
    current: int = 0
    total: int = 0
    timestamp_ns: int = 0
    started_ns: int | None = None
    completed_ns: int | None = None


@dataclass(frozen=True, slots=True)
class LogEvent:
    """Bytes that a step wrote; ``stream`` is 1 for stdout, 2 for stderr."""

    vertex: Digest
    stream: int
    data: bytes
    timestamp_ns: int = 0


@dataclass(frozen=True, slots=True)
class SourceRange:
    """A range in a source file; lines from 1, columns from 0 (pb.Range)."""

    start_line: int
    start_column: int
    end_line: int
    end_column: int


@dataclass(frozen=True, slots=True)
class WarningEvent:
    """A warning tied to a vertex and, where known, to lines of a source file."""

    vertex: Digest
    level: int
    short: bytes
    detail: tuple[bytes, ...] = ()
    url: str = ""
    filename: str = ""
    source: bytes = b""
    ranges: tuple[SourceRange, ...] = field(default=())
    language: str = ""
    definition: bytes = b""
    """Of what the file was read from, marshalled: a client can fetch it again."""


Event = VertexEvent | StatusEvent | LogEvent | WarningEvent
