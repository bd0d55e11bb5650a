"""eStargz layers: gzip in pieces that can be read one by one, with a table of contents.

The form is that of containerd's stargz-snapshotter (``docs/estargz.md`` there): a tar archive whose
gzip stream begins a new member wherever the content of a file, or a further 4 MiB of it, begins;
then a member with an archive of one file, ``stargz.index.json``, that says where what begins; then
an empty member of 51 bytes whose extra field names the table's offset. To any other reader it is
an ordinary gzip layer with one more file after its end mark.

Invariant: as with plain gzip, the bytes depend on the archive, the level and the library only.
"""

from __future__ import annotations

import base64
import hashlib
import os
import posixpath
import struct
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

from boxwright.core import gojson
from boxwright.core.dataclass import dataclass, field
from boxwright.core.digest import Digest
from boxwright.errors import InvalidInputError
from boxwright.fsutil.compress import Compression, block_pool, gzip_member
from boxwright.fsutil.tar import Entry, EntryType, FileChangedError, TarWriter

TOC_NAME: Final = "stargz.index.json"
TOC_DIGEST: Final = "containerd.io/snapshot/stargz/toc.digest"
UNCOMPRESSED_SIZE: Final = "io.containers.estargz.uncompressed-size"
FOOTER_SIZE: Final = 51
CHUNK_SIZE: Final = 4 << 20
_BATCH: Final = 1 << 20
_READ: Final = 1 << 20

_TYPES: Final = {
    EntryType.FILE: "reg",
    EntryType.HARD_LINK: "hardlink",
    EntryType.SYMLINK: "symlink",
    EntryType.CHARACTER: "char",
    EntryType.BLOCK: "block",
    EntryType.DIRECTORY: "dir",
    EntryType.FIFO: "fifo",
}


def is_toc(name: bytes) -> bool:
    """Return whether an archive's entry has the name that the table of contents takes."""
    return posixpath.normpath(b"/" + name.lstrip(b"/")) == b"/" + TOC_NAME.encode()


@dataclass(slots=True)
class _TocEntry:
    """One line of the table: an entry of the archive, or a further chunk of its content."""

    name: str
    type: str
    header: dict[str, Any] = field(default_factory=dict)
    offset: int = 0
    digest: str = ""
    chunk_offset: int = 0
    chunk_size: int = 0
    chunk_digest: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the fields in the table's order; zero and empty ones are left out."""
        fields = {
            "name": self.name,
            "type": self.type,
            "size": self.header.get("size"),
            "modtime": self.header.get("modtime"),
            "linkName": self.header.get("linkName"),
            "mode": self.header.get("mode"),
            "uid": self.header.get("uid"),
            "gid": self.header.get("gid"),
            "offset": self.offset,
            "devMajor": self.header.get("devMajor"),
            "devMinor": self.header.get("devMinor"),
            "xattrs": self.header.get("xattrs"),
            "digest": self.digest,
            "chunkOffset": self.chunk_offset,
            "chunkSize": self.chunk_size,
            "chunkDigest": self.chunk_digest,
        }
        kept = {key: value for key, value in fields.items() if value}
        return {"name": self.name, "type": self.type, **kept}


def _entry_of(entry: Entry) -> _TocEntry:
    modified = ""
    if entry.mtime:
        rounded = entry.mtime + (1 if entry.mtime_nsec >= 500_000_000 else 0)
        modified = gojson.time_text(rounded * 1_000_000_000)
    is_device = entry.type in {EntryType.CHARACTER, EntryType.BLOCK}
    is_link = entry.type in {EntryType.HARD_LINK, EntryType.SYMLINK}
    header = {
        "size": entry.size if entry.type == EntryType.FILE else 0,
        "modtime": modified,
        "linkName": _text(entry.linkname) if is_link else "",
        "mode": entry.mode & 0o7777,
        "uid": entry.uid,
        "gid": entry.gid,
        "devMajor": entry.dev_major if is_device else 0,
        "devMinor": entry.dev_minor if is_device else 0,
        "xattrs": {
            name: base64.b64encode(value).decode("ascii")
            for name, value in sorted(entry.xattrs.items())
        },
    }
    return _TocEntry(_text(entry.name), _TYPES[entry.type], header)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "replace")


class EstargzCompressor:
    """Turns an archive and the marks in it into the members of an eStargz blob.

    Args:
        compression: library and level are those of its gzip form.
        sink: takes the blob, in order, in the caller's thread.
        hurry: see :func:`boxwright.fsutil.compress.open_compressor`.
    """

    def __init__(
        self,
        compression: Compression,
        sink: Callable[[bytes], object],
        *,
        hurry: threading.Event | None = None,
    ) -> None:
        self._plan = compression.gzip_plan()
        self._sink = sink
        self._hurry = hurry
        self._entries: list[_TocEntry] = []
        self._pieces: list[bytes] = []
        self._starts: _TocEntry | None = None  # what the current member begins with
        self._batch: list[tuple[_TocEntry | None, bytes]] = []
        self._batch_bytes = 0
        self._queue: deque[tuple[list[_TocEntry | None], Future[list[bytes]]]] = deque()
        self._threads = os.cpu_count() or 1
        self._offset = 0
        self._uncompressed = 0
        self.toc_digest: Digest | None = None
        """Of the table, once :meth:`finish` has returned."""

    @property
    def uncompressed_size(self) -> int:
        """Bytes of the archive, with that of the table once :meth:`finish` has returned."""
        return self._uncompressed

    def write(self, data: bytes) -> None:
        """Add the next bytes of the archive."""
        self._pieces.append(data)
        self._uncompressed += len(data)

    def add_entry(self, entry: _TocEntry) -> None:
        """Add a line to the table."""
        self._entries.append(entry)

    def begin_member(self, entry: _TocEntry) -> None:
        """Begin a member with the next byte; its offset is noted in ``entry``."""
        self._end_member()
        self._starts = entry

    def _end_member(self) -> None:
        data = b"".join(self._pieces)
        self._pieces = []
        if data:
            self._batch.append((self._starts, data))
            self._batch_bytes += len(data)
            if self._batch_bytes >= _BATCH:
                self._submit()

    def _submit(self) -> None:
        members = [data for _, data in self._batch]
        owners = [owner for owner, _ in self._batch]
        self._batch, self._batch_bytes = [], 0
        if len(self._queue) > self._threads:
            self._collect()
        pool = block_pool(self._hurry)
        self._queue.append((owners, pool.submit(_compress_all, self._plan, members)))

    def _collect(self) -> None:
        owners, future = self._queue.popleft()
        for owner, blob in zip(owners, future.result(), strict=True):
            if owner is not None:
                owner.offset = self._offset
            self._emit(blob)

    def _emit(self, data: bytes) -> None:
        self._sink(data)
        self._offset += len(data)

    def finish(self) -> bytes:
        """Write the rest, table and footer.

        Returns:
            The archive of the table, which belongs to the uncompressed form of the blob.
        """
        self._end_member()
        if self._batch:
            self._submit()
        while self._queue:
            self._collect()
        table = {"version": 1, "entries": [entry.to_json() for entry in self._entries] or None}
        text = gojson.dumps(table, indent=1).encode("utf-8", "replace")
        text = _with_tabs(text)
        self.toc_digest = Digest.of(text)
        pieces: list[bytes] = []
        tar = TarWriter(pieces.append)
        tar.add(Entry(TOC_NAME.encode(), mode=0), text)
        tar.close()
        archive = b"".join(pieces)
        self._uncompressed += len(archive)
        at = self._offset
        self._emit(gzip_member(self._plan, archive))
        self._emit(footer(at))
        return archive


def _with_tabs(text: bytes) -> bytes:
    """Indent by tabs: one for each blank that begins a line (no value spans lines)."""
    lines = []
    for line in text.split(b"\n"):
        rest = line.lstrip(b" ")
        lines.append(b"\t" * (len(line) - len(rest)) + rest)
    return b"\n".join(lines)


def footer(toc_offset: int) -> bytes:
    """Return the last 51 bytes of a blob whose table's member begins at ``toc_offset``."""
    subfield = b"%016xSTARGZ" % toc_offset
    extra = b"SG" + struct.pack("<H", len(subfield)) + subfield
    # an empty stored block, and the checksum and size of nothing
    head = b"\x1f\x8b\x08\x04" + bytes(5) + b"\xff" + struct.pack("<H", len(extra))
    return head + extra + b"\x01\x00\x00\xff\xff" + bytes(8)


def _compress_all(plan: tuple[str, int], members: list[bytes]) -> list[bytes]:
    return [gzip_member(plan, data) for data in members]


class EstargzTarWriter(TarWriter):
    """A :class:`TarWriter` that marks in a compressor where contents begin.

    Args:
        sink: takes the archive's bytes; hands them to ``compressor.write`` before it returns.
        compressor: gets the marks.
    """

    def __init__(self, sink: Callable[[bytes], object], compressor: EstargzCompressor) -> None:
        super().__init__(sink)
        self._compressor = compressor
        self._file: _TocEntry | None = None
        self._part: _TocEntry | None = None
        self._left = 0  # of the content
        self._part_left = 0
        self._whole = hashlib.sha256()
        self._part_hash = hashlib.sha256()

    def add(self, entry: Entry, content: bytes = b"") -> None:
        """Write an entry whose whole content is in memory."""
        if entry.type == EntryType.FILE:
            entry.size = len(content)
        self.add_header(entry)
        if content:
            self.write(content)
            self.end_content(len(content))

    def add_file(self, entry: Entry, fd: int) -> None:
        """Write a regular file from ``fd``.

        Raises:
            FileChangedError: the file is shorter than ``entry.size``.
            InvalidInputError: it has the name of the table.
        """
        self.add_header(entry)
        while self._left:
            data = os.read(fd, min(self._left, _READ))
            if not data:
                raise FileChangedError(
                    entry.name, expected_size=entry.size, got_size=entry.size - self._left
                )
            self.write(data)
        self.end_content(entry.size)

    def add_plain_file(
        self, name: bytes, mode: int, owner: tuple[int, int], size: int, mtime: int, fd: int
    ) -> None:
        """Write a regular file without attributes from ``fd``.

        Raises:
            FileChangedError: the file is shorter than ``size``.
            InvalidInputError: it has the name of the table.
        """
        self.add_file(Entry(name, EntryType.FILE, mode, *owner, size=size, mtime=mtime), fd)

    def add_header(self, entry: Entry) -> None:
        """Write a header.

        Raises:
            InvalidInputError: the entry has the name of the table.
        """
        if is_toc(entry.name):
            raise InvalidInputError(
                f"a file named {TOC_NAME} can't be in an estargz layer",
                hint="choose another compression, or remove the file",
            )
        super().add_header(entry)
        line = _entry_of(entry)
        self._compressor.add_entry(line)
        if entry.type != EntryType.FILE:
            return
        if not entry.size:
            line.digest = str(Digest.of(b""))
            return
        self._file, self._left = line, entry.size
        self._whole = hashlib.sha256()
        self._begin_part(line, 0)

    def write(self, data: bytes) -> None:
        """Write a piece of the announced content."""
        view = memoryview(data)
        while view and self._part_left:
            piece = bytes(view[: self._part_left])
            view = view[len(piece) :]
            super().write(piece)
            self._whole.update(piece)
            self._part_hash.update(piece)
            self._left -= len(piece)
            self._part_left -= len(piece)
            if not self._part_left:
                self._end_part()

    def _begin_part(self, line: _TocEntry, at: int) -> None:
        self._flush()
        self._compressor.begin_member(line)
        line.chunk_offset = at
        self._part_left = min(CHUNK_SIZE, self._left)
        if self._left >= CHUNK_SIZE:
            line.chunk_size = CHUNK_SIZE
        self._part, self._part_hash = line, hashlib.sha256()

    def _end_part(self) -> None:
        assert self._part is not None
        assert self._file is not None
        self._part.chunk_digest = f"sha256:{self._part_hash.hexdigest()}"
        if not self._left:
            self._file.digest = f"sha256:{self._whole.hexdigest()}"
            return
        line = _TocEntry(self._file.name, "chunk")
        self._compressor.add_entry(line)
        self._begin_part(line, self._part.chunk_offset + CHUNK_SIZE)
