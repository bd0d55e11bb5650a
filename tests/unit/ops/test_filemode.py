"""Octal and symbolic modes; expectations are those of BSD's setmode(3)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxwright.errors import InvalidInputError
from boxwright.ops.filemode import parse_mode


@pytest.mark.parametrize(
    ("text", "mode", "is_dir", "expected"),
    [
        ("755", 0o600, False, 0o755),
        ("0644", 0o777, True, 0o644),
        ("4755", 0o600, False, 0o4755),
        ("u=rwX,go=rX", 0o600, False, 0o644),
        ("u=rwX,go=rX", 0o700, False, 0o755),
        ("u=rwX,go=rX", 0o600, True, 0o755),
        ("a=r", 0o777, False, 0o444),
        ("+x", 0o644, False, 0o755),
        ("go-w", 0o666, False, 0o644),
        ("go=", 0o777, False, 0o700),
        ("g=u", 0o740, False, 0o770),
        ("o=g-w", 0o760, False, 0o764),
        ("u+s", 0o755, False, 0o4755),
        ("g+s", 0o755, True, 0o2755),
        ("+t", 0o755, True, 0o1755),
        ("=rw,+X", 0o711, False, 0o777),
        ("u+rw-x", 0o500, False, 0o600),
        ("-X", 0o755, False, 0o644),
        ("ug+w,o-r", 0o444, False, 0o660),
    ],
)
def test_modes(text: str, mode: int, is_dir: bool, expected: int) -> None:
    assert oct(parse_mode(text).apply(mode, is_dir=is_dir)) == oct(expected)


@pytest.mark.parametrize("text", ["", "8", "99999", "x", "u", "u=z", "u+r,", "12345678", "u=rw;"])
def test_malformed(text: str) -> None:
    with pytest.raises(InvalidInputError):
        parse_mode(text)


@given(st.integers(0, 0o7777), st.integers(0, 0o7777), st.booleans())
def test_octal_is_absolute(wanted: int, mode: int, is_dir: bool) -> None:
    assert parse_mode(f"0{wanted:o}").apply(mode, is_dir=is_dir) == wanted
