"""A step that is not a vertex of the graph, shown as one: resolve an image, export, push."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace

from boxwright.core.clock import Clock
from boxwright.core.digest import Digest
from boxwright.progress.events import LogEvent, StatusEvent, VertexEvent
from boxwright.progress.stream import ProgressStream

_TRANSFER = "transferring"
_CANCELLED = "context canceled"  # the words that clients know
_SHOWN_EVERY_NS = 100_000_000


class StepProgress:
    """Reports one step to one build's stream. Used as a context manager through :func:`step`."""

    def __init__(self, stream: ProgressStream, clock: Clock, digest: Digest, name: str) -> None:
        self.digest = digest
        self._stream = stream
        self._clock = clock
        self._event = VertexEvent(digest, name)

    def started(self) -> None:
        """Say that the step has begun."""
        self._event = replace(self._event, started_ns=self._clock.now_ns(), completed_ns=None)
        self._stream.write(self._event)

    def ended(self, *, cached: bool = False, error: str = "") -> None:
        """Say that the step has ended."""
        self._event = self._event.ended(self._clock.now_ns(), cached=cached, error=error)
        self._stream.write(self._event)

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
        """Report on one part of the step, such as the bytes of a layer."""
        now = self._clock.now_ns()
        self._stream.write(
            StatusEvent(
                status_id, self.digest, name, current, total, now, started_ns, completed_ns
            )
        )

    def log(self, stream: int, data: bytes) -> None:
        """Add lines to the step's log; ``stream`` is 1 for stdout, 2 for stderr."""
        self._stream.write(LogEvent(self.digest, stream, data, self._clock.now_ns()))

    @contextlib.contextmanager
    def part(self, status_id: str, *, name: str = "") -> Iterator[None]:
        """Show one part of the step from its start to its end.

        One that fails ends, too: clients hold a step's error back while a part of it is open.
        """
        started = self._clock.now_ns()
        self.status(status_id, name=name, started_ns=started)
        try:
            yield
        finally:
            now = self._clock.now_ns()
            self.status(status_id, name=name, started_ns=started, completed_ns=now)

    @contextlib.contextmanager
    def transfer(self, status_id: str) -> Iterator[Callable[[int], None]]:
        """Show a part that moves bytes; give the function that is told how many more it were."""
        started = shown = self._clock.now_ns()
        total = 0
        self.status(status_id, name=_TRANSFER, started_ns=started)

        def count(size: int) -> None:
            nonlocal shown, total
            total += size
            now = self._clock.now_ns()
            if now - shown >= _SHOWN_EVERY_NS:
                shown = now
                self.status(status_id, name=_TRANSFER, current=total, started_ns=started)

        try:
            yield count
        finally:
            self.status(
                status_id,
                name=_TRANSFER,
                current=total,
                started_ns=started,
                completed_ns=self._clock.now_ns(),
            )


@contextlib.contextmanager
def step(
    stream: ProgressStream, clock: Clock, name: str, *, identity: str = ""
) -> Iterator[StepProgress]:
    """Show a step while the block runs; an exception becomes its error and goes on.

    Args:
        stream: the build's progress.
        clock: where times come from.
        name: what the user reads.
        identity: what makes it the same step when it runs again; the name by default.
    """
    progress = StepProgress(stream, clock, Digest.of((identity or name).encode()), name)
    progress.started()
    try:
        yield progress
    except asyncio.CancelledError:
        progress.ended(error=_CANCELLED)
        raise
    except BaseException as exc:
        progress.ended(error=str(exc) or type(exc).__name__)
        raise
    progress.ended()
