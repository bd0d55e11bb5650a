"""Shell patterns (``*`` and ``?``) as used inside ``${name#pattern}`` and its relatives.

Positions in the value are the bits of an integer, so that one pass over the pattern tells
all ends (or all starts) of a match at once. Time is the length of the pattern times the
length of the value over the machine's word, whatever the pattern: no backtracking that a
hostile Dockerfile could make explode.
"""

from __future__ import annotations

from typing import Final

from boxwright.core.dataclass import dataclass

_ANY: Final = object()
_STAR: Final = object()


class PatternError(ValueError):
    """A pattern with an escape that means nothing."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """A parsed pattern; ``items`` are characters, ``_ANY`` or ``_STAR``."""

    items: tuple[object, ...]

    @classmethod
    def parse(cls, text: str) -> Pattern:
        r"""Read a pattern in which a backslash escapes ``* ? \`` and, as written, ``} /``.

        Raises:
            PatternError: another character is escaped.
        """
        items: list[object] = []
        chars = iter(range(len(text)))
        for index in chars:
            char = text[index]
            if char == "*":
                items.append(_STAR)
            elif char == "?":
                items.append(_ANY)
            elif char == "\\":
                following = text[index + 1 : index + 2]
                if following in {"}", "/"} and following:
                    continue
                if following not in {"*", "?", "\\"}:
                    raise PatternError(f"invalid escape '\\{following}'")
                items.append(following)
                next(chars)
            else:
                items.append(char)
        return cls(tuple(items))

    def prefix_end(self, value: str, *, longest: bool) -> int | None:
        """Return where a match at the start of ``value`` ends, or None without a match."""
        return _pick(_Subject(value).reach(self.items, 1), highest=longest)

    def suffix_start(self, value: str, *, longest: bool) -> int | None:
        """Return where a match at the end of ``value`` begins, or None without a match."""
        ends = _Subject(value[::-1]).reach(self.items[::-1], 1)
        taken = _pick(ends, highest=longest)
        return None if taken is None else len(value) - taken

    def substitute(self, value: str, replacement: str, *, every: bool) -> str:
        """Replace the leftmost longest match, or each one from left to right."""
        size = len(value)
        everywhere = (1 << (size + 1)) - 1
        backwards = _Subject(value[::-1]).reach(self.items[::-1], everywhere)
        starts = f"{backwards:0{size + 1}b}"
        forwards = _Subject(value)
        out: list[str] = []
        copied = position = 0
        while (start := starts.find("1", position)) >= 0:
            end = self._end_from(forwards, start)
            out.append(value[copied:start])
            if end > copied or start == 0:
                # As in Go: no empty match right behind the previous one.
                out.append(replacement)
            copied = end
            position = end if end > position else position + 1
            if not every:
                break
        out.append(value[copied:])
        return "".join(out)

    def _end_from(self, subject: _Subject, start: int) -> int:
        if _STAR not in self.items:
            return start + len(self.items)
        end = _pick(subject.reach(self.items, 1 << start), highest=True)
        assert end is not None
        return end


class _Subject:
    """A value with the sets of the positions of its characters."""

    __slots__ = ("_inline", "_masks", "_value")

    def __init__(self, value: str) -> None:
        self._value = value
        self._inline = _bits(value, "\n", invert=True)
        self._masks: dict[str, int] = {}

    def reach(self, items: tuple[object, ...], positions: int) -> int:
        """Return the set of positions after ``items``, from the set ``positions``."""
        inline = self._inline
        for item in items:
            if not positions:
                break
            if item is _STAR:
                # A carry runs from each position to the end of its line.
                positions |= ((positions & inline) + inline) ^ inline
            elif item is _ANY:
                positions = (positions & inline) << 1
            else:
                positions = (positions & self._mask(str(item))) << 1
        return positions

    def _mask(self, char: str) -> int:
        mask = self._masks.get(char)
        if mask is None:
            mask = self._masks[char] = _bits(self._value, char)
        return mask


def _bits(value: str, char: str, *, invert: bool = False) -> int:
    """Return the set of indexes at which ``value`` has ``char`` (or has not)."""
    if not value:
        return 0
    return int("".join("01"[(c == char) != invert] for c in reversed(value)), 2)


def _pick(positions: int, *, highest: bool) -> int | None:
    if not positions:
        return None
    return (positions if highest else positions & -positions).bit_length() - 1
