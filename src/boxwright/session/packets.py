"""The messages of the file transfer protocol, coded by hand (fsutil.types ``Packet``, ``Stat``).

A context has as many of them as files, so they are built and read with byte operations; the
tests hold every function against the protobuf classes. Paths and link names are bytes:
Linux names need not be UTF-8, and the peers of this protocol don't require it either.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from google.protobuf.message import DecodeError

from boxwright.errors import BoxwrightError, Code
from boxwright.wire.pb import fsutil_pb2

MODE_DIR = 1 << 31
MODE_SYMLINK = 1 << 27
MODE_DEVICE = 1 << 26
MODE_FIFO = 1 << 25
MODE_SOCKET = 1 << 24
MODE_SETUID = 1 << 23
MODE_SETGID = 1 << 22
MODE_CHAR_DEVICE = 1 << 21
MODE_STICKY = 1 << 20
MODE_IRREGULAR = 1 << 19
MODE_TYPE = (
    MODE_DIR | MODE_SYMLINK | MODE_DEVICE | MODE_FIFO | MODE_SOCKET | MODE_CHAR_DEVICE
) | MODE_IRREGULAR

STAT, REQUEST, DATA, FIN, ERROR = range(5)

STAT_TAG = b"\x12"
"""How packets with a stat begin, in the usual order of fields."""
DATA_TAG = b"\x08\x02"
"""How packets with a piece of a file begin, in the usual order of fields."""
FIN_PACKET = b"\x08\x03"
LAST_STAT_PACKET = b""
"""A stat packet without a stat: the sender has named everything. All its fields are default."""

_USUAL_ID_BITS = 35
_NO_XATTRS: Mapping[bytes, bytes] = MappingProxyType({})


class MalformedPacketError(BoxwrightError):
    """A file transfer message that does not parse."""

    code = Code.HOSTILE_INPUT

    def __init__(self, what: str) -> None:
        super().__init__("malformed file transfer message", detail=what)


class Stat(NamedTuple):
    """One entry of a tree.

    Attributes:
        path: Relative to the root of the tree, slash separated.
        mode: Type and permissions in Go's ``os.FileMode`` bits (``MODE_*``), not the kernel's.
        size: Bytes; 0 for folders.
        mtime_ns: Modification time since the epoch.
        linkname: Target of a symlink, or path of the earlier entry that this hard link is.
    """

    path: bytes
    mode: int
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime_ns: int = 0
    linkname: bytes = b""
    devmajor: int = 0
    devminor: int = 0
    xattrs: Mapping[bytes, bytes] = _NO_XATTRS

    @property
    def is_dir(self) -> bool:
        """Whether it is a folder."""
        return self.mode & MODE_DIR != 0

    @property
    def is_symlink(self) -> bool:
        """Whether it is a symbolic link."""
        return self.mode & MODE_SYMLINK != 0

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file (a hard link to one included)."""
        return self.mode & MODE_TYPE == 0

    @property
    def is_hardlink(self) -> bool:
        """Whether it is another name of an earlier entry."""
        return bool(self.linkname) and not self.mode & MODE_SYMLINK


class Packet(NamedTuple):
    """A parsed packet: ``payload`` is a raw stat, file data, or an error text.

    For ``STAT``, None says that no stats follow; for ``DATA``, empty bytes end the file.
    """

    type: int
    id: int
    payload: bytes | None


def encode_varint(value: int) -> bytes:
    """Encode an unsigned (or, as two's complement of 64 bits, a negative) integer."""
    if 0 <= value < 0x80:
        return bytes((value,))
    if value < 0:
        value += 1 << 64
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode_varint(data: bytes, position: int) -> tuple[int, int]:
    """Decode an unsigned integer; return it and the position behind it.

    Raises:
        MalformedPacketError: it is cut off or longer than 64 bits.
    """
    result = shift = 0
    try:
        while True:
            byte = data[position]
            position += 1
            result |= (byte & 0x7F) << shift
            if byte < 0x80:
                return result & 0xFFFFFFFFFFFFFFFF, position
            shift += 7
            if shift > 63:
                break
    except IndexError:
        pass
    raise MalformedPacketError("bad varint")


def encode_stat(stat: Stat) -> bytes:
    """Encode a ``Stat`` message, fields in ascending order, defaults left out."""
    parts = [_bytes_field(b"\x0a", stat.path)] if stat.path else []
    for tag, number in (
        (b"\x10", stat.mode),
        (b"\x18", stat.uid),
        (b"\x20", stat.gid),
        (b"\x28", stat.size),
        (b"\x30", stat.mtime_ns),
    ):
        if number:
            parts.append(tag)
            parts.append(encode_varint(number))
    if stat.linkname:
        parts.append(_bytes_field(b"\x3a", stat.linkname))
    if stat.devmajor:
        parts.append(b"\x40" + encode_varint(stat.devmajor))
    if stat.devminor:
        parts.append(b"\x48" + encode_varint(stat.devminor))
    for key in sorted(stat.xattrs):
        entry = _bytes_field(b"\x0a", key) + _bytes_field(b"\x12", stat.xattrs[key])
        parts.append(_bytes_field(b"\x52", entry))
    return b"".join(parts)


def _bytes_field(tag: bytes, data: bytes) -> bytes:
    return tag + encode_varint(len(data)) + data


def split_path(raw: bytes) -> tuple[bytes, bytes]:
    """Split an encoded stat into its path and the encoded rest, without reading the rest.

    Raises:
        MalformedPacketError: the path is not first or is cut off.
    """
    if raw[:1] != b"\x0a":
        stat = decode_stat(raw)
        return stat.path, encode_stat(stat)[_path_field_length(stat.path) :]
    length, start = (raw[1], 2) if len(raw) > 1 and raw[1] < 0x80 else decode_varint(raw, 1)
    end = start + length
    if end > len(raw):
        raise MalformedPacketError("a path is cut off")
    return raw[start:end], raw[end:]


def _path_field_length(path: bytes) -> int:
    return len(_bytes_field(b"\x0a", path)) if path else 0


def join_path(path: bytes, rest: bytes) -> bytes:
    """Undo :func:`split_path`."""
    return _bytes_field(b"\x0a", path) + rest


_INTEGER_FIELDS = {2: "mode", 3: "uid", 4: "gid", 5: "size", 6: "mtime_ns"} | {
    8: "devmajor",
    9: "devminor",
}
_BYTES_FIELDS = {1: "path", 7: "linkname"}
_SIGNED = frozenset((5, 6, 8, 9))


def decode_stat(raw: bytes) -> Stat:
    """Decode a ``Stat`` message; unknown fields are skipped.

    The protobuf class is faster than we are, but takes no names that are not UTF-8.

    Raises:
        MalformedPacketError: it does not parse, or a number is out of range.
    """
    try:
        message = fsutil_pb2.Stat.FromString(raw)
    except DecodeError:
        return _decode_stat_fields(raw)
    xattrs = message.xattrs
    return Stat(
        message.path.encode(),
        message.mode,
        message.uid,
        message.gid,
        message.size,
        message.modTime,
        message.linkname.encode(),
        message.devmajor,
        message.devminor,
        {key.encode(): value for key, value in xattrs.items()} if xattrs else _NO_XATTRS,
    )


def _decode_stat_fields(raw: bytes) -> Stat:
    numbers: dict[str, int] = {}
    texts: dict[str, bytes] = {"path": b""}
    xattrs: dict[bytes, bytes] = {}
    position, end = 0, len(raw)
    while position < end:
        tag, position = decode_varint(raw, position)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, position = decode_varint(raw, position)
            if number in _SIGNED and value >> 63:
                value -= 1 << 64
            elif number not in _SIGNED:
                value &= 0xFFFFFFFF
            if name := _INTEGER_FIELDS.get(number):
                numbers[name] = value
        elif kind == 2:
            data, position = _read_bytes(raw, position)
            if name := _BYTES_FIELDS.get(number):
                texts[name] = data
            elif number == 10:
                key, value_bytes = _decode_entry(data)
                xattrs[key] = value_bytes
        else:
            position = _skip(kind, position, end)
    return Stat(**texts, **{"mode": 0, **numbers}, xattrs=xattrs or _NO_XATTRS)  # type: ignore[arg-type]


def _decode_entry(raw: bytes) -> tuple[bytes, bytes]:
    key = value = b""
    position = 0
    while position < len(raw):
        tag, position = decode_varint(raw, position)
        if tag & 7 != 2:
            raise MalformedPacketError("bad extended attribute")
        data, position = _read_bytes(raw, position)
        if tag >> 3 == 1:
            key = data
        elif tag >> 3 == 2:
            value = data
    return key, value


def _read_bytes(raw: bytes, position: int) -> tuple[bytes, int]:
    length, position = decode_varint(raw, position)
    if position + length > len(raw):
        raise MalformedPacketError("a field is cut off")
    return raw[position : position + length], position + length


def _skip(kind: int, position: int, end: int) -> int:
    """Step over a fixed-size field of an unknown number."""
    position += {1: 8, 5: 4}.get(kind, end + 1)
    if position > end:
        raise MalformedPacketError("bad field")
    return position


def stat_packet(raw_stat: bytes) -> bytes:
    """Wrap an encoded stat into a packet."""
    length = len(raw_stat)
    if length < 0x80:
        return b"\x12" + bytes((length,)) + raw_stat
    return b"\x12" + encode_varint(length) + raw_stat


def request_packet(file_id: int) -> bytes:
    """Ask for the data of the entry with this number (counted from 0 over all stats)."""
    return b"\x08\x01\x18" + encode_varint(file_id) if file_id else b"\x08\x01"


def data_packet(file_id: int, data: bytes) -> bytes:
    """Carry a piece of a file; empty ``data`` ends it."""
    head = b"\x08\x02\x18" + encode_varint(file_id) if file_id else b"\x08\x02"
    return b"".join((head, b"\x22", encode_varint(len(data)), data)) if data else head


def error_packet(text: str) -> bytes:
    """Tell the other side why the transfer ends."""
    return b"\x08\x04" + _bytes_field(b"\x22", text.encode("utf-8", "replace"))


def parse_packet(raw: bytes) -> Packet:
    """Parse a packet of any type.

    Raises:
        MalformedPacketError: it does not parse or its type is unknown.
    """
    if raw[:1] == b"\x12" and len(raw) > 2 and raw[1] == len(raw) - 2 < 0x80:
        return Packet(STAT, 0, raw[2:])
    if raw[:2] == DATA_TAG and (found := parse_data(raw)) is not None:
        return Packet(DATA, *found)
    kind = file_id = position = 0
    stat: bytes | None = None
    data = b""
    end = len(raw)
    while position < end:
        tag = raw[position]
        position += 1
        if tag == 0x12:
            stat, position = _read_bytes(raw, position)
        elif tag == 0x22:
            data, position = _read_bytes(raw, position)
        elif tag == 0x08:
            kind, position = decode_varint(raw, position)
        elif tag == 0x18:
            file_id, position = decode_varint(raw, position)
        else:
            raise MalformedPacketError(f"unknown field {tag >> 3}")
    if kind == STAT:
        return Packet(STAT, 0, stat)
    if kind > ERROR:
        raise MalformedPacketError(f"unknown packet type {kind}")
    return Packet(kind, file_id, data)


def parse_data(raw: bytes) -> tuple[int, bytes] | None:
    """Parse a packet that begins with :data:`DATA_TAG`, of which there are two for each file.

    Returns:
        The number of the file and a piece of it, empty at its end; None if the fields are not
        in their usual order or form.
    """
    file_id = shift = 0
    position, end = 2, len(raw)
    try:
        if position < end and raw[position] == 0x18:
            byte = 0x80
            while byte >= 0x80:
                position += 1
                byte = raw[position]
                file_id |= (byte & 0x7F) << shift
                shift += 7
            position += 1
        if position == end:
            return (file_id, b"") if shift <= _USUAL_ID_BITS else None
        if raw[position] != 0x22 or shift > _USUAL_ID_BITS:
            return None
        length = shift = 0
        byte = 0x80
        while byte >= 0x80:
            position += 1
            byte = raw[position]
            length |= (byte & 0x7F) << shift
            shift += 7
    except IndexError:
        return None
    position += 1
    return (file_id, raw[position:]) if position + length == end else None
