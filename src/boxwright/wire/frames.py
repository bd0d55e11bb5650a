"""HTTP/2 frame constants, settings and the stateless header encoder (RFC 9113, RFC 7541).

The encoder writes every field as a literal that is never put into the dynamic table: no
state to keep in step, no secret kept in a table that compression attacks could probe, and
several times cheaper than building an index for the few fields of a gRPC call.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable
from typing import Final

from boxwright.core.dataclass import dataclass

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_HEADER_BYTES: Final = 9
DEFAULT_WINDOW: Final = 65_535
MAX_WINDOW: Final = 2**31 - 1
MIN_MAX_FRAME: Final = 16_384
MAX_MAX_FRAME: Final = 2**24 - 1

DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

FLAG_END_STREAM: Final = 0x1
FLAG_ACK: Final = 0x1
FLAG_END_HEADERS: Final = 0x4
FLAG_PADDED: Final = 0x8
FLAG_PRIORITY: Final = 0x20

SETTING_HEADER_TABLE_SIZE: Final = 1
SETTING_ENABLE_PUSH: Final = 2
SETTING_MAX_CONCURRENT_STREAMS: Final = 3
SETTING_INITIAL_WINDOW_SIZE: Final = 4
SETTING_MAX_FRAME_SIZE: Final = 5
SETTING_MAX_HEADER_LIST_SIZE: Final = 6


class ErrorCode(enum.IntEnum):
    """RFC 9113, section 7."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


@dataclass(frozen=True, slots=True)
class Http2Limits:
    """What this end grants its peer; sizes in bytes.

    The connection window is credited as soon as bytes arrive and the stream window as the
    application takes them, so ``stream_window`` times ``max_streams`` bounds the memory that
    stuck streams can hold, and no stuck stream stops another.
    """

    stream_window: int = 4 << 20
    connection_window: int = 16 << 20
    max_frame: int = 256 << 10
    max_streams: int = 256
    max_header_list: int = 1 << 20
    flood_budget: int = 20_000
    flood_refill_per_s: float = 2_000.0
    max_unsent_control: int = 1 << 20


_HEADER: Final = struct.Struct(">HBBBI")  # length high, length low, type, flags, stream


def frame_header(length: int, kind: int, flags: int, stream_id: int) -> bytes:
    """Return the nine bytes before a frame's payload."""
    return _HEADER.pack(length >> 8, length & 0xFF, kind, flags, stream_id)


def settings_frame(values: Iterable[tuple[int, int]]) -> bytes:
    """Return a SETTINGS frame with ``values``."""
    body = b"".join(struct.pack(">HI", key, value) for key, value in values)
    return frame_header(len(body), SETTINGS, 0, 0) + body


def window_update(stream_id: int, increment: int) -> bytes:
    """Return a WINDOW_UPDATE frame; stream 0 is the connection."""
    return frame_header(4, WINDOW_UPDATE, 0, stream_id) + increment.to_bytes(4, "big")


def rst_stream(stream_id: int, code: int) -> bytes:
    """Return a RST_STREAM frame."""
    return frame_header(4, RST_STREAM, 0, stream_id) + code.to_bytes(4, "big")


def goaway_frame(last_stream_id: int, code: int, debug: bytes = b"") -> bytes:
    """Return a GOAWAY frame."""
    body = last_stream_id.to_bytes(4, "big") + code.to_bytes(4, "big") + debug
    return frame_header(len(body), GOAWAY, 0, 0) + body


def ping_frame(payload: bytes, *, ack: bool) -> bytes:
    """Return a PING frame; ``payload`` is exactly eight bytes."""
    return frame_header(8, PING, FLAG_ACK if ack else 0, 0) + payload


def header_frames(stream_id: int, block: bytes, max_frame: int, *, end_stream: bool) -> bytes:
    """Return HEADERS and as many CONTINUATION frames as ``block`` needs."""
    end_flag = FLAG_END_STREAM if end_stream else 0
    if len(block) <= max_frame:
        return frame_header(len(block), HEADERS, FLAG_END_HEADERS | end_flag, stream_id) + block
    out = [frame_header(max_frame, HEADERS, end_flag, stream_id), block[:max_frame]]
    for offset in range(max_frame, len(block), max_frame):
        piece = block[offset : offset + max_frame]
        flags = FLAG_END_HEADERS if offset + max_frame >= len(block) else 0
        out += (frame_header(len(piece), CONTINUATION, flags, stream_id), piece)
    return b"".join(out)


# Exact matches of the static table (RFC 7541, appendix A) that a gRPC call uses.
_STATIC: Final[dict[tuple[bytes, bytes], bytes]] = {
    (b":method", b"POST"): b"\x83",
    (b":scheme", b"http"): b"\x86",
    (b":scheme", b"https"): b"\x87",
    (b":status", b"200"): b"\x88",
}
_STATIC_NAMES: Final[dict[bytes, int]] = {
    b":authority": 1,
    b":path": 4,
    b":status": 8,
    b"content-type": 31,
    b"user-agent": 58,
}


def _prefixed_int(value: int, prefix_bits: int, first: int) -> bytes:
    """Encode an integer as RFC 7541, section 5.1 does."""
    limit = (1 << prefix_bits) - 1
    if value < limit:
        return bytes((first | value,))
    out = bytearray((first | limit,))
    value -= limit
    while value >= 0x80:
        out.append(0x80 | (value & 0x7F))
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_headers(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Encode ``headers`` (names in lower case) into a block that needs no table state."""
    out: list[bytes] = []
    for name, value in headers:
        known = _STATIC.get((name, value))
        if known is not None:
            out.append(known)
            continue
        index = _STATIC_NAMES.get(name)
        if index is None:
            out += (b"\x00", _prefixed_int(len(name), 7, 0), name)
        else:
            out.append(_prefixed_int(index, 4, 0))
        out += (_prefixed_int(len(value), 7, 0), value)
    return b"".join(out)
