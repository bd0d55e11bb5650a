"""One progress stream per build: many writers, any number of readers, full replay.

A late reader sees everything that happened: the newest state of each vertex and status in
the order of their first appearance, and the newest part of the live log. The complete log is
not kept here: it goes to the step's log file (see :mod:`boxwright.engine`), this stream only
feeds the live view, so its log is a bounded tail and says how much it dropped.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable

from boxwright.core.digest import Digest
from boxwright.progress.events import Event, LogEvent, StatusEvent, VertexEvent, WarningEvent

_REPLAY_LOG_BYTES = 4 << 20
_READER_LOG_BYTES = 16 << 20


class ProgressStream:
    """The events of one build. Not thread safe: used from the event loop only."""

    def __init__(self) -> None:
        self._vertices: dict[Digest, VertexEvent] = {}
        self._statuses: dict[tuple[Digest, str], StatusEvent] = {}
        self._warnings: list[WarningEvent] = []
        self._logs: deque[LogEvent] = deque()
        self._log_bytes = 0
        self._readers: set[_Reader] = set()
        self._closed = False
        self._ended = asyncio.Event()

    @property
    def closed(self) -> bool:
        """Whether nothing more will be written."""
        return self._closed

    async def wait_closed(self, timeout_s: float) -> None:
        """Wait until nothing more will be written, at most ``timeout_s`` seconds."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._ended.wait()
        except TimeoutError:
            return

    @property
    def vertices(self) -> tuple[VertexEvent, ...]:
        """The newest state of every vertex, in order of appearance."""
        return tuple(self._vertices.values())

    @property
    def warnings(self) -> tuple[WarningEvent, ...]:
        """All warnings so far."""
        return tuple(self._warnings)

    def write(self, event: Event) -> None:
        """Add an event and hand it to every reader; ignored once closed."""
        if self._closed:
            return
        match event:
            case VertexEvent():
                self._vertices[event.digest] = event
            case StatusEvent():
                self._statuses[event.vertex, event.id] = event
            case WarningEvent():
                self._warnings.append(event)
            case LogEvent():
                self._logs.append(event)
                self._log_bytes += len(event.data)
                while self._log_bytes > _REPLAY_LOG_BYTES and len(self._logs) > 1:
                    self._log_bytes -= len(self._logs.popleft().data)
        for reader in self._readers:
            reader.put(event)

    def close(self) -> None:
        """End the stream: readers finish after what they have not read yet."""
        self._closed = True
        self._ended.set()
        for reader in self._readers:
            reader.wake()

    async def read(self) -> AsyncIterator[list[Event]]:
        """Yield batches of events, past ones first, until the stream is closed."""
        reader = _Reader(self._replay())
        self._readers.add(reader)
        try:
            while True:
                batch = reader.take()
                if batch:
                    yield batch
                elif self._closed:
                    return
                else:
                    await reader.wait()
        finally:
            self._readers.discard(reader)

    def _replay(self) -> Iterable[Event]:
        yield from self._vertices.values()
        yield from self._statuses.values()
        yield from self._warnings
        yield from self._logs


class _Reader:
    """The unread events of one reader; a slow reader loses old log bytes, never states."""

    def __init__(self, replay: Iterable[Event]) -> None:
        self._events: dict[object, Event] = {}
        self._log_bytes = 0
        self._dropped: dict[Digest, int] = {}
        self._wake = asyncio.Event()
        self._sequence = 0
        for event in replay:
            self.put(event)

    def put(self, event: Event) -> None:
        self._sequence += 1
        match event:
            case StatusEvent():
                key: object = ("status", event.vertex, event.id)
            case LogEvent():
                key = self._sequence
                self._log_bytes += len(event.data)
                self._trim()
            case _:
                key = self._sequence
        self._events[key] = event
        self._wake.set()

    def _trim(self) -> None:
        if self._log_bytes <= _READER_LOG_BYTES:
            return
        for key, event in list(self._events.items()):
            if isinstance(event, LogEvent):
                del self._events[key]
                self._log_bytes -= len(event.data)
                dropped = self._dropped.get(event.vertex, 0) + len(event.data)
                self._dropped[event.vertex] = dropped
                if self._log_bytes <= _READER_LOG_BYTES // 2:
                    return

    def take(self) -> list[Event]:
        events, self._events, self._log_bytes = list(self._events.values()), {}, 0
        notes: list[Event] = [
            LogEvent(vertex, 2, b"[%d bytes of log not shown: the reader is slow]\n" % count)
            for vertex, count in self._dropped.items()
        ]
        self._dropped = {}
        self._wake.clear()
        return notes + events

    def wake(self) -> None:
        self._wake.set()

    async def wait(self) -> None:
        await self._wake.wait()
