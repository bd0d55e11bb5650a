"""Times as Go writes and reads them in JSON."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxwright.core.gojson import parse_time, time_text

_FIRST_S, _LAST_S = -62_135_596_800, 253_402_300_799  # of the years 1 and 9999


@pytest.mark.parametrize(
    ("text", "moment_ns"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2023-11-14T22:13:20Z", 1_700_000_000_000_000_000),
        ("2023-11-14T22:13:20.5Z", 1_700_000_000_500_000_000),
        ("2023-11-14T22:13:20.123456789Z", 1_700_000_000_123_456_789),
        ("1969-12-31T23:59:59.000000001Z", -999_999_999),
        ("0001-01-01T00:00:00Z", _FIRST_S * 10**9),  # Go's zero time
        ("9999-12-31T23:59:59Z", _LAST_S * 10**9),
    ],
)
def test_times(text: str, moment_ns: int) -> None:
    assert parse_time(text) == moment_ns
    assert time_text(moment_ns) == text


@given(st.integers(_FIRST_S * 10**9, _LAST_S * 10**9))
def test_times_survive(moment_ns: int) -> None:
    assert parse_time(time_text(moment_ns)) == moment_ns


@pytest.mark.parametrize(
    "text",
    ["2023-11-15T00:13:20+02:00", "2023-11-14T20:13:20-02:00", "2023-11-14T22:13:20.0000000009Z"],
)
def test_offsets_and_digits_too_many(text: str) -> None:
    assert parse_time(text) == 1_700_000_000_000_000_000


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "2023-11-14",
        "2023-11-14T22:13:20",
        "2023-11-14t22:13:20z",
        "2023-11-14T22:13:20Z\n",
        "2023-11-14T24:00:00Z",
        "2023-11-31T22:13:20Z",
        "2023-13-14T22:13:20Z",
        "2023-11-14T22:13:60Z",
        "2023-11-14T22:13:20+25:00",
        "٢٠٢٣-11-14T22:13:20Z",
    ],
)
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_time(text)
