"""Go modules in programs: the build information that the Go linker writes (since Go 1.18).

Source: Go's ``debug/buildinfo``. The file comes from the tree and is not trusted: reads are
limited to what its headers name and to a fixed size.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

from boxwright.sbom.packages import Package, plain

_MAGIC = b"\xff Go buildinf:"
_INLINE_STRINGS = 0x2
_MAX_INFO_BYTES = 8 << 20
_MAX_SECTIONS = 4096
_MARKER_BYTES = 16
_HEADER_BYTES = 32


def modules(file: BinaryIO, source: str) -> Iterator[Package]:
    """Yield the modules that a program was built from; nothing if Go did not build it."""
    data = _build_info(file)
    if data is None:
        return
    version, rest = _string(data[_HEADER_BYTES:])
    info, _ = _string(rest)
    if len(info) <= 2 * _MARKER_BYTES:
        return
    go_version = plain(version.decode("utf-8", "replace")).removeprefix("go").partition(" ")[0]
    if go_version:
        yield Package("golang", "stdlib", go_version, source=source)
    text = info[_MARKER_BYTES:-_MARKER_BYTES].decode("utf-8", "replace")
    yield from _modules(text, source)


def _modules(text: str, source: str) -> Iterator[Package]:
    """Yield the modules of the text; a line ``=>`` replaces the one before it."""
    current: tuple[str, str] | None = None
    for line in [*text.splitlines(), "dep"]:
        kind, *fields = line.split("\t")
        if kind in {"mod", "dep"}:
            if current is not None:
                yield _package(*current, source)
            current = (fields[0], fields[1]) if len(fields) >= 2 else None
        elif kind == "=>" and len(fields) >= 2:
            current = (fields[0], fields[1])


def _package(path: str, version: str, source: str) -> Package:
    namespace, _, name = plain(path).rpartition("/")
    shown = "" if version == "(devel)" else plain(version)
    return Package("golang", name, shown, namespace=namespace, source=source)


def _string(data: bytes) -> tuple[bytes, bytes]:
    """Read a string with its length before it (a varint); return it and what follows."""
    length = shift = 0
    for number, byte in enumerate(data[:10]):
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            start = number + 1
            return data[start : start + length], data[start + length :]
    return b"", b""


def _build_info(file: BinaryIO) -> bytes | None:
    """Return the section with the build information of an ELF program."""
    head = file.read(64)
    if len(head) < 52 or head[:4] != b"\x7fELF" or head[4] not in {1, 2} or head[5] not in {1, 2}:
        return None
    order, wide = "<" if head[5] == 1 else ">", head[4] == 2
    if wide and len(head) < 64:
        return None
    table, size, count, names = (
        (*struct.unpack_from(order + "Q", head, 40), *struct.unpack_from(order + "HHH", head, 58))
        if wide
        else (
            *struct.unpack_from(order + "I", head, 32),
            *struct.unpack_from(order + "HHH", head, 46),
        )
    )
    least = 64 if wide else 40
    if not least <= size <= 4 * least or not 0 < count <= _MAX_SECTIONS or names >= count:
        return None
    raw = _read(file, table, size * count)
    if len(raw) < size * count:
        return None
    sections = [_section(raw[n * size : (n + 1) * size], order, wide=wide) for n in range(count)]
    text = _read(file, *sections[names][1:])
    for name, offset, length in sections:
        if text[name:].split(b"\0", 1)[0] == b".go.buildinfo":
            data = _read(file, offset, length)
            return data if _is_readable(data) else None
    return None


def _section(raw: bytes, order: str, *, wide: bool) -> tuple[int, int, int]:
    """Return name, offset and size of a section header."""
    (name,) = struct.unpack_from(order + "I", raw, 0)
    offset, length = struct.unpack_from(order + ("QQ" if wide else "II"), raw, 24 if wide else 16)
    return name, offset, length


def _read(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(min(offset, 1 << 62))
    return file.read(min(length, _MAX_INFO_BYTES))


def _is_readable(data: bytes) -> bool:
    """Return whether texts are in the section itself; older programs have pointers there."""
    return data[:14] == _MAGIC and len(data) > _HEADER_BYTES and bool(data[15] & _INLINE_STRINGS)
