"""Symbolic file modes (``COPY --chmod=u=rwX,go=rX``) with BSD ``setmode(3)`` semantics.

The umask is always 0 here: a build must not depend on the daemon's.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Callable

from boxwright.core.dataclass import dataclass
from boxwright.errors import InvalidInputError

_ALL = 0o777
_ALLOWED = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX | _ALL
_READ, _WRITE, _EXECUTE = 0o444, 0o222, 0o111
_CLASS_SHIFT = {"u": 6, "g": 3, "o": 0}
_WHO = {"u": stat.S_ISUID | 0o700, "g": stat.S_ISGID | 0o070, "o": 0o007}
_CLAUSE = re.compile(r"([augo]*)((?:[-+=][rwxXstugo]*)+)\Z")
_ACTION = re.compile(r"([-+=])([rwxXstugo]*)")

_Step = Callable[[int, int, bool], int]


@dataclass(frozen=True, slots=True)
class ModeChange:
    """A parsed mode; immutable, applied to any number of files."""

    _steps: tuple[_Step, ...]

    def apply(self, mode: int, *, is_dir: bool) -> int:
        """Return the new permission bits of a file that has ``mode`` now."""
        original = stat.S_IMODE(mode)
        current = original
        for step in self._steps:
            current = step(current, original, is_dir)
        return current & _ALLOWED


def parse_mode(text: str) -> ModeChange:
    """Parse an octal or symbolic mode.

    Raises:
        InvalidInputError: it is neither.
    """
    if text[:1].isdigit():
        if not re.fullmatch(r"[0-7]+", text) or int(text, 8) & ~_ALLOWED:
            raise _invalid(text)
        value = int(text, 8)
        return ModeChange((lambda _current, _original, _is_dir: value,))
    steps: list[_Step] = []
    for clause in text.split(","):
        found = _CLAUSE.match(clause)
        if found is None:
            raise _invalid(text)
        who = 0
        for name in found[1]:
            who |= (stat.S_ISUID | stat.S_ISGID | _ALL) if name == "a" else _WHO[name]
        for operator, permissions in _ACTION.findall(found[2]):
            steps.append(_step(who, operator, permissions))
    return ModeChange(tuple(steps))


def _invalid(text: str) -> InvalidInputError:
    return InvalidInputError(
        f"invalid file mode {text!r}",
        hint="use an octal mode such as 0755, or a symbolic one such as u=rwX,go=rX",
    )


def _step(who: int, operator: str, permissions: str) -> _Step:
    special_allowed = not who or bool(who & ~0o007)
    fixed = 0
    for letter in permissions:
        if letter == "r":
            fixed |= _READ
        elif letter == "w":
            fixed |= _WRITE
        elif letter == "x" or (letter == "X" and operator == "-"):
            fixed |= _EXECUTE
        elif letter == "s" and special_allowed:
            fixed |= stat.S_ISUID | stat.S_ISGID
        elif letter == "t" and special_allowed:
            fixed |= stat.S_ISVTX
    conditional = "X" in permissions and operator != "-"
    copies = [letter for letter in permissions if letter in _CLASS_SHIFT]
    mask = who or (_ALLOWED & ~stat.S_ISVTX)
    if copies and not fixed and not conditional:
        mask &= _ALL  # "g=u" sets permissions only: set-id bits stay
    if "t" in permissions and special_allowed:
        mask |= stat.S_ISVTX

    def change(current: int, original: int, is_dir: bool) -> int:  # noqa: FBT001
        bits = fixed
        for letter in copies:
            bits |= (current >> _CLASS_SHIFT[letter] & 0o7) * 0o111
        if conditional and (is_dir or original & _EXECUTE):
            bits |= _EXECUTE
        if operator == "-":
            return current & ~(bits & mask)
        kept = current & ~mask if operator == "=" else current
        return kept | bits & mask

    return change
