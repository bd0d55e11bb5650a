"""JSON, and times in it, as Go's encoder writes them.

Configs, manifests and definitions are content-addressed, so equal digests need equal bytes:
no blanks, text as UTF-8, and ``< > &`` escaped as in ``encoding/json`` with its defaults.
Maps come out in the order given; where Go sorts them (maps, not structs), sort before.
"""

from __future__ import annotations

import json
import re
import time
from datetime import UTC, datetime, timedelta
from typing import Any

_ESCAPED = "<>&\u2028\u2029"
_SECOND_NS = 1_000_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TIME = re.compile(
    r"(\d{4}-\d\d-\d\dT(?:[01]\d|2[0-3]):\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)", re.ASCII
)


def escape(text: str) -> str:
    """Escape, in JSON text, the characters that Go never writes as they are."""
    for char in _ESCAPED:
        if char in text:
            text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def dumps(value: Any, *, indent: int | None = None) -> str:  # noqa: ANN401 - any JSON value
    """Return the JSON text of ``value``; with ``indent`` as ``json.MarshalIndent`` does."""
    separators = (",", ":") if indent is None else (",", ": ")
    text = json.dumps(value, ensure_ascii=False, separators=separators, indent=indent)
    return escape(text)


def encode(value: Any, *, indent: int | None = None) -> bytes:  # noqa: ANN401 - any JSON value
    """Return the UTF-8 bytes of :func:`dumps`; lone surrogates become U+FFFD."""
    return dumps(value, indent=indent).encode("utf-8", "replace")


def through_map(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Return a value with sorted keys at every depth, as one that went through a Go map."""
    if isinstance(value, dict):
        return {key: through_map(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [through_map(item) for item in value]
    return value


def time_text(moment_ns: int) -> str:
    """Return a time as Go's encoder writes it (RFC 3339, as many digits as it needs).

    Args:
        moment_ns: Since the epoch.
    """
    seconds, rest = divmod(moment_ns, _SECOND_NS)
    # strftime writes the year 1, Go's zero time, as "1".
    year, *others = time.gmtime(seconds)[:6]
    text = "{:04d}-{:02d}-{:02d}T{:02d}:{:02d}:{:02d}".format(year, *others)
    fraction = f".{rest:09d}".rstrip("0") if rest else ""
    return f"{text}{fraction}Z"


def parse_time(text: str) -> int:
    """Return the nanoseconds since the epoch of a time as Go's decoder reads it (RFC 3339).

    Raises:
        ValueError: not such a time.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"not a time: {text[:100]!r}")
    whole, fraction, zone = match.groups()
    moment = datetime.fromisoformat(whole + zone.replace("Z", "+00:00"))
    seconds = (moment - _EPOCH) // timedelta(seconds=1)
    return seconds * _SECOND_NS + int((fraction or "")[:9].ljust(9, "0"))
