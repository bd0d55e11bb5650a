"""Read an archive as a stream, one entry after the other, with bounded memory.

The reader trusts nothing: header checksums are verified, extended headers and sparse maps
are bounded, sizes never go negative, and a truncated archive is an error, not an end.
Formats: V7, ustar, PAX (local and global headers), GNU (long names, base-256 numbers),
sparse files in GNU's old form and in PAX forms 0.0, 0.1 and 1.0.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Protocol

from boxwright.fsutil.tar.header import (
    BLOCK,
    XATTR_PREFIX,
    Entry,
    EntryType,
    TarFormatError,
    TarLimitError,
    parse_fields,
    parse_number,
    parse_repeated_number,
)
from boxwright.fsutil.tar.sparse import MAX_RUNS, check_runs, parse_decimal, runs_from_pax

_CHUNK = 1 << 20
_MAX_EXTENDED = 1 << 20
_ZERO_BLOCK = bytes(BLOCK)
_EXTENDED = frozenset((b"x", b"g", b"L", b"K"))
_HEADER_ONLY = frozenset((b"1", b"2", b"3", b"4", b"5", b"6"))


class TarStream(Protocol):
    """What an archive is read from: a file, or anything with its ``read``."""

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes, empty only at the end."""
        ...


class TarReader:
    """Iterate over the entries of ``stream``; the content of the newest one is readable.

    Not thread safe. The stream is read in chunks of 1 MiB and never closed by the reader.

    Args:
        stream: the uncompressed archive.
        max_entries: more entries than this are refused.
        max_bytes: more content than this, holes included, is refused.
    """

    def __init__(
        self,
        stream: TarStream,
        *,
        max_entries: int = 10_000_000,
        max_bytes: int = 1 << 50,
    ) -> None:
        self._stream = stream
        self._buffer = b""
        self._at = 0  # position in the buffer
        self._base = 0  # archive offset of the buffer's first byte
        self._left = 0  # stored content bytes of this entry that nobody has taken
        self._padding = 0
        self._entry: Entry | None = None
        self._globals: dict[bytes, bytes] = {}
        self._max_entries, self._max_bytes = max_entries, max_bytes
        self.entries = 0
        self.content_bytes = 0

    def __iter__(self) -> Iterator[Entry]:
        """Yield entries; content that was not taken is skipped."""
        while (entry := self.next()) is not None:
            yield entry

    @property
    def offset(self) -> int:
        """Bytes of the archive that were consumed so far."""
        return self._base + self._at

    def next(self) -> Entry | None:
        """Advance to the next entry, or return None at the end of the archive.

        Raises:
            TarFormatError: a header is malformed or the archive is truncated.
            TarLimitError: more entries or bytes than allowed.
        """
        if self._left or self._padding:
            self._skip(self._left)
            # Programs exist that end the last file without padding, and nobody minds (Go's
            # and GNU's readers): umoci's layers of one file are in many registries.
            self._skip(self._padding, at_end_ok=True)
            self._left = self._padding = 0
        pax: dict[bytes, bytes] = {}
        runs: list[bytes] = []
        long_name = long_link = b""
        while True:
            block = self._header_block()
            if block is None:
                if pax or long_name or long_link:
                    raise self._bad("extended header with no entry after it")
                return None
            kind = block[156:157]
            if kind in _EXTENDED:
                body = self._extended(block)
                if kind == b"x":
                    self._parse_pax(body, pax, runs)
                elif kind == b"g":
                    self._parse_pax(body, self._globals, [])
                elif kind == b"L":
                    long_name = body.split(b"\0", 1)[0]
                else:
                    long_link = body.split(b"\0", 1)[0]
                continue
            entry = self._parse_entry(block)
            if long_name:
                entry.name = long_name
            if long_link:
                entry.linkname = long_link
            if pax or self._globals:
                self._apply_pax(entry, {**self._globals, **pax} if self._globals else pax, runs)
            return self._begin(entry, block)

    def chunks(self) -> Iterator[memoryview]:
        """Yield the stored content of the newest entry in pieces of at most 1 MiB.

        For a sparse entry these are the bytes of its runs one after the other.
        """
        while self._left:
            if self._at >= len(self._buffer):
                self._fill()
            piece = memoryview(self._buffer)[self._at : self._at + self._left]
            self._at += len(piece)
            self._left -= len(piece)
            yield piece

    def read(self) -> bytes:
        """Return the rest of the newest entry's stored content as one value."""
        return b"".join(self.chunks())

    def extract_to(self, fd: int) -> None:
        """Write the newest entry's content to ``fd``, leaving the holes of a sparse file."""
        entry = self._entry
        if entry is None or entry.sparse is None:
            for piece in self.chunks():
                _write_all(fd, piece)
            return
        runs = iter(entry.sparse)
        position, room = 0, 0
        for piece in self.chunks():
            taken = 0
            while taken < len(piece):
                while not room:
                    position, room = next(runs)
                part = piece[taken : taken + room]
                _pwrite_all(fd, part, position)
                position, room, taken = position + len(part), room - len(part), taken + len(part)
        os.ftruncate(fd, entry.size)

    def drain(self) -> None:
        """Read the stream to its end (what follows the archive's end is ignored)."""
        self._at = len(self._buffer)
        while self._more():
            self._at = len(self._buffer)

    # -- entries ---------------------------------------------------------------------

    def _header_block(self) -> bytes | None:
        block = self._take(BLOCK, at_end_ok=True)
        if not block:
            return None
        if block == _ZERO_BLOCK:
            # the end is two zero blocks; a lone one before the end of file is tolerated
            second = self._take(BLOCK, at_end_ok=True)
            if second and second != _ZERO_BLOCK:
                raise self._bad("a zero block in the middle")
            return None
        try:
            want = parse_number(block[148:156])
        except ValueError:
            raise self._bad("unreadable header checksum") from None
        got = sum(block[:148]) + sum(block[156:]) + 256
        if got != want and _signed_sum(block) != want:
            raise self._bad(f"header checksum is {got}, the header says {want}")
        return block

    def _parse_entry(self, block: bytes) -> Entry:
        (name, mode, uid, gid, size, mtime, _, kind, link, magic, uname, gname, major, minor,
         prefix) = parse_fields(block)  # fmt: skip
        name = name.split(b"\0", 1)[0]
        try:
            entry = Entry(
                name,
                EntryType.FILE if kind == b"\0" else kind,
                parse_repeated_number(mode) & 0o7777,
                parse_repeated_number(uid),
                parse_repeated_number(gid),
                parse_number(size),
                parse_repeated_number(mtime),
                0,
                link.split(b"\0", 1)[0],
            )
            if magic[:5] == b"ustar":
                entry.uname = uname.split(b"\0", 1)[0]
                entry.gname = gname.split(b"\0", 1)[0]
                if kind in {b"3", b"4"}:
                    entry.dev_major, entry.dev_minor = parse_number(major), parse_number(minor)
        except ValueError as error:
            raise self._bad(str(error), name=name) from None
        if magic[:6] == b"ustar\0" and prefix[0]:
            entry.name = prefix.split(b"\0", 1)[0] + b"/" + name
        if magic == b"ustar  \0" and kind == b"S":
            entry.sparse = []  # filled in by _begin: more blocks may follow the header
        return entry

    def _begin(self, entry: Entry, block: bytes) -> Entry:
        """Check the finished entry and set up its content."""
        if block[156:157] == b"\0" and entry.name.endswith(b"/"):
            entry.type = EntryType.DIRECTORY  # V7 had no other way to say it
        if min(entry.size, entry.uid, entry.gid, entry.dev_major, entry.dev_minor) < 0:
            raise self._bad("negative number in the header", name=entry.name)
        if b"\0" in entry.name or b"\0" in entry.linkname:
            raise self._bad("NUL in a name", name=entry.name)
        kind = entry.type
        if kind == b"S":
            self._old_gnu_sparse(entry, block)
        elif kind in {EntryType.FILE, b"7"}:
            entry.type = EntryType.FILE
            self._begin_file(entry)
        elif kind in _HEADER_ONLY:
            # POSIX lets a hard link carry content; nobody does, and we would not use it
            self._left = entry.size if kind == EntryType.HARD_LINK else 0
            entry.size = 0
        else:
            raise self._bad(f"unsupported entry type {kind!r}", name=entry.name)
        self._padding = -self._left % BLOCK
        self.entries += 1
        self.content_bytes += entry.size
        if self.entries > self._max_entries:
            raise TarLimitError("entries", limit=self._max_entries, observed=self.entries)
        if self.content_bytes > self._max_bytes:
            raise TarLimitError("bytes", limit=self._max_bytes, observed=self.content_bytes)
        self._entry = entry
        return entry

    def _begin_file(self, entry: Entry) -> None:
        if entry.sparse is None:
            self._left = entry.size
            return
        if b"GNU.sparse.major" in entry.pax:
            self._pax_sparse_1(entry)
        else:
            self._left = sum(length for _, length in entry.sparse)
        entry.pax = {k: v for k, v in entry.pax.items() if not k.startswith(b"GNU.sparse.")}

    # -- extended headers ------------------------------------------------------------

    def _extended(self, block: bytes) -> bytes:
        try:
            size = parse_number(block[124:136])
        except ValueError as error:
            raise self._bad(str(error)) from None
        if not 0 <= size <= _MAX_EXTENDED:
            raise TarLimitError("extended header bytes", limit=_MAX_EXTENDED, observed=size)
        body = self._take(size)
        self._skip(-size % BLOCK)
        return body

    def _parse_pax(self, body: bytes, into: dict[bytes, bytes], runs: list[bytes]) -> None:
        at = 0
        while at < len(body):
            space = body.find(b" ", at, at + 8)
            digits = body[at:space]
            if space < 0 or not digits.isdigit():
                raise self._bad("PAX record without a length")
            end = at + int(digits)
            equals = body.find(b"=", space, end)
            if end > len(body) or equals <= space + 1 or body[end - 1 : end] != b"\n":
                raise self._bad("malformed PAX record")
            key, value = body[space + 1 : equals], body[equals + 1 : end - 1]
            at = end
            if key in {b"GNU.sparse.offset", b"GNU.sparse.numbytes"}:
                runs.append(value)
                if len(runs) > 2 * MAX_RUNS:
                    raise TarLimitError("sparse runs", limit=MAX_RUNS, observed=len(runs) // 2)
            elif b"\0" in key:
                raise self._bad("NUL in a PAX key")
            elif value or key.startswith(XATTR_PREFIX):
                into[key] = value
            else:
                into.pop(key, None)

    def _apply_pax(self, entry: Entry, records: dict[bytes, bytes], runs: list[bytes]) -> None:
        try:
            for key, value in records.items():
                if key.startswith(XATTR_PREFIX):
                    name = key[len(XATTR_PREFIX) :].decode("utf-8", "surrogateescape")
                    entry.xattrs[name] = value
                elif key == b"path":
                    entry.name = value
                elif key == b"linkpath":
                    entry.linkname = value
                elif key == b"size":
                    entry.size = parse_decimal(value)
                elif key == b"uid":
                    entry.uid = parse_decimal(value)
                elif key == b"gid":
                    entry.gid = parse_decimal(value)
                elif key == b"mtime":
                    entry.mtime, entry.mtime_nsec = _parse_time(value)
                elif key == b"atime":
                    entry.atime = _parse_time(value)[0]
                elif key == b"uname":
                    entry.uname = value
                elif key == b"gname":
                    entry.gname = value
                else:
                    entry.pax[key] = value
            runs_from_pax(entry, runs)
        except ValueError as error:
            raise self._bad(str(error), name=entry.name) from None

    # -- sparse files ----------------------------------------------------------------

    def _old_gnu_sparse(self, entry: Entry, block: bytes) -> None:
        """Read the map in the header of GNU's old form and in the blocks after it."""
        stored = entry.size
        try:
            entry.size = parse_number(block[483:495])
            runs = _gnu_runs(block[386:482])
            more = block[482]
            while more:
                extension = self._take(BLOCK)
                runs += _gnu_runs(extension[:504])
                more = extension[504]
                if len(runs) > MAX_RUNS:
                    raise TarLimitError("sparse runs", limit=MAX_RUNS, observed=len(runs))
            entry.sparse = check_runs(runs, entry.size, stored)
        except ValueError as error:
            raise self._bad(str(error), name=entry.name) from None
        entry.type = EntryType.FILE
        self._left = stored

    def _pax_sparse_1(self, entry: Entry) -> None:
        """Read the map that form 1.0 puts in front of the content, in whole blocks."""
        stored = entry.size
        text = b""
        numbers: list[int] = []
        wanted = 1  # the count of runs, then an offset and a length for each
        try:
            while len(numbers) < wanted:
                if stored < BLOCK or len(text) > 20:
                    raise ValueError("sparse map is cut off")
                *lines, text = (text + self._take(BLOCK)).split(b"\n")
                stored -= BLOCK
                for line in lines:
                    if len(numbers) < wanted:
                        numbers.append(parse_decimal(line))
                        wanted = 1 + 2 * numbers[0]
                if wanted > 2 * MAX_RUNS:
                    raise TarLimitError("sparse runs", limit=MAX_RUNS, observed=wanted // 2)
            entry.size = parse_decimal(entry.pax.get(b"GNU.sparse.realsize", b""))
            pairs = list(zip(numbers[1::2], numbers[2::2], strict=True))
            entry.sparse = check_runs(pairs, entry.size, stored)
        except ValueError as error:
            raise self._bad(str(error), name=entry.name) from None
        self._left = stored

    # -- bytes -----------------------------------------------------------------------

    def _more(self) -> bool:
        chunk = self._stream.read(_CHUNK)
        if not chunk:
            return False
        self._base += self._at
        self._buffer = self._buffer[self._at :] + chunk if self._at < len(self._buffer) else chunk
        self._at = 0
        return True

    def _fill(self) -> None:
        if not self._more():
            raise self._bad("the archive is cut off")

    def _take(self, size: int, *, at_end_ok: bool = False) -> bytes:
        at = self._at
        data = self._buffer[at : at + size]
        if len(data) == size:
            self._at = at + size
            return data
        while len(self._buffer) - self._at < size:
            if not self._more():
                if at_end_ok and self._at == len(self._buffer):
                    return b""
                raise self._bad("the archive is cut off")
        data = self._buffer[self._at : self._at + size]
        self._at += size
        return data

    def _skip(self, size: int, *, at_end_ok: bool = False) -> None:
        while size:
            available = min(size, len(self._buffer) - self._at)
            self._at += available
            size -= available
            if size and not self._more():
                if at_end_ok:
                    return
                raise self._bad("the archive is cut off")

    def _bad(self, problem: str, *, name: bytes = b"") -> TarFormatError:
        return TarFormatError(problem, offset=self.offset, name=name)


def read_entries(stream: TarStream) -> Iterator[Entry]:
    """Yield the entries of ``stream`` without their content."""
    yield from TarReader(stream)


def _signed_sum(block: bytes) -> int:
    """Return the checksum that old SunOS and GNU tars made with signed characters."""
    return 256 + sum(b - 256 if b > 127 else b for b in block[:148] + block[156:])


def _gnu_runs(raw: bytes) -> list[tuple[int, int]]:
    runs = []
    for at in range(0, len(raw) - 23, 24):
        if not raw[at]:
            break
        runs.append((parse_number(raw[at : at + 12]), parse_number(raw[at + 12 : at + 24])))
    return runs


def _parse_time(text: bytes) -> tuple[int, int]:
    sign = -1 if text.startswith(b"-") else 1
    whole, _, fraction = text.lstrip(b"-").partition(b".")
    if not whole.isdigit() or (fraction and not fraction.isdigit()) or len(whole) > 18:
        raise ValueError(f"unreadable time {text[:40]!r}")
    seconds, nanoseconds = sign * int(whole), int(fraction[:9].ljust(9, b"0") or b"0")
    if sign < 0 and nanoseconds:
        return seconds - 1, 1_000_000_000 - nanoseconds
    return seconds, nanoseconds


def _write_all(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _pwrite_all(fd: int, data: memoryview, position: int) -> None:
    while data:
        written = os.pwrite(fd, data, position)
        data, position = data[written:], position + written
