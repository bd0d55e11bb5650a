"""Paths with wildcards, by the rules of Go's ``path.Match``, which copy sources follow."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from boxwright.errors import InvalidInputError


class Glob:
    """One path with wildcards, by the rules of Go's ``path.Match``.

    Args:
        path: Absolute and clean.

    Raises:
        InvalidInputError: a bracket is not closed.
    """

    def __init__(self, path: bytes) -> None:
        self._parts = path.split(b"/")
        self._regex = _glob_regex(path)
        # A bracket or an escape may itself match a slash: then depth says nothing.
        self._prunes = not (b"[" in path or b"\\" in path)
        self._prefixes: dict[int, re.Pattern[bytes]] = {}

    @property
    def fixed_part(self) -> tuple[bytes, bool]:
        """The path before the first part with a wildcard, and whether anything follows it."""
        for number, part in enumerate(self._parts):
            if re.search(rb"(?<!\\)(?:\\\\)*[*?\[]", part):
                return b"/".join(self._parts[:number]), True
        return b"/".join(self._parts), False

    def matches(self, path: bytes) -> bool:
        """Return whether the whole path matches."""
        return self._regex.fullmatch(path) is not None

    def may_match_below(self, path: bytes) -> bool:
        """Return whether something below ``path`` can match."""
        if not self._prunes:
            return True
        depth = path.count(b"/") + 1
        if depth >= len(self._parts):
            return False
        regex = self._prefixes.get(depth)
        if regex is None:
            regex = self._prefixes[depth] = _glob_regex(b"/".join(self._parts[:depth]))
        return regex.fullmatch(path) is not None


# One character as Go reads it, never given back to be matched as less: an invalid byte is one.
_RUNE = (
    rb"(?>[\x00-\x7f]|[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}"
    rb"|[\xf0-\xf4][\x80-\xbf]{3}|[\x80-\xff])"
)
_RUNE_IN_PART = rb"(?:(?!/)" + _RUNE + rb")"


def _glob_regex(pattern: bytes) -> re.Pattern[bytes]:
    out: list[bytes] = []
    at = 0
    while at < len(pattern):
        char = pattern[at : at + 1]
        at += 1
        if char == b"*":
            out.append(rb"[^/]*")
        elif char == b"?":
            out.append(_RUNE_IN_PART)
        elif char == b"[":
            end, piece = _glob_class(pattern, at)
            out.append(piece)
            at = end
        else:
            if char == b"\\":
                if at == len(pattern):
                    raise _bad_pattern(pattern)
                char = pattern[at : at + 1]
                at += 1
            out.append(re.escape(char))
    return re.compile(b"".join(out), re.DOTALL)


def _glob_class(pattern: bytes, at: int) -> tuple[int, bytes]:
    """Translate a bracket expression that begins after ``at - 1``; characters are runes."""
    negated = pattern[at : at + 1] == b"^"
    at += negated
    text = pattern[at:].decode("utf-8", "surrogateescape")
    ranges: list[tuple[str, str]] = []
    used = 0

    def character() -> str:
        nonlocal used
        if used >= len(text) or (text[used] in "-]" and text[used] != "\\"):
            raise _bad_pattern(pattern)
        if text[used] == "\\":
            used += 1
            if used >= len(text):
                raise _bad_pattern(pattern)
        used += 1
        return text[used - 1]

    while not (ranges and text[used : used + 1] == "]"):
        low = character()
        high = low
        if text[used : used + 1] == "-":
            used += 1
            high = character()
        ranges.append((low, high))
    used += 1
    consumed = len(text[:used].encode("utf-8", "surrogateescape"))
    alternatives = [piece for low, high in ranges for piece in _rune_range(low, high)]
    inner = b"|".join(alternatives) or rb"(?!)"
    piece = rb"(?:(?!(?:" + inner + rb"))" + _RUNE + rb")" if negated else rb"(?:" + inner + rb")"
    return at + consumed, piece


def _rune_range(low: str, high: str) -> Iterator[bytes]:
    if ord(high) - ord(low) > 0xFFFF:
        raise InvalidInputError("range in a path pattern is too large", detail=f"{low}-{high}")
    for code in range(ord(low), ord(high) + 1):
        yield re.escape(chr(code).encode("utf-8", "surrogateescape"))


def _bad_pattern(pattern: bytes) -> InvalidInputError:
    return InvalidInputError(
        "syntax error in pattern", detail=os.fsdecode(pattern), hint="escape [ as \\["
    )
