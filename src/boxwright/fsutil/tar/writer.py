"""Write an archive as a stream into any byte sink, with few and large writes."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from boxwright.errors import BoxwrightError, Code
from boxwright.fsutil.tar.header import BLOCK, Entry, EntryType, PlainHeaders, pack_entry

_FLUSH: Final = 1 << 20
_PADDING: Final = bytes(BLOCK)


class FileChangedError(BoxwrightError):
    """A file got shorter while it was being archived."""

    code = Code.INVALID

    def __init__(self, name: bytes, *, expected_size: int, got_size: int) -> None:
        super().__init__(
            f"file {name.decode('utf-8', 'backslashreplace')!r} changed while it was read",
            detail=f"{expected_size} bytes expected, {got_size} found",
            hint="build again when nothing writes to it",
        )


class TarWriter:
    """Write entries in the order given. Not thread safe.

    Args:
        sink: takes the archive in pieces of about 1 MiB; pieces belong to the sink. Where
            the cuts fall depends on the sizes of the entries only.
    """

    def __init__(self, sink: Callable[[bytes], object]) -> None:
        self._sink = sink
        self._pieces: list[bytes] = []
        self._pending = 0
        self._headers = PlainHeaders()
        self.bytes_written = 0

    def add(self, entry: Entry, content: bytes = b"") -> None:
        """Write an entry whose whole content is in memory (``entry.size`` is set from it)."""
        if entry.type == EntryType.FILE:
            entry.size = len(content)
        self._put(pack_entry(entry))
        if content:
            self._put(content)
            self._pad(len(content))

    def add_file(self, entry: Entry, fd: int) -> None:
        """Write a regular file: exactly ``entry.size`` bytes are read from ``fd``.

        Raises:
            FileChangedError: the file is shorter than ``entry.size``.
        """
        self._put(pack_entry(entry))
        left = entry.size
        while left:
            data = os.read(fd, min(left, _FLUSH))
            if not data:
                raise FileChangedError(
                    entry.name, expected_size=entry.size, got_size=entry.size - left
                )
            left -= len(data)
            self._put(data)
        self._pad(entry.size)

    def add_plain_file(
        self, name: bytes, mode: int, owner: tuple[int, int], size: int, mtime: int, fd: int
    ) -> None:
        """Write a regular file without attributes; as :meth:`add_file`, at less cost.

        Args:
            name: path as the archive spells it.
            mode: permission bits.
            owner: uid and gid.
            size: bytes that are read from ``fd``.
            mtime: seconds since the epoch.
            fd: where the content comes from.

        Raises:
            FileChangedError: the file is shorter than ``size``.
        """
        header = self._headers.pack(name, mode, *owner, size, mtime)
        if header is None or size > _FLUSH:
            entry = Entry(name, EntryType.FILE, mode, *owner, size=size, mtime=mtime)
            self.add_file(entry, fd)
            return
        data = os.read(fd, size)
        while len(data) < size:
            more = os.read(fd, size - len(data))
            if not more:
                raise FileChangedError(name, expected_size=size, got_size=len(data))
            data += more
        self._pieces += (header, data, _PADDING[: -size % BLOCK])
        self._pending += BLOCK + size + -size % BLOCK
        if self._pending >= _FLUSH:
            self._flush()

    def add_header(self, entry: Entry) -> None:
        """Write a header alone; the caller sends ``entry.size`` bytes with :meth:`write`."""
        self._put(pack_entry(entry))

    def write(self, data: bytes) -> None:
        """Write a piece of the content that was announced with :meth:`add_header`."""
        self._put(data)

    def end_content(self, size: int) -> None:
        """Pad after content of ``size`` bytes that was sent with :meth:`write`."""
        self._pad(size)

    def close(self) -> None:
        """Write the end of the archive and hand everything to the sink."""
        self._put(bytes(2 * BLOCK))
        self._flush()

    def _pad(self, size: int) -> None:
        rest = -size % BLOCK
        if rest:
            self._put(_PADDING[:rest])

    def _put(self, data: bytes) -> None:
        self._pieces.append(data)
        self._pending += len(data)
        if self._pending >= _FLUSH:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            data = b"".join(self._pieces)
            self._pieces = []
            self.bytes_written += self._pending
            self._pending = 0
            self._sink(data)
