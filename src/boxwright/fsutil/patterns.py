"""Path patterns as ``.dockerignore`` and local sources use them.

The semantics are those of moby's pattern matcher, which every BuildKit client and daemon
share: ``*`` and ``?`` stop at a slash, ``**`` does not, a later ``!pattern`` takes back what
an earlier one matched, and a pattern that matches a folder matches everything below it.
Paths are relative, slash separated, without leading slash; names that are not UTF-8 arrive
as :func:`os.fsdecode` gives them.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from boxwright.errors import InvalidInputError

ParentMatches: TypeAlias = tuple[bool, ...]
"""Per pattern, whether it matched a folder; handed down to the folder's children."""

_REGEX_ONLY = frozenset(".+()|{}$")
_SET_OPERATORS = frozenset("[&~|")
_GLOB_CHARACTERS = frozenset("*[]?^\\")


class PatternError(InvalidInputError):
    """A pattern that the syntax does not allow."""

    def __init__(self, pattern: str, reason: str) -> None:
        super().__init__("invalid path pattern", detail=f"{pattern!r}: {reason}")
        self.pattern = pattern


class Pattern:
    """One compiled pattern.

    Args:
        text: The cleaned pattern, without the leading ``!``.
        exclusion: Whether it was written with a leading ``!``.
    """

    __slots__ = ("exclusion", "matches", "text")

    def __init__(self, text: str, *, exclusion: bool) -> None:
        _check_syntax(text)
        self.text = text
        self.exclusion = exclusion
        self.matches: Callable[[str], bool] = _compile(text)

    @property
    def fixed_prefix(self) -> str | None:
        """The pattern without a trailing ``/*`` or ``/**``; None if globs remain in it."""
        text = self.text.removesuffix("/**").removesuffix("/*")
        return None if _GLOB_CHARACTERS & set(text) else text

    def matches_or_parent(self, path: str) -> bool:
        """Return whether the pattern matches ``path`` or one of the folders above it."""
        if self.matches(path):
            return True
        end = path.find("/")
        while end >= 0:
            if self.matches(path[:end]):
                return True
            end = path.find("/", end + 1)
        return False


class PatternMatcher:
    """An ordered list of patterns.

    Args:
        patterns: As written; blank ones are dropped, the others cleaned.

    Raises:
        PatternError: one of them is malformed.
    """

    __slots__ = ("_exclusion_prefixes", "_inclusion_prefixes", "patterns")

    def __init__(self, patterns: Iterable[str]) -> None:
        self.patterns: tuple[Pattern, ...] = tuple(_parse(patterns))
        self._inclusion_prefixes = _prefixes(p for p in self.patterns if not p.exclusion)
        self._exclusion_prefixes = _prefixes(p for p in self.patterns if p.exclusion)

    @property
    def has_exclusions(self) -> bool:
        """Whether any pattern begins with ``!``."""
        return any(pattern.exclusion for pattern in self.patterns)

    def matches(self, path: str) -> bool:
        """Return whether ``path``, or a folder above it, is matched in the end."""
        matched = False
        for pattern in self.patterns:
            if pattern.exclusion == matched and pattern.matches_or_parent(path):
                matched = not pattern.exclusion
        return matched

    def match_below(self, path: str, parent: ParentMatches) -> tuple[bool, ParentMatches]:
        """Match during a walk.

        Args:
            path: The entry.
            parent: What this method returned for the folder of the entry; empty at the root.

        Returns:
            Whether the entry is matched, and what to hand down to its children.
        """
        matched = False
        below: list[bool] = []
        for number, pattern in enumerate(self.patterns):
            match = bool(parent) and parent[number]
            if not match and pattern.exclusion == matched:
                match = pattern.matches(path) if parent else pattern.matches_or_parent(path)
            below.append(match)
            if match:
                matched = not pattern.exclusion
        return matched, tuple(below)

    def can_include_below(self, folder: str) -> bool:
        """Return whether an (unmatched) folder can hold paths that the patterns match."""
        return _overlaps(self._inclusion_prefixes, folder)

    def can_take_back_below(self, folder: str) -> bool:
        """Return whether a matched folder can hold paths that a ``!`` pattern takes back."""
        return _overlaps(self._exclusion_prefixes, folder)


def _prefixes(patterns: Iterable[Pattern]) -> tuple[str, ...] | None:
    """Return the fixed paths of the patterns with a final slash; None if one has globs."""
    found = [pattern.fixed_prefix for pattern in patterns]
    known = [f"{prefix}/" for prefix in found if prefix is not None]
    return tuple(known) if len(known) == len(found) else None


def _overlaps(prefixes: Sequence[str] | None, folder: str) -> bool:
    if prefixes is None:
        return True
    start = f"{folder}/"
    return any(prefix.startswith(start) for prefix in prefixes)


def _parse(patterns: Iterable[str]) -> Iterable[Pattern]:
    for written in patterns:
        text = written.strip()
        if not text:
            continue
        text = clean(text)
        exclusion = text.startswith("!")
        if exclusion:
            text = text[1:]
            if not text:
                raise PatternError(written, 'illegal exclusion pattern: "!"')
        yield Pattern(text, exclusion=exclusion)


def clean(path: str) -> str:
    """Return the shortest equal path, as Go's ``filepath.Clean``: ``//a/./b/..`` is ``/a``."""
    cleaned = posixpath.normpath(path)
    return cleaned[1:] if cleaned.startswith("//") else cleaned


def _check_syntax(text: str) -> None:
    """Refuse what Go's ``filepath.Match`` calls a bad pattern."""
    position = 0
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 1
            if position >= len(text):
                raise PatternError(text, "syntax error in pattern: it ends in a backslash")
        elif character == "[":
            position = _check_class(text, position + 1)
        position += 1


def _check_class(text: str, position: int) -> int:
    """Check a character class from behind its bracket; return where it closes."""
    if text[position : position + 1] == "^":
        position += 1
    ranges = 0
    while True:
        if text[position : position + 1] == "]" and ranges:
            return position
        low, position = _class_character(text, position)
        high = low
        if text[position : position + 1] == "-":
            high, position = _class_character(text, position + 1)
        if high < low:
            raise PatternError(text, f"syntax error in pattern: the range {low}-{high} is empty")
        ranges += 1


def _class_character(text: str, position: int) -> tuple[str, int]:
    if position < len(text) and text[position] not in "-]":
        if text[position] == "\\":
            position += 1
        if position + 1 < len(text):
            return text[position], position + 1
    raise PatternError(text, "syntax error in pattern: a character class is not closed")


def _compile(text: str) -> Callable[[str], bool]:
    """Choose the cheapest test that is right for the pattern."""
    plain = not (_GLOB_CHARACTERS & set(text))
    if plain:
        return text.__eq__
    if text.startswith("**"):
        rest = text[2:]
        if not _GLOB_CHARACTERS & set(rest):
            return _suffix_test(rest)
    if text.endswith("**"):
        head = text[:-2]
        if not _GLOB_CHARACTERS & set(head):
            return lambda path: path.startswith(head)
    try:
        expression = re.compile(_to_regex(text))
    except re.error as exc:
        raise PatternError(text, str(exc)) from exc
    return lambda path: expression.match(path) is not None


def _suffix_test(suffix: str) -> Callable[[str], bool]:
    if suffix.startswith("/"):
        whole = suffix[1:]
        return lambda path: path.endswith(suffix) or path == whole
    return lambda path: path.endswith(suffix)


def _to_regex(text: str) -> str:
    out: list[str] = []
    position, in_class = 0, False
    while position < len(text):
        character = text[position]
        position += 1
        if character == "\\":
            out.append(re.escape(text[position : position + 1]))
            position += 1
        elif in_class:
            in_class = character != "]"
            out.append(f"\\{character}" if character in _SET_OPERATORS else character)
        elif character == "*" and text[position : position + 1] == "*":
            position += 1
            if text[position : position + 1] == "/":
                position += 1
            out.append(".*" if position >= len(text) else "(?:.*/)?")
        elif character == "*":
            out.append("[^/]*")
        elif character == "?":
            out.append("[^/]")
        elif character == "[":
            in_class = True
            out.append("[")
            if text[position : position + 1] == "^":
                out.append("^")
                position += 1
        elif character in _REGEX_ONLY:
            out.append(f"\\{character}")
        else:
            out.append(character)
    return "".join(out) + r"\Z"
