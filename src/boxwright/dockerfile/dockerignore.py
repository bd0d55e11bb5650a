"""``.dockerignore``: which paths of a build context stay out of it."""

from __future__ import annotations

from boxwright.dockerfile.directives import BOM
from boxwright.dockerfile.golang import SPACE
from boxwright.fsutil.patterns import PatternMatcher, clean


def parse_dockerignore(data: bytes) -> tuple[str, ...]:
    """Read the patterns, in order, cleaned and relative to the context's root.

    Lines that begin with ``#`` and blank lines are skipped. The result is what goes over
    the wire as exclude patterns.
    """
    patterns: list[str] = []
    for line in data.removeprefix(BOM).decode("utf-8", "surrogateescape").split("\n"):
        if line.startswith("#"):
            continue
        pattern = line.strip(SPACE)
        if not pattern:
            continue
        mark = "!" if pattern.startswith("!") else ""
        pattern = pattern[len(mark) :].strip(SPACE)
        if pattern:
            pattern = clean(pattern)
            if len(pattern) > 1:
                pattern = pattern.removeprefix("/")
        patterns.append(mark + pattern)
    return tuple(patterns)


def ignore_matcher(data: bytes) -> PatternMatcher:
    """Return the matcher for the text of a ``.dockerignore``.

    Raises:
        PatternError: a pattern is malformed.
    """
    return PatternMatcher(parse_dockerignore(data))
