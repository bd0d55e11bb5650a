"""Filters of ListenBuildHistory: those of containerd, and times.

Besides what :mod:`boxwright.engine.filters` reads, ``startedAt``, ``completedAt`` and
``duration`` take ``<``, ``<=``, ``>`` and ``>=``: a moment is an RFC 3339 time or how long ago
it was (``23h``), and is compared by the second, as BuildKit does.
"""

from __future__ import annotations

import csv
import datetime as dt
import operator
import re
from collections.abc import Callable, Sequence

from boxwright.dockerfile.golang import parse_duration
from boxwright.engine.filters import compile_filters
from boxwright.errors import InvalidInputError, named
from boxwright.llb.build_giturl import parse_git_url
from boxwright.wire.pb import control_pb2

Record = control_pb2.BuildHistoryRecord
RecordMatcher = Callable[[Record], bool]

_COMPARISON = re.compile(r"(startedAt|completedAt|duration)(>=|<=|>|<)(.*)", re.DOTALL)
_COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_SECOND_NS = 10**9


def compile_history_filters(filters: Sequence[str], now_ns: int) -> RecordMatcher:
    """Return a function that tells whether any of the filters holds; none: always.

    Raises:
        InvalidInputError: a filter is malformed.
    """
    alternatives = [_compile(text, now_ns) for text in filters]

    def matches(record: Record) -> bool:
        return not alternatives or any(
            all(condition(record) for condition in conditions) for conditions in alternatives
        )

    return matches


def _compile(text: str, now_ns: int) -> list[RecordMatcher]:
    try:
        fields = next(csv.reader([text], strict=True), [""])
    except csv.Error as exc:
        raise InvalidInputError(
            f"failed to parse history filters {text}", detail=str(exc)
        ) from exc
    found = [(field, _COMPARISON.fullmatch(field)) for field in fields]
    conditions = [_comparison(match, now_ns) for _, match in found if match]
    others = ",".join(field for field, match in found if not match)
    if others or not conditions:
        with named(f"failed to parse history filters {text}"):
            holds = compile_filters([others])
        conditions.append(lambda record: holds(lambda path: _field(record, path[0])))
    return conditions


def _comparison(match: re.Match[str], now_ns: int) -> RecordMatcher:
    name, sign, value = match.groups()
    try:
        wanted = parse_duration(value)
    except ValueError as exc:
        if name == "duration":
            raise InvalidInputError(f"invalid duration {value}") from exc
        wanted = _moment(value)
    else:
        if name != "duration":
            wanted = (now_ns - wanted) // _SECOND_NS

    def matches(record: Record) -> bool:
        started = record.CreatedAt.ToNanoseconds()
        completed = record.CompletedAt.ToNanoseconds()
        if name == "duration":
            found = completed - started if record.HasField("CompletedAt") else 0
        else:
            found = (started if name == "startedAt" else completed) // _SECOND_NS
        return bool(_COMPARE[sign](found, wanted))

    return matches


def _moment(text: str) -> int:
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError as exc:
        raise InvalidInputError(f"invalid time {text}") from exc
    if moment.tzinfo is None:
        raise InvalidInputError(f"invalid time {text}")
    return int(moment.timestamp() // 1)


def _field(record: Record, name: str) -> str | None:
    """Return a record's field, under the names that buildx uses; None if it is not there."""
    match name:
        case "ref":
            return record.Ref or None
        case "status":
            if not record.HasField("CompletedAt"):
                return "running"
            if not record.HasField("error"):
                return "completed"
            return "canceled" if record.error.code == 1 else "error"
        case "repository":
            return _repository(record)
    return None


def _repository(record: Record) -> str | None:
    attributes = record.FrontendAttrs
    if "vcs:source" in attributes:
        return attributes["vcs:source"]
    try:
        context = parse_git_url(attributes.get("context", ""))
    except InvalidInputError:
        return None
    return context.remote if context else None
