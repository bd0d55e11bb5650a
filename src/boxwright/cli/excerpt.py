"""The lines of a source file that an error is about, with a mark."""

from __future__ import annotations

from typing import TYPE_CHECKING

from boxwright.core.dataclass import dataclass
from boxwright.errors import BoxwrightError

if TYPE_CHECKING:
    from boxwright.wire.pb import ops_pb2

_CONTEXT_LINES = 2
_RULE = "-" * 20


def of_error(error: BoxwrightError) -> str:
    """Return the excerpts that belong to an error, its own or those a daemon sent with it."""
    own = getattr(error, "excerpt", "")
    if own:
        return str(own)
    details = getattr(error, "rpc_details", None)
    if not details:
        return ""
    from boxwright.wire import errdetails
    from boxwright.wire.pb import errdefs_pb2

    parts = []
    for detail in details:
        message = errdetails.unpack(detail)
        if isinstance(message, errdefs_pb2.Source) and message.HasField("info"):
            spans = [(r.start.line, r.end.line) for r in message.ranges]
            focus = next((_focus(r) for r in message.ranges if r.end.character), None)
            parts.append(excerpt(message.info.filename, message.info.data, spans, focus))
    return "".join(dict.fromkeys(parts))


@dataclass(frozen=True, slots=True)
class Focus:
    """The words at fault: a line counted from 1, characters of it from 0, the end excluded."""

    line: int
    start: int
    end: int


def _focus(span: ops_pb2.Range) -> Focus | None:
    start, end = span.start, span.end
    if start.line != end.line or end.character <= start.character:
        return None
    return Focus(start.line, start.character, end.character)


def excerpt(
    filename: str, source: bytes, spans: list[tuple[int, int]], focus: Focus | None = None
) -> str:
    """Return the marked lines with some around them, under a heading ``file:line:column``.

    Args:
        filename: As the user knows it.
        source: The whole file.
        spans: First and last lines at fault, counted from 1.
        focus: The words at fault; they get a marker of their own.

    Returns:
        Lines with their ends; empty where the spans lie outside the source.
    """
    lines = source.decode("utf-8", "replace").removesuffix("\n").split("\n")
    starts = [start for start, _ in spans if start >= 1]
    if not starts or min(starts) > len(lines):
        return ""
    first, last = min(starts), min(max(max(span) for span in spans), len(lines))
    around = _CONTEXT_LINES if first == last else 1
    top, bottom = max(1, first - around), min(len(lines), last + around)
    place = (
        f"{filename}:{first}" if focus is None else f"{filename}:{focus.line}:{focus.start + 1}"
    )
    out = [f"{place}\n{_RULE}\n"]
    for number in range(top, bottom + 1):
        marked = any(start <= number <= max(start, end) for start, end in spans)
        mark = ">>>" if marked else "   "
        out.append(f" {number:3d} | {mark} {lines[number - 1]}".rstrip() + "\n")
        if focus is not None and number == focus.line:
            indent = "".join(c if c == "\t" else " " for c in lines[number - 1][: focus.start])
            out.append(f"     |     {indent}{'^' * (focus.end - focus.start)}\n")
    out.append(f"{_RULE}\n")
    return "".join(out)
