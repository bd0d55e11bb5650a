"""Go's rules for text and numbers, which the Dockerfile format has inherited.

Python's own differ in corners that show: ``str.split`` takes U+001C for a space, ``int``
takes underscores and surrounding blanks, ``float`` takes ``nan``.
"""

from __future__ import annotations

import math
import re

from boxwright.core import gobool

_ESCAPES = {
    "\a": "\\a",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\v": "\\v",
    "\\": "\\\\",
    '"': '\\"',
}
SPACE = "\t\n\v\f\r \u0085\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
"""All characters for which Go's ``unicode.IsSpace`` is true."""
SPACES = frozenset(SPACE)

_DURATION_UNITS = {
    "ns": 1,
    "us": 1_000,
    "\u00b5s": 1_000,
    "\u03bcs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_DURATION_PART = re.compile(r"([0-9]*)(?:\.([0-9]*))?([^0-9.]*)")
_FLOAT = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?\Z")
_SIZE_UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}
_SPLIT = re.compile(f"[{SPACE}]+")
_INT64_MAX = (1 << 63) - 1


def split_words(text: str) -> list[str]:
    """Return the words between white space, none of them empty."""
    return [word for word in _SPLIT.split(text) if word]


def quote(text: str) -> str:
    """Return ``text`` in double quotes as Go's ``%q`` writes it."""
    out = []
    for char in text:
        if char in _ESCAPES:
            out.append(_ESCAPES[char])
        elif char.isprintable():
            out.append(char)
        elif ord(char) < 0x80:
            out.append(f"\\x{ord(char):02x}")
        elif ord(char) < 0x10000:
            out.append(f"\\u{ord(char):04x}")
        else:
            out.append(f"\\U{ord(char):08x}")
    return '"' + "".join(out) + '"'


def parse_bool(text: str) -> bool:
    """Read ``1 t T TRUE true True`` or their opposites.

    Raises:
        ValueError: anything else.
    """
    value = gobool.parse(text)
    if value is None:
        raise ValueError(f"strconv.ParseBool: parsing {quote(text)}: invalid syntax")
    return value


def parse_uint(text: str, *, base: int = 10, bits: int = 32) -> int:
    """Read an unsigned number made of digits of ``base`` only.

    Raises:
        ValueError: a sign, blank or other character, or more than ``bits`` bits.
    """
    digits = "0123456789"[:base]
    significant = text.lstrip("0")
    if not text or any(char not in digits for char in text):
        raise ValueError(f"strconv.ParseUint: parsing {quote(text)}: invalid syntax")
    if len(significant) > 64 or (value := int(significant or "0", base)) >= 1 << bits:
        raise ValueError(f"strconv.ParseUint: parsing {quote(text)}: value out of range")
    return value


def parse_int(text: str, *, bits: int = 32) -> int:
    """Read a decimal number with an optional sign.

    Raises:
        ValueError: another character, or out of the range of ``bits`` bits.
    """
    sign, digits = (text[0], text[1:]) if text[:1] in {"+", "-"} else ("", text)
    if not digits or any(char not in "0123456789" for char in digits):
        raise ValueError(f"strconv.ParseInt: parsing {quote(text)}: invalid syntax")
    significant = digits.lstrip("0") or "0"
    value = int(significant) if len(significant) <= 20 else 1 << bits
    limit = 1 << (bits - 1)
    if value > (limit if sign == "-" else limit - 1):
        raise ValueError(f"strconv.ParseInt: parsing {quote(text)}: value out of range")
    return -value if sign == "-" else value


def parse_duration(text: str) -> int:
    """Read ``1h2m3.5s`` and the like into nanoseconds.

    Raises:
        ValueError: with Go's message.
    """
    invalid = ValueError(f"time: invalid duration {quote(text)}")
    rest = text
    negative = rest[:1] == "-"
    if rest[:1] in {"+", "-"}:
        rest = rest[1:]
    if rest == "0":
        return 0
    if not rest:
        raise invalid
    total = 0
    while rest:
        match = _DURATION_PART.match(rest)
        if match is None or not (match[1] or match[2]) or len(match[1]) > 19:
            raise invalid
        unit = match[3]
        if not unit:
            raise ValueError(f"time: missing unit in duration {quote(text)}")
        if unit not in _DURATION_UNITS:
            raise ValueError(f"time: unknown unit {quote(unit)} in duration {quote(text)}")
        scale = _DURATION_UNITS[unit]
        fraction = (match[2] or "")[:18]
        total += int(match[1] or "0") * scale
        if fraction:
            total += int(float(int(fraction)) * (float(scale) / 10.0 ** len(fraction)))
        if total > _INT64_MAX + (1 if negative else 0):
            raise invalid
        rest = rest[match.end() :]
    return -total if negative else total


def parse_ram_size(text: str) -> int:
    """Read ``64m``, ``1.5GiB`` or ``100`` into bytes (units of 1024).

    Raises:
        ValueError: not a size, or negative.
    """
    end = max((text.rfind(char) for char in "0123456789. "), default=-1)
    if end < 0:
        raise ValueError(f"invalid size: '{text}'")
    number = text[:end] if text[end] == " " else text[: end + 1]
    suffix = text[end + 1 :].lower()
    if not _FLOAT.match(number) or math.isinf(size := float(number)):
        raise ValueError(f"strconv.ParseFloat: parsing {quote(number)}: invalid syntax")
    if size < 0:
        raise ValueError(f"invalid size: '{text}'")
    if suffix not in {"", "b"}:
        if suffix[0] not in _SIZE_UNITS or suffix[1:] not in {"", "b", "ib"}:
            raise ValueError(f"invalid suffix: '{suffix}'")
        size *= _SIZE_UNITS[suffix[0]]
    if size > _INT64_MAX:
        raise ValueError(f"invalid size: '{text}'")
    return int(size)
