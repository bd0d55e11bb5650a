"""Sizes and durations as BuildKit's tools print them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


def size(count: int) -> str:
    """Return a number of bytes with two decimals in decimal units: ``31B``, ``1.05kB``."""
    value, unit = float(count), 0
    while abs(value) >= 1000 and unit < len(_UNITS) - 1:
        value /= 1000
        unit += 1
    return f"{count}B" if unit == 0 else f"{value:.2f}{_UNITS[unit]}"


def seconds(duration_ns: int) -> str:
    """Return a duration as ``1.2s``."""
    return f"{duration_ns / 1e9:.1f}s"


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
