"""Regular expressions of source policies: Go's syntax, in time that the pattern can't blow up.

Policies come from clients. Python's own engine backtracks, so that a few bytes of pattern could
hold the whole engine for hours; and its syntax differs from the one that policies are written
in (RE2: ``https://github.com/google/re2/wiki/Syntax``). Here a pattern becomes a program for a
simulation that visits every instruction once for each character at most (Pike's machine), with
a budget of such steps. Matching is leftmost-first, as in Go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from boxwright.core.dataclass import dataclass, field
from boxwright.engine.policyprogram import (
    AtEnd,
    AtLineEnd,
    AtLineStart,
    AtStart,
    CharSet,
    Instruction,
    Jump,
    Match,
    Save,
    Split,
    WordBoundary,
)
from boxwright.engine.policysyntax import compile_pattern
from boxwright.errors import LimitExceededError

_WORD = frozenset("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz")

Span = tuple[int | None, ...]
"""Start and end of the whole match and of each group, flat; None for a group not taken."""


@dataclass
class Budget:
    """Steps that all matching of one evaluation may take together."""

    left: int = 20_000_000

    def take(self, steps: int) -> None:
        """Use some up.

        Raises:
            LimitExceededError: there are not that many.
        """
        self.left -= steps
        if self.left < 0:
            raise LimitExceededError(
                "the source policy takes too long to evaluate",
                hint="use fewer or simpler regular expressions",
            )


@dataclass(frozen=True)
class Regex:
    """A compiled pattern."""

    pattern: str
    program: Sequence[Instruction]
    names: Mapping[str, int] = field(default_factory=dict)
    prefix: str = ""

    @classmethod
    def compile(cls, pattern: str) -> Regex:
        """Compile a pattern.

        Raises:
            InvalidInputError: it is malformed, or uses what RE2 does not have.
        """
        compiled = compile_pattern(pattern)
        return cls(pattern, compiled.program, compiled.names, compiled.prefix)

    def search(self, text: str, budget: Budget, start: int = 0) -> Span | None:
        """Return the leftmost match at or after ``start``."""
        if self.prefix and text.find(self.prefix, start) < 0:
            return None
        return _Machine(self.program, text, budget).run(start)

    def replace_all(self, text: str, template: str, budget: Budget) -> str:
        """Return ``text`` with every match replaced by the expanded template."""
        parts: list[str] = []
        position = copied = 0
        while position <= len(text):
            span = self.search(text, budget, position)
            if span is None:
                break
            begin, end = span[0] or 0, span[1] or 0
            parts.append(text[copied:begin])
            if end > copied or begin == 0:
                # An empty match right after another match is none.
                parts.append(expand(template, text, span, self.names))
            copied = end
            position = end if end > begin else end + 1
        parts.append(text[copied:])
        return "".join(parts)


def expand(template: str, text: str, span: Span, names: Mapping[str, int]) -> str:
    """Return a template with ``$1``, ``${1}``, ``$name``, ``${name}`` and ``$$`` filled in.

    As in Go, a name is as long as it can be, and a group that does not exist is empty.
    """
    parts: list[str] = []
    rest = template
    while True:
        before, dollar, rest = rest.partition("$")
        parts.append(before)
        if not dollar:
            return "".join(parts)
        if rest.startswith("$"):
            parts.append("$")
            rest = rest[1:]
            continue
        name, after = _group_name(rest)
        if not name:
            parts.append("$")
            continue
        rest = after
        number = int(name) if name.isascii() and name.isdigit() else names.get(name, -1)
        if 0 <= number < len(span) // 2:
            begin, end = span[2 * number], span[2 * number + 1]
            if begin is not None and end is not None:
                parts.append(text[begin:end])


def _group_name(text: str) -> tuple[str, str]:
    """Return the name after a dollar sign and what follows; no name if there is none."""
    braced = text.startswith("{")
    body = text[1:] if braced else text
    length = 0
    while length < len(body) and (body[length].isalnum() or body[length] == "_"):
        length += 1
    name, rest = body[:length], body[length:]
    if braced:
        return (name, rest[1:]) if name and rest.startswith("}") else ("", text)
    return name, rest


class _Machine:
    """One search: threads of the program, best first, moved on together by one character."""

    def __init__(self, program: Sequence[Instruction], text: str, budget: Budget) -> None:
        self._program = program
        self._text = text
        self._budget = budget

    def run(self, start: int) -> Span | None:
        threads: list[tuple[int, Span]] = []
        found: Span | None = None
        for position in range(start, len(self._text) + 1):
            seen: set[int] = set()
            current: list[tuple[int, Span]] = []
            for counter, saved in threads:
                self._follow(counter, saved, position, current, seen)
            if found is None:
                self._follow(0, (), position, current, seen)
            self._budget.take(len(seen) + 1)
            threads = []
            char = self._text[position] if position < len(self._text) else ""
            for counter, saved in current:
                instruction = self._program[counter]
                if isinstance(instruction, Match):
                    found = saved
                    break  # the threads after it are less wanted
                assert isinstance(instruction, CharSet)
                if char and instruction.contains(char):
                    threads.append((counter + 1, saved))
            if not threads and found is not None:
                break
        return found

    def _follow(
        self,
        counter: int,
        saved: Span,
        position: int,
        current: list[tuple[int, Span]],
        seen: set[int],
    ) -> None:
        """Add the characters and ends that can be reached without reading, in order."""
        pending = [(counter, saved)]
        while pending:
            counter, saved = pending.pop()
            if counter in seen:
                continue
            seen.add(counter)
            instruction = self._program[counter]
            match instruction:
                case Jump(target):
                    pending.append((target, saved))
                case Split(first, second):
                    pending.append((second, saved))
                    pending.append((first, saved))
                case Save(slot):
                    padded = saved + (None,) * (slot + 1 - len(saved))
                    kept = (*padded[:slot], position, *padded[slot + 1 :])
                    pending.append((counter + 1, kept))
                case CharSet() | Match():
                    current.append((counter, saved))
                case _:
                    if self._holds(instruction, position):
                        pending.append((counter + 1, saved))

    def _holds(self, instruction: Instruction, position: int) -> bool:
        text = self._text
        match instruction:
            case AtStart():
                return position == 0
            case AtEnd():
                return position == len(text)
            case AtLineStart():
                return position == 0 or text[position - 1] == "\n"
            case AtLineEnd():
                return position == len(text) or text[position] == "\n"
            case WordBoundary(negated):
                before = position > 0 and text[position - 1] in _WORD
                after = position < len(text) and text[position] in _WORD
                return (before != after) != negated
        raise AssertionError(instruction)
