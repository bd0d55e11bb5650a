"""``BytesMessage`` (one field 1, bytes) by hand: every byte of an output passes here."""

from __future__ import annotations

from boxwright.session.packets import MalformedPacketError, decode_varint, encode_varint

MAX_CHUNK_BYTES = 1 << 20
"""Stock clients accept messages of 4 MiB."""


def encode_chunk(data: bytes) -> bytes:
    """Wrap ``data``."""
    return b"".join((b"\x0a", encode_varint(len(data)), data)) if data else b""


def decode_chunk(raw: bytes) -> bytes:
    """Unwrap; unknown fields are an error.

    Raises:
        MalformedPacketError: not a ``BytesMessage``.
    """
    if not raw:
        return b""
    if raw[0] != 0x0A:
        raise MalformedPacketError("not a bytes message")
    length, start = decode_varint(raw, 1)
    if start + length != len(raw):
        raise MalformedPacketError("a bytes message of another length than it says")
    return raw[start:]
