"""From RE2's syntax to the program of :mod:`boxwright.engine.policyregex`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from boxwright.core.dataclass import dataclass, field, replace
from boxwright.engine.policyprogram import (
    AtEnd,
    AtLineEnd,
    AtLineStart,
    AtStart,
    CharSet,
    Code,
    Instruction,
    Match,
    Range,
    Save,
    WordBoundary,
    either,
    joined,
    moved,
    optional,
    plus,
    star,
)
from boxwright.errors import InvalidInputError, LimitExceededError

_MAX_PATTERN = 4_096
_MAX_PROGRAM = 5_000
_MAX_DEPTH = 100
_MAX_REPEAT = 1_000
_LAST = 0x10FFFF


class InvalidPatternError(InvalidInputError):
    """A regular expression that can't be used."""

    def __init__(self, pattern: str, reason: str) -> None:
        super().__init__(
            f"invalid regular expression {pattern[:200]!r}",
            detail=reason,
            hint="the syntax is RE2's, as in Go",
        )
        self.pattern = pattern


@dataclass(frozen=True)
class Compiled:
    """A program, its named groups, and text that every match contains."""

    program: Sequence[Instruction]
    names: dict[str, int]
    prefix: str


@dataclass(frozen=True, slots=True)
class _Flags:
    fold: bool = False
    multiline: bool = False
    dot_all: bool = False
    ungreedy: bool = False


_DIGITS: tuple[Range, ...] = ((0x30, 0x39),)
_WORDS: tuple[Range, ...] = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_SPACES: tuple[Range, ...] = ((0x09, 0x0A), (0x0C, 0x0D), (0x20, 0x20))
_PERL = {"d": _DIGITS, "w": _WORDS, "s": _SPACES}
_POSIX: dict[str, tuple[Range, ...]] = {
    "alnum": ((0x30, 0x39), (0x41, 0x5A), (0x61, 0x7A)),
    "alpha": ((0x41, 0x5A), (0x61, 0x7A)),
    "ascii": ((0x00, 0x7F),),
    "blank": ((0x09, 0x09), (0x20, 0x20)),
    "cntrl": ((0x00, 0x1F), (0x7F, 0x7F)),
    "digit": _DIGITS,
    "graph": ((0x21, 0x7E),),
    "lower": ((0x61, 0x7A),),
    "print": ((0x20, 0x7E),),
    "punct": ((0x21, 0x2F), (0x3A, 0x40), (0x5B, 0x60), (0x7B, 0x7E)),
    "space": ((0x09, 0x0D), (0x20, 0x20)),
    "upper": ((0x41, 0x5A),),
    "word": _WORDS,
    "xdigit": ((0x30, 0x39), (0x41, 0x46), (0x61, 0x66)),
}
_CONTROLS = {"a": "\a", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_CATEGORIES = frozenset(
    "C Cc Cf Co Cs L Ll Lm Lo Lt Lu M Mc Me Mn N Nd Nl No P Pc Pd Pe Pf Pi Po Ps "
    "S Sc Sk Sm So Z Zl Zp Zs".split()
)


def compile_pattern(pattern: str) -> Compiled:
    """Return the program of a pattern.

    Raises:
        InvalidPatternError: it is malformed.
        LimitExceededError: its program would be too large.
    """
    if len(pattern) > _MAX_PATTERN:
        raise InvalidPatternError(pattern, f"longer than {_MAX_PATTERN} characters")
    parser = _Parser(pattern)
    body = parser.alternatives(_Flags(), 0)
    if parser.rest:
        raise parser.error("unexpected )")
    program: Code = [Save(0), *moved(body, 1), Save(1), Match()]
    return Compiled(program, parser.names, _literal_prefix(body))


def _literal_prefix(body: Code) -> str:
    """Return the single characters that a program without branches there begins with."""
    text: list[str] = []
    for number, item in enumerate(body):
        if isinstance(item, AtStart) and number == 0:
            continue
        if not isinstance(item, CharSet) or item.negated or item.fold or item.categories:
            break
        if len(item.ranges) != 1 or item.ranges[0][0] != item.ranges[0][1]:
            break
        text.append(chr(item.ranges[0][0]))
    # A jump back into the run of characters (``+``) leaves at least one of each.
    return "".join(text)


@dataclass
class _Parser:
    """Reads a pattern from left to right; pieces of program come out."""

    pattern: str
    position: int = 0
    groups: int = 0
    names: dict[str, int] = field(default_factory=dict)

    @property
    def rest(self) -> str:
        return self.pattern[self.position :]

    def error(self, reason: str) -> InvalidPatternError:
        return InvalidPatternError(self.pattern, f"{reason} at character {self.position}")

    def peek(self) -> str:
        return self.pattern[self.position : self.position + 1]

    def take(self) -> str:
        char = self.peek()
        if not char:
            raise self.error("unexpected end")
        self.position += 1
        return char

    def eat(self, text: str) -> bool:
        if not self.pattern.startswith(text, self.position):
            return False
        self.position += len(text)
        return True

    def check_size(self, size: int) -> None:
        if size > _MAX_PROGRAM:
            raise LimitExceededError(
                "a regular expression of the source policy is too large",
                detail=f"{self.pattern[:200]!r}",
            )

    def alternatives(self, flags: _Flags, depth: int) -> Code:
        """Read up to the end or a closing parenthesis."""
        if depth > _MAX_DEPTH:
            raise self.error("nested too deeply")
        branches: list[Code] = []
        parts: list[Code] = []
        size = 0
        while (char := self.peek()) and char != ")":
            if self.eat("|"):
                branches.append(joined(parts))
                parts = []
                continue
            changed = self.inline_flags(flags)
            if changed is not None:
                flags = changed
                continue
            parts.append(self.repeated(flags, depth))
            size += len(parts[-1])
            self.check_size(size)
        branches.append(joined(parts))
        return either(branches)

    def inline_flags(self, flags: _Flags) -> _Flags | None:
        """Read ``(?i)``; None if there is none."""
        start = self.position
        if self.eat("(?"):
            changed = self.flags(flags)
            if changed is not None and self.eat(")"):
                return changed
        self.position = start
        return None

    def flags(self, flags: _Flags) -> _Flags | None:
        value, any_seen = True, False
        while (char := self.peek()) and char in "imsU-":
            self.take()
            if char == "-":
                if not value:
                    return None
                value, any_seen = False, False
                continue
            any_seen = True
            match char:
                case "i":
                    flags = replace(flags, fold=value)
                case "m":
                    flags = replace(flags, multiline=value)
                case "s":
                    flags = replace(flags, dot_all=value)
                case _:
                    flags = replace(flags, ungreedy=value)
        return flags if any_seen or value else None

    def repeated(self, flags: _Flags, depth: int) -> Code:
        quoted = self.quoted(flags)
        code = quoted[-1:] if quoted is not None else self.atom(flags, depth)
        return [
            *(quoted or [])[:-1],
            *moved(self.repetitions(code, flags), len(quoted or [1]) - 1),
        ]

    def quoted(self, flags: _Flags) -> Code | None:
        r"""Read literal text between ``\Q`` and ``\E``; None if there is none."""
        if not self.eat("\\Q"):
            return None
        end = self.pattern.find("\\E", self.position)
        text = self.pattern[self.position : end if end >= 0 else None]
        self.position = end + 2 if end >= 0 else len(self.pattern)
        return [_literal(each, flags) for each in text]

    def repetitions(self, code: Code, flags: _Flags) -> Code:
        operator_before = False
        while True:
            bounds = self.bounds()
            if bounds is None:
                return code
            if operator_before:
                raise self.error("invalid nested repetition operator")
            operator_before = True
            lazy = self.eat("?") != flags.ungreedy
            code = self.repeat(code, *bounds, lazy=lazy)

    def bounds(self) -> tuple[int, int | None] | None:
        """Read ``*``, ``+``, ``?`` or ``{n,m}``; braces that are none are literal."""
        for operator, low, high in (("*", 0, None), ("+", 1, None), ("?", 0, 1)):
            if self.eat(operator):
                return low, high
        if self.peek() != "{":
            return None
        end = self.pattern.find("}", self.position)
        if end < 0:
            return None
        first, comma, second = self.pattern[self.position + 1 : end].partition(",")
        if not _is_number(first) or (second and not _is_number(second)):
            return None
        self.position = end + 1
        least = int(first[:5])
        most = int(second[:5]) if second else (None if comma else least)
        if least > _MAX_REPEAT or (most is not None and not least <= most <= _MAX_REPEAT):
            raise self.error("invalid repeat count")
        return least, most

    def repeat(self, code: Code, least: int, most: int | None, *, lazy: bool) -> Code:
        if (least, most) == (0, None):
            return star(code, lazy=lazy)
        if (least, most) == (1, None):
            return plus(code, lazy=lazy)
        if len(code) * max(least, most or 0, 1) > _MAX_PROGRAM:
            self.check_size(_MAX_PROGRAM + 1)
        parts = [code] * least
        if most is None:
            return joined([*parts, star(code, lazy=lazy)])
        return joined([*parts, optional(code, most - least, lazy=lazy)])

    def atom(self, flags: _Flags, depth: int) -> Code:
        char = self.take()
        match char:
            case "(":
                return self.group(flags, depth)
            case "[":
                return [self.char_class(flags)]
            case ".":
                if flags.dot_all:
                    return [CharSet(((0, _LAST),))]
                return [CharSet(((10, 10),), negated=True)]
            case "^":
                return [AtLineStart() if flags.multiline else AtStart()]
            case "$":
                return [AtLineEnd() if flags.multiline else AtEnd()]
            case "\\":
                return self.escape(flags)
            case "*" | "+" | "?":
                raise self.error("missing argument to repetition operator")
        return [_literal(char, flags)]

    def group(self, flags: _Flags, depth: int) -> Code:
        number: int | None = None
        if self.eat("?P<") or self.eat("?<"):
            end = self.pattern.find(">", self.position)
            name = self.pattern[self.position : max(end, self.position)]
            is_name = name.replace("_", "a").isalnum() and name.isascii()
            if not is_name or name in self.names:
                raise self.error("invalid named group")
            self.position = end + 1
            self.groups += 1
            number = self.names[name] = self.groups
        elif self.eat("?"):
            changed = self.flags(flags)
            if changed is None or not self.eat(":"):
                raise self.error("invalid or unsupported Perl syntax")
            flags = changed
        else:
            self.groups += 1
            number = self.groups
        body = self.alternatives(flags, depth + 1)
        if not self.eat(")"):
            raise self.error("missing closing )")
        if number is None:
            return body
        return [Save(2 * number), *moved(body, 1), Save(2 * number + 1)]

    def escape(self, flags: _Flags) -> Code:
        char = self.peek()
        simple: dict[str, Callable[[], Instruction]] = {
            "A": AtStart,
            "z": AtEnd,
            "b": lambda: WordBoundary(negated=False),
            "B": lambda: WordBoundary(negated=True),
        }
        if char in simple:
            self.take()
            return [simple[char]()]
        found = self.escaped_class()
        if found is not None:
            return [replace(found, fold=flags.fold)]
        return [_literal(self.escaped_char(), flags)]

    def escaped_class(self) -> CharSet | None:
        """Read the class after a backslash (``d``, ``pL``); None if it is no class."""
        char = self.peek()
        if char and char in "dwsDWS":
            self.take()
            return CharSet(_PERL[char.lower()], negated=char.isupper())
        if not char or char not in "pP":
            return None
        self.take()
        name = self.take()
        if name == "{":
            end = self.pattern.find("}", self.position)
            name = self.pattern[self.position : max(end, self.position)]
            self.position = end + 1 if end >= 0 else self.position
        inverted = (char == "P") != name.startswith("^")
        name = name.removeprefix("^")
        if name == "Any":
            return CharSet(((0, _LAST),), negated=inverted)
        if name not in _CATEGORIES:
            raise self.error(f"unknown character class {name[:40]!r}")
        return CharSet((), ((name, False),), negated=inverted)

    def escaped_char(self) -> str:
        char = self.take()
        if char in _CONTROLS:
            return _CONTROLS[char]
        if char in "01234567":
            return self.octal(char)
        if char == "x":
            return self.hexadecimal()
        if char.isascii() and not char.isalnum():
            return char
        raise self.error("invalid escape sequence")

    def octal(self, first: str) -> str:
        follows = self.peek() != "" and self.peek() in "01234567"
        if first != "0" and not follows:
            raise self.error("invalid escape sequence")  # a back reference
        digits = first
        while len(digits) < 3 and self.peek() and self.peek() in "01234567":
            digits += self.take()
        return chr(int(digits, 8))

    def hexadecimal(self) -> str:
        if self.eat("{"):
            end = self.pattern.find("}", self.position)
            digits = self.pattern[self.position : max(end, self.position)]
            self.position = end + 1 if end >= 0 else self.position
        else:
            digits = self.pattern[self.position : self.position + 2]
            self.position += 2
            if len(digits) != 2:
                raise self.error("invalid escape sequence")
        is_hex = bool(digits) and all(c in "0123456789abcdefABCDEF" for c in digits)
        if not is_hex or len(digits) > 8 or int(digits, 16) > _LAST:
            raise self.error("invalid escape sequence")
        return chr(int(digits, 16))

    def char_class(self, flags: _Flags) -> CharSet:
        negated = self.eat("^")
        ranges: list[Range] = []
        categories: list[tuple[str, bool]] = []
        is_first = True
        while is_first or self.peek() != "]":
            is_first = False
            if self.eat("[:"):
                ranges += self.posix_class()
                continue
            if self.peek() == "\\":
                self.take()
                found = self.escaped_class()
                if found is not None:
                    ranges += (
                        _inverted(found.ranges)
                        if found.negated and found.ranges
                        else (found.ranges)
                    )
                    categories += [(name, found.negated) for name, _ in found.categories]
                    continue
                low = self.escaped_char()
            else:
                low = self.take()
            high = low
            following = self.pattern[self.position + 1 : self.position + 2]
            if self.peek() == "-" and following not in ("]", ""):
                self.take()
                high = self.take()
                if high == "\\":
                    high = self.escaped_char()
            if high < low:
                raise self.error("invalid character class range")
            ranges.append((ord(low), ord(high)))
        self.take()
        return CharSet(tuple(ranges), tuple(categories), negated, flags.fold)

    def posix_class(self) -> tuple[Range, ...]:
        end = self.pattern.find(":]", self.position)
        name = self.pattern[self.position : max(end, self.position)]
        found = _POSIX.get(name.removeprefix("^"))
        if end < 0 or found is None:
            raise self.error("invalid character class range")
        self.position = end + 2
        return _inverted(found) if name.startswith("^") else found


def _literal(char: str, flags: _Flags) -> CharSet:
    return CharSet(((ord(char), ord(char)),), fold=flags.fold and char.lower() != char.upper())


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _inverted(ranges: Sequence[Range]) -> tuple[Range, ...]:
    found: list[Range] = []
    next_free = 0
    for low, high in sorted(ranges):
        if low > next_free:
            found.append((next_free, low - 1))
        next_free = max(next_free, high + 1)
    if next_free <= _LAST:
        found.append((next_free, _LAST))
    return tuple(found)
