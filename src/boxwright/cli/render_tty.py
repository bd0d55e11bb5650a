"""Live progress on a terminal."""

from __future__ import annotations

import time
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from boxwright.cli import units
from boxwright.cli.buildtrace import BuildTrace, Step
from boxwright.cli.render import describe_status, write_error_logs
from boxwright.progress.events import IMPORTED, SKIPPED, Event

_REFRESH_PER_S = 8
_LOG_LINES = 6
_MIN_STEPS = 4


class TtyRenderer:
    """A list of steps with their times; running ones show the end of their log."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._console = Console(file=stream, highlight=False, soft_wrap=False)
        self._trace = BuildTrace()
        self._started_s = time.monotonic()
        self._ended = False
        self._live = Live(
            get_renderable=self._draw,
            console=self._console,
            refresh_per_second=_REFRESH_PER_S,
            transient=False,
            vertical_overflow="crop",
        )
        self._live.start()

    def update(self, events: list[Event]) -> None:
        """Remember; the next refresh draws it."""
        self._trace.update(events)
        for step in self._trace.steps.values():
            step.fresh_lines.clear()

    def close(self) -> None:
        """Draw a last time and leave the result on the screen."""
        self._trace.finish()
        self._ended = True
        self._live.stop()
        write_error_logs(self._trace, self._stream)
        self._stream.flush()

    def _draw(self) -> RenderableType:
        steps = [s for s in list(self._trace.steps.values()) if s.is_started or s.is_done]
        done = sum(step.is_done for step in self._trace.steps.values())
        elapsed_s = time.monotonic() - self._started_s
        state = "Building"
        if self._ended:
            state = "FAILED" if self._trace.failed_steps() else "FINISHED"
        total = len(self._trace.steps)
        head = Text(f"[+] {state} {elapsed_s:.1f}s ({done}/{total})", style="bold")
        lines: list[RenderableType] = [head]
        room = max(_MIN_STEPS, self._console.size.height - 3)
        blocks = [self._step_lines(step) for step in steps]
        if not self._ended:
            while len(blocks) > _MIN_STEPS and sum(map(len, blocks)) > room:
                blocks.pop(0)
        for block in blocks:
            lines += block
        return Group(*lines)

    def _step_lines(self, step: Step) -> list[RenderableType]:
        lines: list[RenderableType] = [self._title(step)]
        if step.is_done and not step.error:
            return lines
        statuses = list(step.statuses.values())[-_LOG_LINES:]
        lines += [self._indented(f"=> {describe_status(each)}", "cyan") for each in statuses]
        if not step.is_done:
            log = list(step.last_lines)[-_LOG_LINES:]
            lines += [self._indented(f"# {line}", "dim") for line in log]
        return lines

    def _title(self, step: Step) -> Text:
        width = self._console.size.width
        mark, style = " => ", "blue" if step.is_done else "default"
        if step.cached:
            mark = f" => {_cached_mark(step.origin)} "
        elif step.is_cancelled:
            mark, style = " => CANCELED ", "yellow"
        elif step.error:
            mark, style = " => ERROR ", "red"
        now_ns = step.completed_ns or time.time_ns()
        took = units.seconds(max(0, now_ns - (step.started_ns or now_ns)))
        room = max(10, width - len(mark) - len(took) - 2)
        name = step.name if len(step.name) <= room else step.name[: room - 3] + "..."
        return Text(f"{mark}{name.ljust(room)} {took}", style=style, no_wrap=True)

    def _indented(self, text: str, style: str) -> Text:
        width = max(10, self._console.size.width - 5)
        return Text(f"    {text[:width]}", style=style, no_wrap=True)


def _cached_mark(origin: str) -> str:
    if origin == SKIPPED:
        return "SKIPPED"
    return "IMPORTED" if origin.startswith(IMPORTED) else "CACHED"
