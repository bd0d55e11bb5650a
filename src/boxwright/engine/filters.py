"""Filters in containerd's syntax, as ``--filter`` of du, prune, workers and history takes them.

One filter is a comma-separated list of selectors that must all hold: ``path==value``,
``path!=value``, ``path~=regex``, or ``path`` alone for "is set"; history adds ``<``, ``<=``,
``>`` and ``>=`` on numbers, times and durations. Several filters are alternatives.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Sequence

from boxwright.errors import InvalidInputError

FieldLookup = Callable[[str], "str | None"]
Matcher = Callable[[FieldLookup], bool]

_SELECTOR = re.compile(
    r"""\s*(?P<path>(?:[A-Za-z0-9_.-]+|"(?:[^"\\]|\\.)*")+)\s*
        (?:(?P<op>==|!=|~=|<=|>=|<|>|=)\s*(?P<value>"(?:[^"\\]|\\.)*"|[^,]*))?\s*(?:,|\Z)""",
    re.VERBOSE,
)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|ms|s|m|h|d)")
_UNIT_NS = {
    "ns": 1,
    "us": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
    "d": 86400 * 10**9,
}


def compile_filters(filters: Sequence[str]) -> Matcher:
    """Return a function that tells whether any of the filters holds; none: always.

    Raises:
        InvalidInputError: a filter is malformed.
    """
    alternatives = [_compile_one(text) for text in filters]

    def matches(lookup: FieldLookup) -> bool:
        return not alternatives or any(alternative(lookup) for alternative in alternatives)

    return matches


def _compile_one(text: str) -> Matcher:
    selectors: list[Matcher] = []
    position = 0
    while position < len(text):
        found = _SELECTOR.match(text, position)
        if found is None or found.end() == position:
            raise InvalidInputError(
                "malformed filter", detail=repr(text), hint="write field==value or field~=regex"
            )
        if found["op"] and not found["value"].strip():
            raise InvalidInputError(
                "malformed filter",
                detail=f"{text!r}: no value after {found['op']}",
                hint='write "" for the empty one',
            )
        position = found.end()
        selectors.append(_selector(found["path"], found["op"] or "", _unquote(found["value"])))

    def matches(lookup: FieldLookup) -> bool:
        return all(selector(lookup) for selector in selectors)

    return matches


def _selector(path: str, op: str, value: str) -> Matcher:
    match op:
        case "":
            return lambda lookup: bool(lookup(path))
        case "==" | "=":
            return lambda lookup: lookup(path) == value
        case "!=":
            return lambda lookup: lookup(path) != value
        case "~=":
            try:
                pattern = re.compile(value)
            except re.error as exc:
                raise InvalidInputError("malformed filter", detail=f"{value!r}: {exc}") from exc
            return lambda lookup: bool(pattern.search(lookup(path) or ""))
    return lambda lookup: _compare(lookup(path), op, value)


def _compare(found: str | None, op: str, value: str) -> bool:
    if found is None:
        return False
    left, right = _number(found), _number(value)
    if left is None or right is None:
        return False
    return {"<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right}[op]


def _number(text: str) -> float | None:
    """Read a number, a duration (ns) or an RFC 3339 time (ns since the epoch)."""
    try:
        return float(text)
    except ValueError:
        pass
    pieces = _DURATION.findall(text)
    if pieces and "".join(number + unit for number, unit in pieces) == text:
        return sum(float(number) * _UNIT_NS[unit] for number, unit in pieces)
    try:
        return dt.datetime.fromisoformat(text).timestamp() * 1e9
    except ValueError:
        return None


def _unquote(value: str | None) -> str:
    text = (value or "").strip()
    if len(text) >= 2 and text[0] == '"' == text[-1]:
        return re.sub(r"\\(.)", r"\1", text[1:-1])
    return text
