"""Tar headers as bytes: one entry to blocks and back (POSIX.1-2017 pax, GNU tar manual).

Invariant: :func:`pack_entry` is a pure function of the entry, and equals what Go's
``archive/tar`` writes for it, byte for byte.
"""

from __future__ import annotations

import functools
import struct
from typing import Final
from zlib import adler32

from boxwright.core.dataclass import dataclass, field
from boxwright.errors import BoxwrightError, Code

BLOCK: Final = 512
XATTR_PREFIX: Final = b"SCHILY.xattr."

_FIELDS = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
_OCTAL_7: Final = 0o7777777
_OCTAL_11: Final = 0o77777777777
_ZERO_8: Final = b"0000000\0"


class TarFormatError(BoxwrightError):
    """An archive that is malformed, truncated or uses a form that nobody may send."""

    code = Code.HOSTILE_INPUT

    def __init__(self, problem: str, *, offset: int = -1, name: bytes = b"") -> None:
        facts = [problem]
        if name:
            facts.append(f"entry {name[:200].decode('utf-8', 'backslashreplace')!r}")
        if offset >= 0:
            facts.append(f"at byte {offset} of the uncompressed archive")
        super().__init__("invalid tar archive", detail=", ".join(facts))
        self.problem = problem
        self.offset = offset
        self.name = name


class TarLimitError(BoxwrightError):
    """An archive over one of the reader's limits."""

    code = Code.LIMIT

    def __init__(self, what: str, *, limit: int, observed: int) -> None:
        super().__init__(
            "tar archive over a limit", detail=f"{what}: {observed} is more than {limit}"
        )
        self.limit = limit
        self.observed = observed


class EntryType:
    """Type flags of an entry (one byte each)."""

    FILE: Final = b"0"
    HARD_LINK: Final = b"1"
    SYMLINK: Final = b"2"
    CHARACTER: Final = b"3"
    BLOCK: Final = b"4"
    DIRECTORY: Final = b"5"
    FIFO: Final = b"6"


@dataclass(slots=True)
class Entry:
    """One member of an archive.

    Attributes:
        name: path as the archive spells it; a directory's ends with ``/`` when written.
        type: one of :class:`EntryType`.
        mode: permission bits with setuid, setgid and sticky (at most ``0o7777`` used).
        size: bytes of content that the reader will give (for a sparse file: with its holes).
        mtime: seconds since the epoch; ``mtime_nsec`` adds nanoseconds (0 to 999,999,999).
        linkname: target of a hard link or symlink, else empty.
        xattrs: extended attributes, name to value.
        pax: other records to write (or that were read), name to value.
        sparse: ``(offset, length)`` runs of data of a sparse file, or None.
        atime: access time in whole seconds if the archive carries one.
        uname: user name; ``gname``: group name. Layers leave both empty.
    """

    name: bytes
    type: bytes = EntryType.FILE
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime: int = 0
    mtime_nsec: int = 0
    linkname: bytes = b""
    dev_major: int = 0
    dev_minor: int = 0
    uname: bytes = b""
    gname: bytes = b""
    xattrs: dict[str, bytes] = field(default_factory=dict)
    pax: dict[bytes, bytes] = field(default_factory=dict)
    sparse: list[tuple[int, int]] | None = None
    atime: int | None = None


def pack_entry(entry: Entry) -> bytes:
    """Return the header blocks of ``entry``, a PAX header before them where one is needed.

    A name over 100 bytes goes into the ustar prefix and name fields if it can be divided
    and nothing else needs PAX. Otherwise the records are those that Go would add: long and
    non-ASCII names, numbers over their octal field, and nanoseconds if ``mtime_nsec`` is
    set (layers never set it).
    """
    name, linkname = entry.name, entry.linkname
    if (
        len(name) <= 100
        and len(linkname) <= 100
        and not entry.xattrs
        and not entry.pax
        and entry.uid <= _OCTAL_7
        and entry.gid <= _OCTAL_7
        and entry.size <= _OCTAL_11
        and 0 <= entry.mtime <= _OCTAL_11
        and not entry.mtime_nsec
        and name.isascii()
        and linkname.isascii()
        and not entry.uname
        and not entry.gname
    ):
        return _pack_block(entry, name, b"")
    records = _pax_records(entry)
    if records.keys() <= {b"path"} and name.isascii():
        split = _split_ustar(name)
        if split is not None:
            return _pack_block(entry, split[1], split[0])
    if not records:
        return _pack_block(entry, name, b"")
    return pack_pax(name, records) + _pack_block(entry, name, b"")


def pack_pax(name: bytes, records: dict[bytes, bytes]) -> bytes:
    """Return an extended header (type ``x``) for the entry ``name`` with ``records``.

    Raises:
        TarFormatError: a key is empty or contains ``=`` or NUL.
    """
    body = b"".join(_pax_record(key, records[key]) for key in sorted(records))
    directory, slash, base = name.rpartition(b"/")
    label = _clean(directory + slash + b"PaxHeaders.0/" + base)
    label = label.translate(None, _NON_ASCII)[:100].rstrip(b"/")
    header = _FIELDS.pack(
        label,
        _ZERO_8,
        _ZERO_8,
        _ZERO_8,
        b"%011o\0" % len(body),
        b"00000000000\0",
        b" " * 8,
        b"x",
        b"",
        b"ustar\x0000",
        b"",
        b"",
        b"",
        b"",
        b"",
    )
    return _with_checksum(header) + body + b"\0" * (-len(body) % BLOCK)


_NON_ASCII = bytes(range(128, 256)) + b"\0"


def _pax_records(entry: Entry) -> dict[bytes, bytes]:
    records = dict(entry.pax)
    for key, value in entry.xattrs.items():
        records[XATTR_PREFIX + key.encode("utf-8", "surrogateescape")] = value
    texts = (
        (b"path", entry.name, 100),
        (b"linkpath", entry.linkname, 100),
        (b"uname", entry.uname, 32),
        (b"gname", entry.gname, 32),
    )
    numbers = (
        (b"uid", entry.uid, _OCTAL_7),
        (b"gid", entry.gid, _OCTAL_7),
        (b"size", entry.size, _OCTAL_11),
    )
    records |= {key: text for key, text, size in texts if len(text) > size or not text.isascii()}
    records |= {key: b"%d" % number for key, number, most in numbers if number > most}
    if entry.mtime_nsec or not 0 <= entry.mtime <= _OCTAL_11:
        records[b"mtime"] = _pax_time(entry.mtime, entry.mtime_nsec)
    return records


def _pax_time(seconds: int, nanoseconds: int) -> bytes:
    if not nanoseconds:
        return b"%d" % seconds
    sign = b""
    if seconds < 0:
        sign, seconds, nanoseconds = b"-", -(seconds + 1), 1_000_000_000 - nanoseconds
    return sign + (b"%d.%09d" % (seconds, nanoseconds)).rstrip(b"0")


def _pax_record(key: bytes, value: bytes) -> bytes:
    if not key or b"=" in key or b"\0" in key:
        raise TarFormatError(f"key {key[:100]!r} can't be a PAX record")
    size = len(key) + len(value) + 3
    size += len(str(size))
    record = b"%d %s=%s\n" % (size, key, value)
    if len(record) != size:
        record = b"%d %s=%s\n" % (len(record), key, value)
    return record


def _pack_block(entry: Entry, name: bytes, prefix: bytes) -> bytes:
    kind = entry.type
    device = kind in {EntryType.CHARACTER, EntryType.BLOCK}
    header = _FIELDS.pack(
        _text(name, 100),
        b"%07o\0" % entry.mode,
        _octal(entry.uid, 7),
        _octal(entry.gid, 7),
        _octal(entry.size, 11),
        _octal(entry.mtime, 11),
        b"        ",
        kind,
        _text(entry.linkname, 100),
        b"ustar\x0000",
        _text(entry.uname, 32),
        _text(entry.gname, 32),
        _octal(entry.dev_major, 7) if device else _ZERO_8,
        _octal(entry.dev_minor, 7) if device else _ZERO_8,
        prefix,
    )
    return _with_checksum(header)


class PlainHeaders:
    """Headers of regular files that need one block, made of the few fields that differ.

    Invariant: :meth:`pack` returns what :func:`pack_entry` returns for the same file.
    """

    def __init__(self) -> None:
        # by mode, uid and gid: these fields as bytes, and the sum of all but what differs
        self._fixed: dict[tuple[int, int, int], tuple[bytes, int]] = {}

    def pack(
        self, name: bytes, mode: int, uid: int, gid: int, size: int, mtime: int
    ) -> bytes | None:
        """Return the header; None where it takes more than one plain block.

        Args:
            name: path as the archive spells it.
            mode: permission bits.
            uid: owner.
            gid: group.
            size: bytes of content.
            mtime: seconds since the epoch.
        """
        if len(name) > 100 or size > _OCTAL_11 or not 0 <= mtime <= _OCTAL_11:
            return None
        if uid > _OCTAL_7 or gid > _OCTAL_7 or not name.isascii():
            return None
        fixed = self._fixed.get((mode, uid, gid))
        if fixed is None:
            block = _pack_block(Entry(b"", EntryType.FILE, mode, uid, gid), b"", b"")
            total = sum(block[100:124]) + sum(_PLAIN_TAIL) + 8 * ord(" ")
            fixed = self._fixed[mode, uid, gid] = (block[100:124], total)
        numbers = b"%011o\0%011o\0" % (size, mtime)
        # The low half of an Adler-32 is one more than the sum of so few bytes (RFC 1950).
        checksum = fixed[1] + (adler32(name) & 0xFFFF) + (adler32(numbers) & 0xFFFF) - 2
        return b"%b%b%b%06o\0 %b" % (
            name.ljust(100, b"\0"),
            fixed[0],
            numbers,
            checksum,
            _PLAIN_TAIL,
        )


def _text(text: bytes, size: int) -> bytes:
    """Return what the field of ``size`` bytes holds of ``text``."""
    if not text.isascii():
        text = text.translate(None, _NON_ASCII)
    if len(text) > size and text[size - 1 : size] == b"/":
        # some readers take a file whose cut name ends with a slash for a directory
        return text[: size - 1].rstrip(b"/")
    return text


def _octal(value: int, digits: int) -> bytes:
    if 0 <= value < 1 << (3 * digits):
        return b"%0*o\0" % (digits, value)
    return b"0" * digits + b"\0"  # the PAX record carries the value


def _with_checksum(header: bytes) -> bytes:
    # halves whose sums fit into the low half of an Adler-32, which is one more (RFC 1950)
    total = (adler32(header[:256]) & 0xFFFF) + (adler32(header[256:]) & 0xFFFF) - 2
    return header[:148] + b"%06o\0 " % total + header[156:]


_PLAIN_TAIL: Final = _pack_block(Entry(b""), b"", b"")[156:]


def _split_ustar(name: bytes) -> tuple[bytes, bytes] | None:
    length = len(name)
    if length <= 100:
        return None
    if length > 155 + 1:
        length = 155 + 1
    elif name.endswith(b"/"):
        length -= 1
    cut = name.rfind(b"/", 0, length)
    rest, before = len(name) - cut - 1, cut
    if cut <= 0 or rest > 100 or rest == 0 or before > 155:
        return None
    return name[:cut], name[cut + 1 :]


def _clean(path: bytes) -> bytes:
    """Lexically simplify ``path`` as Go's ``path.Join`` does."""
    parts: list[bytes] = []
    rooted = path.startswith(b"/")
    for part in path.split(b"/"):
        if part in {b"", b"."}:
            continue
        if part == b".." and parts and parts[-1] != b"..":
            parts.pop()
        elif part != b".." or not rooted:
            parts.append(part)
    return (b"/" if rooted else b"") + b"/".join(parts)


def parse_fields(block: bytes) -> tuple[bytes, ...]:
    """Unpack the fifteen fields of a header block (512 bytes)."""
    return _FIELDS.unpack(block)


@functools.lru_cache(maxsize=1024)
def parse_repeated_number(raw: bytes) -> int:
    """Read a number that most entries of an archive share: mode, owner, time."""
    return parse_number(raw)


def parse_number(raw: bytes) -> int:
    """Read an octal or GNU base-256 number.

    Raises:
        ValueError: neither form.
    """
    digits = raw[:-1]
    if digits.isdigit() and raw[-1] in b"\0 ":
        return int(digits, 8)
    if raw[0] & 0x80:
        value = int.from_bytes(raw, "big", signed=False) & ((1 << (8 * len(raw) - 1)) - 1)
        if raw[0] & 0x40:  # two's complement without the marker bit
            value -= 1 << (8 * len(raw) - 1)
        if not -(1 << 63) <= value < 1 << 63:
            raise ValueError("number over 63 bits")
        return value
    text = raw.strip(b" \0")
    if not text:
        return 0
    cut = text.find(b"\0")
    if cut >= 0:
        text = text[:cut]
    if not text.isdigit():  # int() would take signs, underscores and prefixes
        raise ValueError("not an octal number")
    return int(text, 8)
