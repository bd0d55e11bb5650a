"""Go's number and text rules."""

import pytest

from boxwright.dockerfile.golang import (
    parse_bool,
    parse_duration,
    parse_int,
    parse_ram_size,
    parse_uint,
    quote,
    split_words,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("5s", 5_000_000_000),
        ("1h2m3.5s", 3_723_500_000_000),
        ("-1.5ms", -1_500_000),
        (".5s", 500_000_000),
        ("1µs", 1_000),
        ("100ns", 100),
    ],
)
def test_durations(text, value):
    assert parse_duration(text) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5", 'time: missing unit in duration "5"'),
        ("5x", 'time: unknown unit "x" in duration "5x"'),
        ("", 'time: invalid duration ""'),
        (".s", 'time: invalid duration ".s"'),
        ("9" * 19 + "h", f'time: invalid duration "{"9" * 19}h"'),
    ],
)
def test_bad_durations(text, message):
    with pytest.raises(ValueError, match="^" + message.replace(".", r"\.") + "$"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "value"), [("64m", 64 << 20), ("1.5GiB", 3 << 29), ("100", 100), ("2 kB", 2048)]
)
def test_sizes(text, value):
    assert parse_ram_size(text) == value


@pytest.mark.parametrize("text", ["", "m", "-1", "1x", "1kbb", "nan", "inf", "9" * 400])
def test_bad_sizes(text):
    with pytest.raises(ValueError, match=r"invalid (size|syntax|suffix)"):
        parse_ram_size(text)


def test_integers():
    assert parse_uint("0755", base=8) == 0o755
    assert parse_uint("4294967295") == 4294967295
    assert parse_int("-2147483648") == -2147483648
    assert parse_int("+7") == 7
    for text in ("", "+1", " 1", "1_0", "٣", "4294967296", "9" * 5000):
        with pytest.raises(ValueError, match="strconv"):
            parse_uint(text)
    for text in ("", "-", "2147483648", "1_0", "0x1"):
        with pytest.raises(ValueError, match="strconv"):
            parse_int(text)


def test_bools():
    assert [parse_bool(t) for t in ("1", "T", "True")] == [True] * 3
    assert [parse_bool(t) for t in ("0", "f", "FALSE")] == [False] * 3
    with pytest.raises(ValueError, match="invalid syntax"):
        parse_bool("yes")


def test_quote_is_gos():
    assert quote('a"\\\n\x00é\u200b') == '"a\\"\\\\\\n\\x00é\\u200b"'


def test_spaces_are_gos():
    assert split_words("a\u2003b\x1cc \v d") == ["a", "b\x1cc", "d"]
