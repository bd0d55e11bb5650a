"""gRPC's use of HTTP headers: metadata, timeouts, status text (gRPC over HTTP/2 spec).

Names ending in ``-bin`` carry bytes, base64 with or without padding; several values may be
joined with commas. Other values are printable ASCII on the wire.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from boxwright.errors import InvalidInputError

MetadataItems = Sequence[tuple[str, str | bytes]]

_RESERVED: Final = frozenset(
    "content-type te user-agent grpc-timeout grpc-encoding grpc-accept-encoding grpc-status"
    " grpc-message grpc-status-details-bin connection host".split()
)
_NAME: Final = re.compile(r"[0-9a-z_.-]+\Z")
_VALUE: Final = re.compile(r"[\x20-\x7e]*\Z")
_TIMEOUT: Final = re.compile(rb"([0-9]{1,8})([HMSmun])\Z")
_UNIT_S: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_PERCENT: Final = re.compile(rb"%([0-9A-Fa-f]{2})")


class Metadata:
    """Received metadata: an immutable multi-map with lower-case names."""

    __slots__ = ("_items",)

    def __init__(self, items: MetadataItems = ()) -> None:
        self._items = tuple(items)

    def get(self, name: str, default: str = "") -> str:
        """Return the first text value of ``name``."""
        for key, value in self._items:
            if key == name and isinstance(value, str):
                return value
        return default

    def get_all(self, name: str) -> list[str]:
        """Return all text values of ``name`` in order."""
        return [v for k, v in self._items if k == name and isinstance(v, str)]

    def get_bytes(self, name: str) -> bytes | None:
        """Return the first value of a ``-bin`` name."""
        for key, value in self._items:
            if key == name and isinstance(value, bytes):
                return value
        return None

    def __contains__(self, name: object) -> bool:
        return any(key == name for key, _ in self._items)

    def __iter__(self) -> Iterator[tuple[str, str | bytes]]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        """Names only: values may be credentials."""
        return f"Metadata({sorted({key for key, _ in self._items})})"


def encode_bin(value: bytes) -> bytes:
    """Return base64 without padding, as peers send it."""
    return base64.b64encode(value).rstrip(b"=")


def decode_bin(value: bytes) -> bytes:
    """Decode base64 with or without padding.

    Raises:
        InvalidInputError: not base64.
    """
    try:
        return base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
    except binascii.Error as exc:
        raise InvalidInputError("malformed binary metadata", detail=str(exc)) from None


def to_headers(items: MetadataItems) -> list[tuple[bytes, bytes]]:
    """Check and encode metadata for sending.

    Raises:
        InvalidInputError: a name or value that gRPC can't carry.
    """
    out: list[tuple[bytes, bytes]] = []
    for name, value in items:
        if not _NAME.match(name) or name in _RESERVED:
            raise InvalidInputError("metadata name can't be sent", detail=repr(name[:100]))
        if name.endswith("-bin"):
            raw = value if isinstance(value, bytes) else value.encode()
            out.append((name.encode(), encode_bin(raw)))
            continue
        if isinstance(value, bytes) or not _VALUE.match(value):
            raise InvalidInputError(
                "metadata value can't be sent",
                detail=f"{name} contains value with non-printable ASCII characters",
            )
        out.append((name.encode(), value.encode()))
    return out


def from_headers(headers: Iterable[tuple[bytes, bytes]]) -> Metadata:
    """Return the application's part of received headers; malformed ``-bin`` is dropped."""
    out: list[tuple[str, str | bytes]] = []
    for raw_name, raw_value in headers:
        name = bytes(raw_name).decode("latin-1")
        if name.startswith(":") or name in _RESERVED:
            continue
        if name.endswith("-bin"):
            for piece in bytes(raw_value).split(b","):
                try:
                    out.append((name, decode_bin(piece.strip())))
                except InvalidInputError:
                    continue
        else:
            out.append((name, bytes(raw_value).decode("utf-8", "replace")))
    return Metadata(out)


def encode_timeout(seconds: float) -> bytes:
    """Return a ``grpc-timeout`` value: at most eight digits, rounded up."""
    micros = max(0, math.ceil(seconds * 1e6))
    if micros < 10**8:
        return b"%du" % micros
    millis = -(-micros // 1000)
    if millis < 10**8:
        return b"%dm" % millis
    return b"%dS" % min(-(-millis // 1000), 10**8 - 1)


def decode_timeout(value: bytes) -> float:
    """Return seconds.

    Raises:
        InvalidInputError: malformed.
    """
    match = _TIMEOUT.match(value)
    if match is None:
        raise InvalidInputError("malformed grpc-timeout", detail=repr(value[:40]))
    return int(match[1]) * _UNIT_S[match[2]]


def encode_message(text: str) -> bytes:
    """Percent-encode a status message."""
    raw = text.encode("utf-8", "replace")
    if raw.isascii() and text.isprintable() and b"%" not in raw:
        return raw
    return b"".join(
        bytes((byte,)) if 0x20 <= byte <= 0x7E and byte != 0x25 else b"%%%02X" % byte
        for byte in raw
    )


def decode_message(raw: bytes) -> str:
    """Undo :func:`encode_message`; malformed escapes stay as they are."""
    if b"%" in raw:
        raw = _PERCENT.sub(lambda match: bytes((int(match[1], 16),)), raw)
    return raw.decode("utf-8", "replace")
