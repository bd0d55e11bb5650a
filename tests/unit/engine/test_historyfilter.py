"""Filters of the build history."""

from __future__ import annotations

import pytest

from boxwright.engine.historyfilter import Record, compile_history_filters
from boxwright.errors import InvalidInputError

HOUR = 3600
NOW = 1_700_000_000
BEGIN = NOW - 24 * HOUR


def record(ref: str, started: int, lasted: int = 0, **attributes: str) -> Record:
    made = Record(Ref=ref, FrontendAttrs=attributes)
    made.CreatedAt.FromSeconds(BEGIN + started)
    if lasted:
        made.CompletedAt.FromSeconds(BEGIN + started + lasted)
    return made


RECORDS = [
    record("foo123", 0, 60),
    record("bar456", HOUR, context="https://github.com/user/repo.git#abcdef123"),
    record("foo789", 2 * HOUR, 600, **{"vcs:source": "testrepo"}),
]


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        ([], ["foo123", "bar456", "foo789"]),
        (["ref==foo"], []),
        (["ref~=foo"], ["foo123", "foo789"]),
        (["status==running"], ["bar456"]),
        (["repository!=testrepo"], ["foo123", "bar456"]),
        (["repository==https://github.com/user/repo.git"], ["bar456"]),
        (["repository!=testrepo,ref~=foo"], ["foo123"]),
        (["completedAt>23h"], ["foo789"]),
        (["startedAt<23h"], ["foo123"]),
        (["startedAt<=23h"], ["foo123", "bar456"]),
        (["startedAt>=2023-11-14T00:13:20+01:00"], ["bar456", "foo789"]),
        (["duration>5m"], ["foo789"]),
        (["startedAt>24h,completedAt>22h"], ["foo789"]),
        (["startedAt>=23h", "completedAt>22h"], ["bar456", "foo789"]),
        (["startedAt>24h,ref~=foo"], ["foo789"]),
    ],
)
def test_matching(filters: list[str], wanted: list[str]) -> None:
    matches = compile_history_filters(filters, NOW * 10**9)
    assert [each.Ref for each in RECORDS if matches(each)] == wanted


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ref+foo", "failed to parse history filters ref+foo: filters: parse error: "),
        ("startedAt>x", "invalid time x"),
        ("startedAt>2023-11-14T00:13:20", "invalid time 2023-11-14T00:13:20"),
        ("duration<1", "invalid duration 1"),
    ],
)
def test_malformed(text: str, said: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        compile_history_filters([text], NOW)
    assert str(caught.value).startswith(said)
