"""Sizes and durations as BuildKit's tools print them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_TAB = 8
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


def size(count: int) -> str:
    """Return a number of bytes with two decimals in decimal units: ``31B``, ``1.05kB``."""
    value, unit = float(count), 0
    while abs(value) >= 1000 and unit < len(_UNITS) - 1:
        value /= 1000
        unit += 1
    return f"{count}B" if unit == 0 else f"{value:.2f}{_UNITS[unit]}"


def exact_size(count: int) -> str:
    """Return a number of bytes in decimal units with all digits: ``512MB``, ``54.110634803GB``."""
    value, unit = float(count), 0
    while abs(value) >= 1000 and unit < len(_UNITS) - 1:
        value /= 1000
        unit += 1
    return repr(value).removesuffix(".0") + _UNITS[unit]


def seconds(duration_ns: int) -> str:
    """Return a duration as ``1.2s``."""
    return f"{duration_ns / 1e9:.1f}s"


def tabbed(text: str) -> str:
    """Align cells that tabs end, with tabs, as Go's text/tabwriter does for BuildKit's tools.

    A column is as wide as its widest cell in a run of lines that have it.
    """
    lines = [line.split("\t") for line in text.splitlines()]
    for column in range(max(map(len, lines), default=0)):
        start = 0
        while start < len(lines):
            end = start
            while end < len(lines) and len(lines[end]) > column + 1:
                end += 1
            run = lines[start:end]
            width = max((len(line[column]) for line in run), default=0) + 1
            stop = -(-width // _TAB) * _TAB
            for line in run:
                line[column] += "\t" * -(-(stop - len(line[column])) // _TAB)
            start = end + 1
    return "".join("".join(line) + "\n" for line in lines)


def table(rows: Iterable[Sequence[str]], *, minimum: Sequence[int] = ()) -> str:
    """Return rows as left-aligned columns, separated by two spaces."""
    lines = [list(row) for row in rows]
    if not lines:
        return ""
    widths = [
        max(*(len(row[n]) for row in lines), minimum[n] if n < len(minimum) else 0)
        for n in range(len(lines[0]))
    ]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        + "\n"
        for row in lines
    )
