"""What is wrong with a Dockerfile, and where."""

from __future__ import annotations

from typing import Self

from boxwright.dockerfile.syntax import Position, Range
from boxwright.errors import BoxwrightError, Code

_RULE = "-" * 20
_MAX_SHOWN = 400
"""Characters of one line that an excerpt shows."""
_MAX_BRIEF = 4000
"""Characters of a message; it may quote words of any length, and has to fit a status."""


class DockerfileError(BoxwrightError):
    """A Dockerfile that can't be read or makes no sense.

    Attributes:
        filename: The file as the user knows it.
        source: The bytes of that file, for the excerpt; empty when not known.
        ranges: The lines of the instruction at fault, for the wire's ``Source`` detail.
        focus: The very words at fault, when they could be found.
        token: The text at fault, from which ``focus`` is worked out.
    """

    code = Code.DOCKERFILE_SYNTAX

    def __init__(
        self,
        brief: str,
        *,
        detail: str = "",
        hint: str = "",
        filename: str = "",
        source: bytes = b"",
        ranges: tuple[Range, ...] = (),
        focus: Range | None = None,
        token: str = "",
    ) -> None:
        if len(brief) > _MAX_BRIEF:
            brief = brief[:_MAX_BRIEF] + "…"
        super().__init__(brief, detail=detail, hint=hint)
        self.filename = filename
        self.source = source
        self.ranges = ranges
        self.focus = focus
        self.token = token

    def located(
        self,
        ranges: tuple[Range, ...] = (),
        *,
        filename: str = "",
        source: bytes = b"",
        focus: Range | None = None,
    ) -> Self:
        """Fill in the facts that are still missing; the innermost location wins."""
        self.focus = self.focus or (None if self.ranges else focus)
        self.ranges = self.ranges or ranges
        self.filename = self.filename or filename
        self.source = self.source or source
        if self.focus is None and self.token and self.source and self.ranges:
            self.focus = _search(self.source, self.ranges, self.token)
        return self

    @property
    def position(self) -> Position | None:
        """Where to look first, or None without any location."""
        if self.focus is not None:
            return self.focus.start
        return self.ranges[0].start if self.ranges else None

    @property
    def place(self) -> str:
        """``file:line:column`` (the column counted from 1), as far as known."""
        name = self.filename or "Dockerfile"
        where = self.position
        return name if where is None else f"{name}:{where.line}:{where.column + 1}"

    def render_excerpt(self) -> str:
        """Return the lines at fault with their neighbours, or "" without source or place."""
        return render_excerpt(self.source, self.ranges, self.focus, self.filename)


def find_word(text: str, token: str) -> int:
    """Return where ``token`` stands by itself in ``text``, else anywhere; -1 if nowhere."""
    if not token:
        return -1
    at = text.find(token)
    while at >= 0:
        end = at + len(token)
        if not (text[at - 1 : at].isalnum() or text[end : end + 1].isalnum()):
            return at
        at = text.find(token, at + 1)
    return text.find(token)


def _search(source: bytes, ranges: tuple[Range, ...], token: str) -> Range | None:
    lines = source.decode("utf-8", "replace").split("\n")
    for line in (r.start.line for r in ranges):
        column = find_word(lines[line - 1], token) if line <= len(lines) else -1
        if column >= 0:
            return Range(Position(line, column), Position(line, column + len(token)))
    return None


def render_excerpt(
    source: bytes,
    ranges: tuple[Range, ...],
    focus: Range | None = None,
    filename: str = "",
) -> str:
    """Draw an excerpt in the form that stock clients print, plus a marker under ``focus``."""
    lines = source.decode("utf-8", "replace").split("\n")
    if not source or not ranges:
        return ""
    first = min(r.start.line for r in ranges)
    last = min(max(max(r.start.line, r.end.line) for r in ranges), len(lines))
    if not 1 <= first <= len(lines):
        return ""
    place = f"{filename or 'Dockerfile'}:{focus.start.line if focus else first}"
    if focus is not None:
        place += f":{focus.start.column + 1}"
    marked = {n for r in ranges for n in range(r.start.line, max(r.start, r.end).line + 1)}
    before, after = _window(first, last, len(lines))
    out = [place, _RULE]
    for number in range(before, after + 1):
        text = lines[number - 1].rstrip("\r")
        shown = text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…"
        out.append(f" {number:3d} | {'>>>' if number in marked else '   '} {shown}")
        if focus is not None and number == focus.start.line and focus.start.column < _MAX_SHOWN:
            out.append(f"     |     {_marker(text, focus)}")
    out.append(_RULE)
    return "\n".join(out) + "\n"


def _window(first: int, last: int, total: int) -> tuple[int, int]:
    """Widen the lines to show: a little more around one line than around several."""
    budget = 4 if first == last else 2
    used = 0
    while used < budget:
        if first > 1:
            first -= 1
            used += 1
        if last < total:
            last += 1
            used += 1
        used += 1
    return first, last


def _marker(text: str, focus: Range) -> str:
    start = focus.start.column
    end = focus.end.column if focus.end.line == focus.start.line else len(text)
    indent = "".join("\t" if char == "\t" else " " for char in text[:start])
    return indent + "^" * max(1, min(end, _MAX_SHOWN) - start)
