"""Draw a build's progress: which renderer, and those that need no terminal."""

from __future__ import annotations

import base64
import json
import os
import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol, TextIO

from boxwright.cli import units
from boxwright.cli.buildtrace import BuildTrace, Step
from boxwright.cli.errors import UsageError
from boxwright.core.gojson import time_text
from boxwright.progress.events import (
    IMPORTED,
    SKIPPED,
    Event,
    LogEvent,
    StatusEvent,
    VertexEvent,
    WarningEvent,
)

MODES = ("auto", "plain", "tty", "rawjson", "quiet", "none")
_STATUS_INTERVAL_NS = 5_000_000_000
_STATUS_SHARE = 0.05
_SWITCH_AFTER_S = 5.0


class Renderer(Protocol):
    """Draws one build."""

    def update(self, events: list[Event]) -> None:
        """Take a batch of events and draw what is new."""

    def close(self) -> None:
        """The build has ended: draw the rest, and the logs of failed steps."""


def make_renderer(mode: str, environ: Mapping[str, str], stream: TextIO | None = None) -> Renderer:
    """Return the renderer of a ``--progress`` mode.

    Args:
        mode: One of ``MODES``; ``auto`` asks ``BUILDKIT_PROGRESS``, then the terminal.
        environ: The environment.
        stream: Where to draw; standard error if not given.

    Raises:
        UsageError: an unknown mode.
    """
    stream = stream or sys.stderr
    if mode == "auto":
        mode = environ.get("BUILDKIT_PROGRESS") or "auto"
    if mode == "auto":
        mode = "tty" if stream.isatty() and environ.get("TERM") != "dumb" else "plain"
    if mode == "tty":
        from boxwright.cli.render_tty import TtyRenderer

        return TtyRenderer(stream)
    if mode == "plain":
        return PlainRenderer(stream)
    if mode == "rawjson":
        return RawJsonRenderer(stream)
    if mode in {"quiet", "none"}:
        return QuietRenderer(stream)
    raise UsageError(f"invalid progress mode {mode!r}", hint=f"one of {', '.join(MODES)}")


def write_error_logs(trace: BuildTrace, stream: TextIO) -> None:
    """Write the last log lines of every failed step."""
    for step in trace.failed_steps():
        if not step.last_lines:
            continue
        stream.write(f"------\n > {step.name}:\n")
        stream.writelines(f"{line}\n" for line in step.last_lines)
        stream.write("------\n")


def describe_status(status: StatusEvent) -> str:
    """Return one line about a part of a step: ``transferring context: 1.05kB 0.1s done``."""
    text = status.id
    if status.total:
        text += f" {units.size(status.current)} / {units.size(status.total)}"
    elif status.current:
        text += f" {units.size(status.current)}"
    end_ns = status.completed_ns or status.timestamp_ns
    if status.started_ns is not None and end_ns - status.started_ns > 10_000_000:
        text += f" {units.seconds(end_ns - status.started_ns)}"
    return text + (" done" if status.completed_ns is not None else "")


def describe_origin(origin: str) -> str:
    """Return what a cached step has to say: nothing for a hit in the builder's own cache."""
    if origin == SKIPPED:
        return "not needed"
    if origin.startswith(IMPORTED):
        return f"imported from {origin.removeprefix(IMPORTED)}"
    return ""


class PlainRenderer:
    """Lines for logs and pipes, in the form that BuildKit's clients made known.

    One step at a time is written; another one gets its turn when that one ends, or when it
    has had the stage for some seconds.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._trace = BuildTrace()
        self._current: Step | None = None
        self._current_since_s = 0.0
        self._is_first = True
        self._drawn: dict[tuple[str, str], StatusEvent] = {}

    def update(self, events: list[Event]) -> None:
        """Draw what is new."""
        self._trace.update(events)
        self._draw()
        self._stream.flush()

    def _draw(self) -> None:
        news = [step for step in self._trace.steps.values() if step.has_news]
        ended = [step for step in news if step.is_done]
        ended.sort(key=lambda step: (step is not self._current, step.completed_ns or 0))
        for step in ended:
            self._print(step)
        running = [step for step in news if not step.is_done]
        if self._current is not None and self._current in running:
            running.remove(self._current)
            self._print(self._current)
        if running and self._may_switch():
            self._print(running[0])
        if self._current is None:
            opened = [s for s in self._trace.steps.values() if s.is_started and not s.is_done]
            if opened:
                self._print(opened[0])

    def _may_switch(self) -> bool:
        return self._current is None or time.monotonic() - self._current_since_s > _SWITCH_AFTER_S

    def _print(self, step: Step) -> None:
        write, number = self._stream.write, self._trace.number(step)
        if step is not self._current:
            if self._current is not None:
                write(f"#{self._current.number} ...\n")
            write(f"#{number} {step.name}\n" if self._is_first else f"\n#{number} {step.name}\n")
            self._is_first = False
            self._current, self._current_since_s = step, time.monotonic()
        for status in step.fresh_statuses.values():
            if self._is_worth_drawing(step, status):
                write(f"#{number} {describe_status(status)}\n")
        for warning in step.fresh_warnings:
            write(f"#{number} WARN: {warning.short.decode('utf-8', 'replace')}\n")
        for line in step.fresh_lines:
            write(f"#{number} {line}\n")
        step.fresh_statuses, step.fresh_lines, step.fresh_warnings = {}, [], []
        if step.is_done:
            self._print_end(step)
            self._current = None

    def _is_worth_drawing(self, step: Step, status: StatusEvent) -> bool:
        key = (step.key, status.id)
        last = self._drawn.get(key)
        if last is not None and status.completed_ns is None:
            moved = (status.current - last.current) / status.total if status.total else 0.0
            waited_ns = status.timestamp_ns - last.timestamp_ns
            if moved < _STATUS_SHARE and waited_ns < _STATUS_INTERVAL_NS:
                return False
        self._drawn[key] = status
        return True

    def _print_end(self, step: Step) -> None:
        step.is_reported = True
        write, number = self._stream.write, step.number
        if step.is_cancelled:
            write(f"#{number} CANCELED\n")
        elif step.error:
            write(f"#{number} ERROR: {step.error}\n")
        elif step.cached:
            if said := describe_origin(step.origin):
                write(f"#{number} {said}\n")
            write(f"#{number} CACHED\n")  # the very line: scripts look for it
        else:
            write(f"#{number} DONE {units.seconds(step.duration_ns)}\n")

    def close(self) -> None:
        """Draw the rest and the logs of failed steps."""
        self._trace.finish()
        for step in self._trace.steps.values():
            if step.has_news:
                self._print(step)
        write_error_logs(self._trace, self._stream)
        self._stream.flush()


class QuietRenderer:
    """Nothing, but for the logs of failed steps."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._trace = BuildTrace()

    def update(self, events: list[Event]) -> None:
        """Remember."""
        self._trace.update(events)

    def close(self) -> None:
        """Write the logs of failed steps."""
        self._trace.finish()
        write_error_logs(self._trace, self._stream)


class RawJsonRenderer:
    """One JSON object for each batch (client.SolveStatus of BuildKit's Go client)."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def update(self, events: list[Event]) -> None:
        """Write the batch."""
        out: dict[str, list[dict[str, Any]]] = {}
        for event in events:
            match event:
                case VertexEvent():
                    out.setdefault("vertexes", []).append(_vertex_json(event))
                case StatusEvent():
                    out.setdefault("statuses", []).append(_status_json(event))
                case LogEvent():
                    out.setdefault("logs", []).append(_log_json(event))
                case WarningEvent():
                    out.setdefault("warnings", []).append(_warning_json(event))
        if out:
            self._stream.write(json.dumps(out, separators=(",", ":")) + "\n")
            self._stream.flush()

    def close(self) -> None:
        """Nothing is left to draw."""


def _pruned(fields: dict[str, Any]) -> dict[str, Any]:
    """Leave out empty fields, as Go's ``omitempty`` does."""
    return {key: value for key, value in fields.items() if value not in (None, "", 0, False, [])}


def _maybe(time_ns: int | None) -> str | None:
    return None if time_ns is None else time_text(time_ns)


def _vertex_json(event: VertexEvent) -> dict[str, Any]:
    group = event.group
    return _pruned(
        {
            "digest": event.digest,
            "inputs": list(event.inputs),
            "name": event.name,
            "started": _maybe(event.started_ns),
            "completed": _maybe(event.completed_ns),
            "cached": event.cached,
            "error": event.error,
            "origin": event.origin,
            "progressGroup": None
            if group is None
            else _pruned({"id": group.id, "name": group.name, "weak": group.weak}),
        }
    )


def _status_json(event: StatusEvent) -> dict[str, Any]:
    optional = {
        "vertex": event.vertex,
        "name": event.name,
        "total": event.total,
        "started": _maybe(event.started_ns),
        "completed": _maybe(event.completed_ns),
    }
    return {
        "id": event.id,
        "current": event.current,
        "timestamp": time_text(event.timestamp_ns),
        **_pruned(optional),
    }


def _log_json(event: LogEvent) -> dict[str, Any]:
    return {
        "vertex": event.vertex,
        "stream": event.stream,
        "data": base64.b64encode(event.data).decode(),
        "timestamp": time_text(event.timestamp_ns),
    }


def _warning_json(event: WarningEvent) -> dict[str, Any]:
    return _pruned(
        {
            "vertex": event.vertex,
            "level": event.level,
            "short": base64.b64encode(event.short).decode(),
            "detail": [base64.b64encode(line).decode() for line in event.detail],
            "url": event.url,
            "sourceInfo": _pruned(
                {
                    "filename": event.filename,
                    "data": base64.b64encode(event.source).decode(),
                }
            )
            or None,
            "range": [
                {
                    "start": {"line": r.start_line, "character": r.start_column},
                    "end": {"line": r.end_line, "character": r.end_column},
                }
                for r in event.ranges
            ],
        }
    )


def is_interactive(environ: Mapping[str, str]) -> bool:
    """Return whether standard error is a terminal that can be drawn on."""
    return os.isatty(2) and environ.get("TERM", "dumb") != "dumb"
