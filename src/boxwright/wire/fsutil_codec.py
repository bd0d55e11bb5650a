"""fsutil packets at the level of bytes (messages ``fsutil.types.Packet`` and ``Stat``).

Unlike the protobuf classes this codec keeps names that are not valid UTF-8: BuildKit's Go
code neither checks nor changes them, and a Linux file name is any bytes. It also leaves file
data in place instead of copying it into a message object. Measured: upb codes a stat twice as
fast as Python can, so listings go through the protobuf classes where their names allow it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from google.protobuf.message import DecodeError

from boxwright.errors import InvalidInputError
from boxwright.wire.pb import fsutil_pb2

Buffer = bytes | bytearray | memoryview

STAT: Final = 0
REQ: Final = 1
DATA: Final = 2
FIN: Final = 3
ERR: Final = 4

# Go's os.FileMode bits, as they travel in Stat.mode.
MODE_DIR: Final = 1 << 31
MODE_SYMLINK: Final = 1 << 27
MODE_DEVICE: Final = 1 << 26
MODE_NAMED_PIPE: Final = 1 << 25
MODE_SOCKET: Final = 1 << 24
MODE_SETUID: Final = 1 << 23
MODE_SETGID: Final = 1 << 22
MODE_CHAR_DEVICE: Final = 1 << 21
MODE_STICKY: Final = 1 << 20
MODE_IRREGULAR: Final = 1 << 19
MODE_TYPE: Final = (
    MODE_DIR
    | MODE_SYMLINK
    | MODE_NAMED_PIPE
    | MODE_SOCKET
    | MODE_DEVICE
    | MODE_CHAR_DEVICE
    | MODE_IRREGULAR
)

_MASK64: Final = (1 << 64) - 1
_SIGN64: Final = 1 << 63

_PB_PACKET: Final = fsutil_pb2.Packet
_PB_STAT: Final = fsutil_pb2.Stat
_KIND_TAG: Final = 0x08
FIN_PACKET: Final = b"\x08\x03"
STATS_END_PACKET: Final = b""


class FileStat(NamedTuple):
    """One entry of a listing.

    Attributes:
        path: relative, slash-separated, as bytes of the sender's file system.
        mode: Go's FileMode bits (``MODE_*`` and the nine permission bits).
        uid: owner.
        gid: group.
        size: bytes.
        mod_time_ns: nanoseconds since 1970.
        linkname: target of a symlink, or the earlier path that this is a hard link to.
        devmajor: of a device.
        devminor: of a device.
        xattrs: extended attributes.
    """

    path: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mod_time_ns: int
    linkname: bytes = b""
    devmajor: int = 0
    devminor: int = 0
    xattrs: dict[bytes, bytes] = {}  # noqa: RUF012 - a shared empty default, never changed


class Packet(NamedTuple):
    """One packet; ``data`` is a view into what was decoded."""

    kind: int
    stat: FileStat | None
    id: int
    data: memoryview


_EMPTY: Final = memoryview(b"")


class MalformedPacketError(InvalidInputError):
    """Bytes that are no fsutil packet."""


def _varint(value: int) -> bytes:
    if value < 0x80:
        return b"%c" % value
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_stat(stat: FileStat) -> bytes:
    """Return the bytes of a ``Stat`` message, whatever bytes its names have."""
    path, mode, uid, gid, size, mod_time_ns, linkname, devmajor, devminor, xattrs = stat
    out = bytearray()
    if path:
        out += b"\x0a" + _varint(len(path)) + path
    if mode:
        out += b"\x10" + _varint(mode)
    if uid:
        out += b"\x18" + _varint(uid)
    if gid:
        out += b"\x20" + _varint(gid)
    if size:
        out += b"\x28" + _varint(size & _MASK64)
    if mod_time_ns:
        out += b"\x30" + _varint(mod_time_ns & _MASK64)
    if linkname:
        out += b"\x3a" + _varint(len(linkname)) + linkname
    if devmajor:
        out += b"\x40" + _varint(devmajor & _MASK64)
    if devminor:
        out += b"\x48" + _varint(devminor & _MASK64)
    for key in sorted(xattrs):
        value = xattrs[key]
        item = b"\x0a" + _varint(len(key)) + key + b"\x12" + _varint(len(value)) + value
        out += b"\x52" + _varint(len(item)) + item
    return bytes(out)


def encode_stat_packet(stat: FileStat) -> bytes:
    """Return a PACKET_STAT with ``stat``; :data:`STATS_END_PACKET` ends the listing."""
    if not stat.xattrs:
        try:
            message = _PB_STAT(
                path=stat.path.decode(),
                mode=stat.mode,
                uid=stat.uid,
                gid=stat.gid,
                size=stat.size,
                modTime=stat.mod_time_ns,
                linkname=stat.linkname.decode(),
                devmajor=stat.devmajor,
                devminor=stat.devminor,
            )
        except UnicodeDecodeError:
            pass
        else:
            return _PB_PACKET(stat=message).SerializeToString()
    body = encode_stat(stat)
    return b"\x12" + _varint(len(body)) + body


def encode_request(file_id: int) -> bytes:
    """Return a PACKET_REQ for the ``file_id``-th entry."""
    return b"\x08\x01\x18" + _varint(file_id) if file_id else b"\x08\x01"


def encode_data_header(file_id: int, size: int) -> bytes:
    """Return what precedes ``size`` bytes of data in a PACKET_DATA.

    Send it as ``stream.write(encode_data_header(id, len(data)), data)``: the data is not
    copied. With size 0 the packet ends the file.
    """
    head = b"\x08\x02\x18" + _varint(file_id) if file_id else b"\x08\x02"
    return head + b"\x22" + _varint(size) if size else head


def encode_error(text: str) -> bytes:
    """Return a PACKET_ERR."""
    raw = text.encode("utf-8", "replace")
    return b"\x08\x04\x22" + _varint(len(raw)) + raw if raw else b"\x08\x04"


def decode_packet(data: Buffer) -> Packet:
    """Decode a packet; unknown fields are skipped.

    Raises:
        MalformedPacketError: truncated, or a field of a wrong wire type.
    """
    view = memoryview(data)
    if len(view) < 2 or view[0] != _KIND_TAG or view[1] != DATA:
        try:
            return _from_message(_PB_PACKET.FromString(bytes(view)))
        except DecodeError:
            pass  # malformed, or a name that is not UTF-8
    return _decode_any(view)


def _from_message(packet: fsutil_pb2.Packet) -> Packet:
    stat: FileStat | None = None
    if packet.HasField("stat"):
        raw = packet.stat
        stat = FileStat(
            raw.path.encode(),
            raw.mode,
            raw.uid,
            raw.gid,
            raw.size,
            raw.modTime,
            raw.linkname.encode(),
            raw.devmajor,
            raw.devminor,
            {key.encode(): value for key, value in raw.xattrs.items()} if raw.xattrs else {},
        )
    return Packet(packet.type, stat, packet.ID, memoryview(packet.data))


def _decode_any(view: memoryview) -> Packet:
    kind = file_id = 0
    stat: FileStat | None = None
    payload = _EMPTY
    try:
        offset, size = 0, len(view)
        while offset < size:
            tag = view[offset]
            offset += 1
            if tag == 0x22:
                payload, offset = _read_bytes(view, offset)
            elif tag == 0x08:
                kind, offset = _read_varint(view, offset)
            elif tag == 0x18:
                file_id, offset = _read_varint(view, offset)
                file_id &= 0xFFFFFFFF
            elif tag == 0x12:
                body, offset = _read_bytes(view, offset)
                stat = _decode_stat(body)
            else:
                offset = _skip(view, offset - 1)
    except IndexError:
        raise MalformedPacketError("malformed fsutil packet", detail="truncated") from None
    return Packet(kind, stat, file_id, payload)


def _decode_stat(view: memoryview) -> FileStat:
    path = linkname = b""
    numbers = [0] * 10
    xattrs: dict[bytes, bytes] | None = None
    offset, size = 0, len(view)
    while offset < size:
        tag = view[offset]
        offset += 1
        if tag in _STAT_NUMBERS:
            value = view[offset]
            offset += 1
            if value >= 0x80:
                value, offset = _read_varint(view, offset - 1)
            numbers[tag >> 3] = value
        elif tag == 0x0A:
            raw, offset = _read_bytes(view, offset)
            path = bytes(raw)
        elif tag == 0x3A:
            raw, offset = _read_bytes(view, offset)
            linkname = bytes(raw)
        elif tag == 0x52:
            raw, offset = _read_bytes(view, offset)
            if xattrs is None:
                xattrs = {}
            key, value_bytes = _decode_xattr(raw)
            xattrs[key] = value_bytes
        else:
            offset = _skip(view, offset - 1)
    return FileStat(
        path,
        numbers[2] & 0xFFFFFFFF,
        numbers[3] & 0xFFFFFFFF,
        numbers[4] & 0xFFFFFFFF,
        _signed(numbers[5]),
        _signed(numbers[6]),
        linkname,
        _signed(numbers[8]),
        _signed(numbers[9]),
        {} if xattrs is None else xattrs,
    )


_STAT_NUMBERS: Final = frozenset((0x10, 0x18, 0x20, 0x28, 0x30, 0x40, 0x48))


def _decode_xattr(view: memoryview) -> tuple[bytes, bytes]:
    key = value = b""
    offset, size = 0, len(view)
    while offset < size:
        tag = view[offset]
        if tag in {0x0A, 0x12}:
            raw, offset = _read_bytes(view, offset + 1)
            if tag == 0x0A:
                key = bytes(raw)
            else:
                value = bytes(raw)
        else:
            offset = _skip(view, offset)
    return key, value


def _signed(value: int) -> int:
    return value - (1 << 64) if value & _SIGN64 else value


def _read_varint(view: memoryview, offset: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = view[offset]
        offset += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _MASK64, offset
        shift += 7
        if shift > 63:
            raise MalformedPacketError("malformed fsutil packet", detail="overlong varint")


def _read_bytes(view: memoryview, offset: int) -> tuple[memoryview, int]:
    size = view[offset]
    offset += 1
    if size >= 0x80:
        size, offset = _read_varint(view, offset - 1)
    end = offset + size
    if end > len(view):
        raise MalformedPacketError("malformed fsutil packet", detail="truncated")
    return view[offset:end], end


def _skip(view: memoryview, offset: int) -> int:
    """Return the offset behind the unknown field whose tag is at ``offset``."""
    tag, offset = _read_varint(view, offset)
    wire_type = tag & 7
    if tag >> 3 == 0:
        raise MalformedPacketError("malformed fsutil packet", detail="field number 0")
    if wire_type == 0:
        return _read_varint(view, offset)[1]
    if wire_type == 2:
        return _read_bytes(view, offset)[1]
    if wire_type in {1, 5}:
        offset += 8 if wire_type == 1 else 4
        if offset > len(view):
            raise MalformedPacketError("malformed fsutil packet", detail="truncated")
        return offset
    raise MalformedPacketError("malformed fsutil packet", detail=f"wire type {wire_type}")
