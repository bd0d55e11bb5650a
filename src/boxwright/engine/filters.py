"""Filters in containerd's syntax, as ``--filter`` of du, prune and workers takes them.

One filter is a comma-separated list of selectors that must all hold: ``path==value``,
``path!=value``, ``path~=regex``, or ``path`` alone for "is there". Several filters are
alternatives, and an empty one always holds. What can't be read is refused in containerd's words,
and a regular expression that can't be compiled matches nothing, as there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal

from boxwright.engine.policyregex import Budget, Regex
from boxwright.errors import InvalidInputError

FieldLookup = Callable[[tuple[str, ...]], "str | None"]
"""Returns the field with this path, None if it is not there."""
Matcher = Callable[[FieldLookup], bool]

_Kind = Literal["end", "illegal", "quoted", "separator", "operator", "value", "field", "other"]
_Token = tuple[int, _Kind, str]

_FIELD = re.compile(r"[A-Za-z0-9_]+")
_OPERATOR = re.compile(r"[=!~]+")
_SPACE = re.compile(r"\s*")
_ESCAPE = re.compile(r"[0-7]{3}|x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}")
_NUMERIC = frozenset("01234567xuU")
_PLAIN = dict(zip("abfnrtv\\", "\a\b\f\n\r\t\v\\", strict=True))


def compile_filters(filters: Sequence[str]) -> Matcher:
    """Return a function that tells whether any of the filters holds; none: always.

    Raises:
        InvalidInputError: a filter is malformed.
    """
    alternatives = [_Parser(text).parse() if text else [] for text in filters]

    def matches(lookup: FieldLookup) -> bool:
        return not alternatives or any(
            all(selector(lookup) for selector in selectors) for selectors in alternatives
        )

    return matches


class _Parser:
    """Reads one filter; every place in it is the index of a character."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._wants_value = False
        self._problem = ""

    def parse(self) -> list[Matcher]:
        selectors = [self._selector()]
        while self._at < len(self._text):
            if self._text[self._at] != ",":
                raise self._refused(self._at, f"unexpected input: {self._text[self._at]}")
            self._scan()
            selectors.append(self._selector())
        return selectors

    def _selector(self) -> Matcher:
        path = [self._field()]
        while self._text.startswith(".", self._at):
            self._scan()
            path.append(self._field())
        if self._at == len(self._text) or self._text[self._at] == ",":
            return _selector(tuple(path), "", "")
        position, kind, operator = self._scan()
        if kind == "illegal":
            raise self._refused(position, self._problem)
        if kind != "operator":
            raise self._refused(position, 'expected an operator ("=="|"!="|"~=")')
        if operator not in {"==", "!=", "~="}:
            raise self._refused(position, f'unsupported operator "{operator}"')
        return _selector(tuple(path), operator, self._value(is_regex=operator == "~="))

    def _field(self) -> str:
        position, kind, text = self._scan()
        if kind == "field":
            return text
        if kind == "quoted":
            return self._unquote(position, text, is_regex=False)
        raise self._refused(
            position, self._problem if kind == "illegal" else "expected field or quoted"
        )

    def _value(self, *, is_regex: bool) -> str:
        position, kind, text = self._scan()
        if kind in {"value", "field"}:
            return text
        if kind == "quoted":
            return self._unquote(position, text, is_regex=is_regex)
        raise self._refused(
            position, self._problem if kind == "illegal" else "expected value or quoted"
        )

    # -- tokens ----------------------------------------------------------------------

    def _scan(self) -> _Token:
        text = self._text
        begin = self._at = self._end_of(_SPACE, self._at)
        if begin == len(text):
            return begin, "end", ""
        char = text[begin]
        if char == "\0":
            self._problem = self._problem or "unexpected null"
            return begin, "illegal", ""
        kind: _Kind
        if char in '/|"':
            is_legal, self._at = self._quoted(begin)
            kind = "quoted" if is_legal else "illegal"
        elif char in ",.":
            kind, self._at, self._wants_value = "separator", begin + 1, False
        elif char in "=!~":
            kind, self._at, self._wants_value = "operator", self._end_of(_OPERATOR, begin), True
        elif self._wants_value:
            kind, self._at, self._wants_value = "value", self._end_of_value(begin), False
        elif _FIELD.match(char):
            kind, self._at = "field", self._end_of(_FIELD, begin)
        else:
            kind, self._at = "other", begin + 1
        return begin, kind, text[begin : self._at]

    def _end_of(self, pattern: re.Pattern[str], start: int) -> int:
        found = pattern.match(self._text, start)
        return found.end() if found else start

    def _end_of_value(self, start: int) -> int:
        end = start + 1
        while end < len(self._text):
            char = self._text[end]
            if char == "," or char.isspace() or not char.isprintable():
                break
            end += 1
        return end

    def _quoted(self, begin: int) -> tuple[bool, int]:
        """Return whether what is quoted here can be read, and where it ends."""
        text, quote = self._text, self._text[begin]
        is_legal, at = True, begin + 1
        while at < len(text) and text[at] not in {quote, "\n", "\0"}:
            if text[at] != "\\":
                at += 1
                continue
            escape = text[at + 1 : at + 2]
            if escape and (escape in _PLAIN or escape == quote):
                at += 2
            elif found := _ESCAPE.match(text, at + 1):
                at = found.end()
            else:
                is_legal, at = False, at + 2
                kind = "numeric escape" if escape in _NUMERIC and escape else "escape"
                self._problem = self._problem or f"illegal {kind} sequence"
        if at >= len(text) or text[at] != quote:
            self._problem = self._problem or "quoted literal not terminated"
            return False, min(at, len(text))
        return is_legal, at + 1

    def _unquote(self, position: int, quoted: str, *, is_regex: bool) -> str:
        if quoted[0] != '"' and not is_regex:
            raise self._refused(position, "invalid quote encountered")
        pieces: list[str] = []
        at, end = 1, len(quoted) - 1
        while at < end:
            if quoted[at] != "\\":
                pieces.append(quoted[at])
                at += 1
                continue
            found = _ESCAPE.match(quoted, at + 1)
            if found is None:
                pieces.append(_PLAIN.get(quoted[at + 1], quoted[at + 1]))
                at += 2
                continue
            digits = found[0]
            number = int(digits[1:], 16) if digits[0] in "xuU" else int(digits, 8)
            if number > (0xFF if digits[0].isdigit() else 0x10FFFF):
                raise self._refused(position, "unquoting failed: quote syntax error")
            pieces.append(chr(number))
            at = found.end()
        return "".join(pieces)

    def _refused(self, position: int, what: str) -> InvalidInputError:
        text = self._text
        where = text
        if position < len(text):
            where = f"{text[:position]} >|{text[position]}|< {text[position + 1 :]}"
        return InvalidInputError(f"filters: parse error: [{where}]: {what}: invalid argument")


def _selector(path: tuple[str, ...], operator: str, value: str) -> Matcher:
    match operator:
        case "":
            return lambda lookup: lookup(path) is not None
        case "==":
            return lambda lookup: lookup(path) == value
        case "!=":
            return lambda lookup: (lookup(path) or "") != value
    try:
        pattern = Regex.compile(value)
    except InvalidInputError:
        return lambda _lookup: False
    return lambda lookup: pattern.search(lookup(path) or "", Budget()) is not None
