"""Programs of regular expressions, and how they are put together (Thompson's construction)."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from boxwright.core.dataclass import dataclass

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class CharSet:
    """Reads one character."""

    ranges: tuple[Range, ...]
    categories: tuple[tuple[str, bool], ...] = ()
    negated: bool = False
    fold: bool = False

    def contains(self, char: str) -> bool:
        """Return whether it reads this character."""
        found = self._has(char)
        if not found and self.fold:
            found = any(self._has(c) for c in (char.lower(), char.upper()) if len(c) == 1)
        return found != self.negated

    def _has(self, char: str) -> bool:
        code = ord(char)
        if any(low <= code <= high for low, high in self.ranges):
            return True
        return any(
            unicodedata.category(char).startswith(name) != inverted
            for name, inverted in self.categories
        )


@dataclass(frozen=True, slots=True)
class Jump:
    """Go on elsewhere."""

    target: int


@dataclass(frozen=True, slots=True)
class Split:
    """Go on at both, the first one preferred."""

    first: int
    second: int


@dataclass(frozen=True, slots=True)
class Save:
    """Note the position."""

    slot: int


@dataclass(frozen=True, slots=True)
class AtStart:
    """The beginning of the text."""


@dataclass(frozen=True, slots=True)
class AtEnd:
    """The end of the text."""


@dataclass(frozen=True, slots=True)
class AtLineStart:
    """The beginning of a line."""


@dataclass(frozen=True, slots=True)
class AtLineEnd:
    """The end of a line."""


@dataclass(frozen=True, slots=True)
class WordBoundary:
    """An ASCII word begins or ends here."""

    negated: bool


@dataclass(frozen=True, slots=True)
class Match:
    """The end of the pattern."""


Instruction = (
    CharSet
    | Jump
    | Split
    | Save
    | AtStart
    | AtEnd
    | AtLineStart
    | AtLineEnd
    | WordBoundary
    | Match
)
Code = list[Instruction]
"""A piece of program whose targets count from its own beginning."""


def moved(code: Code, offset: int) -> Code:
    """Return a piece of program with its targets moved on."""
    moved: Code = []
    for item in code:
        match item:
            case Jump(target):
                moved.append(Jump(target + offset))
            case Split(first, second):
                moved.append(Split(first + offset, second + offset))
            case _:
                moved.append(item)
    return moved


def joined(parts: Sequence[Code]) -> Code:
    """Return pieces one after the other."""
    code: Code = []
    for part in parts:
        code += moved(part, len(code))
    return code


def either(branches: Sequence[Code]) -> Code:
    """Read one of several pieces, the first preferred."""
    end = sum(len(branch) + 2 for branch in branches) - 2
    code: Code = []
    for branch in branches[:-1]:
        begin = len(code)
        code.append(Split(begin + 1, begin + len(branch) + 2))
        code += moved(branch, begin + 1)
        code.append(Jump(end))
    return [*code, *moved(branches[-1], len(code))]


def optional(code: Code, times: int, *, lazy: bool) -> Code:
    """Read ``code`` up to ``times`` times."""
    end = times * (len(code) + 1)
    made: Code = []
    for _ in range(times):
        following = len(made) + 1
        made.append(Split(end, following) if lazy else Split(following, end))
        made += moved(code, following)
    return made


def is_nullable(code: Code) -> bool:
    """Return whether a piece of program can end without reading."""
    pending, seen = [0], set[int]()
    while pending:
        counter = pending.pop()
        if counter >= len(code):
            return True
        if counter in seen:
            continue
        seen.add(counter)
        match code[counter]:
            case Jump(target):
                pending.append(target)
            case Split(first, second):
                pending += (first, second)
            case CharSet():
                pass
            case _:
                pending.append(counter + 1)
    return False


def star(code: Code, *, lazy: bool) -> Code:
    """Read a piece any number of times."""
    if is_nullable(code):
        # One empty turn must still be possible, and be the last one: (x+)?, as Go has it.
        return optional(plus(code, lazy=lazy), 1, lazy=lazy)
    end = len(code) + 2
    return [Split(end, 1) if lazy else Split(1, end), *moved(code, 1), Jump(0)]


def plus(code: Code, *, lazy: bool) -> Code:
    """Read a piece once or more."""
    end = len(code) + 1
    return [*code, Split(end, 0) if lazy else Split(0, end)]
