"""Which files a content digest was made of: tables that share what they have in common.

A table lists paths with their digests, in the order in which the digest takes them. It is cut
into chunks where a path's checksum says so, and a chunk is stored once, however many tables
hold it. So a build that changed one file of ten thousand adds a few kilobytes, two tables are
compared by the names of their chunks, and an unchanged build adds nothing.

In ``state.db``: ``content_tables`` (table, position, chunk) and ``content_chunks``. Losing them
costs ``boxwright why`` the names of files, nothing else.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from sqlite3 import Cursor

from boxwright.core.dataclass import dataclass
from boxwright.snapshots.content_tree import TreeNode, unpack_stat
from boxwright.store.database import Database

MAX_ENTRIES = 200_000
"""Tables of more files are not kept."""

_CUT_MASK = 63
_NAME_BYTES = 16
_DIGEST_BYTES = 32
_STAT_BYTES = 20
_NO_DIGEST = bytes(_DIGEST_BYTES)
_HEAD = struct.Struct(">HBB")

StatOf = Callable[[bytes, TreeNode], bytes]
"""Returns the packed stat of a path, empty if it is not known."""

Entries = Sequence[tuple[bytes, TreeNode]]


@dataclass(frozen=True, slots=True)
class FileState:
    """One entry of a table.

    Attributes:
        kind: ``FILE``, ``FOLDER`` or ``SYMLINK`` of :mod:`boxwright.snapshots.content_tree`.
        digest: Of metadata and content; of a folder, of its metadata. In hex.
        stat: Mode, uid, gid and size in bytes; None if not known.
    """

    kind: int
    digest: str
    stat: tuple[int, int, int, int] | None = None


@dataclass(frozen=True, slots=True)
class FileChange:
    """A path that two tables disagree on; None where it is missing."""

    path: bytes
    old: FileState | None
    new: FileState | None


@dataclass(frozen=True, slots=True)
class Table:
    """A table that is ready to be stored: chunk names in order, and the chunks that are new."""

    name: bytes
    chunks: tuple[bytes, ...]
    fresh: dict[bytes, bytes]


def table_name(*parts: str) -> bytes:
    """Return the name of the table behind a content digest and what selected it."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).digest()[
        :_NAME_BYTES
    ]


class ContentTables:
    """The tables of one state folder. Blocking; safe from every thread."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def missing(self, names: Iterable[bytes]) -> set[bytes]:
        """Return those that are not stored."""
        wanted = set(names)
        found = {
            row[0]
            for name in wanted
            for row in self._db.execute(
                "SELECT name FROM content_tables WHERE name = ? LIMIT 1", (name,)
            )
        }
        return wanted - found

    def make(self, name: bytes, entries: Entries, stat_of: StatOf) -> Table:
        """Return the table of ``entries``, with those of its chunks that are not stored yet."""
        pieces = {_chunk_name(piece): piece for piece in _cut(entries)}
        known = self._known(pieces)
        fresh = {
            key: zlib.compress(_encode(piece, stat_of), 1)
            for key, piece in pieces.items()
            if key not in known
        }
        return Table(name, tuple(pieces), fresh)

    def _known(self, keys: Iterable[bytes]) -> set[bytes]:
        query = "SELECT id FROM content_chunks WHERE id = ?"
        return {row[0] for key in keys for row in self._db.execute(query, (key,))}

    @staticmethod
    def put(cursor: Cursor, table: Table) -> None:
        """Store a table; part of the caller's transaction."""
        cursor.executemany(
            "INSERT OR IGNORE INTO content_chunks VALUES (?, ?)", table.fresh.items()
        )
        cursor.executemany(
            "INSERT OR IGNORE INTO content_tables VALUES (?, ?, ?)",
            [(table.name, position, chunk) for position, chunk in enumerate(table.chunks)],
        )

    @staticmethod
    def drop_unused(cursor: Cursor) -> None:
        """Remove the tables that no build has, and the chunks that no table has."""
        cursor.execute(
            "DELETE FROM content_tables WHERE name NOT IN (SELECT name FROM build_tables)"
        )
        cursor.execute(
            "DELETE FROM content_chunks WHERE id NOT IN (SELECT chunk FROM content_tables)"
        )

    def changes(self, old: bytes, new: bytes) -> list[FileChange] | None:
        """Return what differs between two tables, by path; None if one is not stored."""
        before, after = self._chunks(old), self._chunks(new)
        if not before or not after:
            return None
        common = set(before) & set(after)
        was = dict(self._entries(each for each in before if each not in common))
        now = dict(self._entries(each for each in after if each not in common))
        return [
            FileChange(path, was.get(path), now.get(path))
            for path in sorted(was.keys() | now.keys())
            if _digest(was.get(path)) != _digest(now.get(path))
        ]

    def _chunks(self, name: bytes) -> list[bytes]:
        rows = self._db.execute(
            "SELECT chunk FROM content_tables WHERE name = ? ORDER BY position", (name,)
        )
        return [row[0] for row in rows]

    def _entries(self, keys: Iterable[bytes]) -> Iterator[tuple[bytes, FileState]]:
        for key in keys:
            rows = self._db.execute("SELECT entries FROM content_chunks WHERE id = ?", (key,))
            if rows:
                yield from _decode(zlib.decompress(rows[0][0]))


def _digest(state: FileState | None) -> tuple[int, str] | None:
    return None if state is None else (state.kind, state.digest)


def _cut(entries: Entries) -> Iterator[Entries]:
    """Cut after paths whose checksum ends in zeros: a change moves no other cut."""
    start = 0
    for number, (path, _) in enumerate(entries, 1):
        if not zlib.crc32(path) & _CUT_MASK:
            yield entries[start:number]
            start = number
    if start < len(entries) or not entries:
        yield entries[start:]


def _chunk_name(entries: Entries) -> bytes:
    text = b"\0".join([path + b"\0" + (node.digest or _NO_DIGEST) for path, node in entries])
    return hashlib.sha256(text).digest()[:_NAME_BYTES]


def _encode(entries: Entries, stat_of: StatOf) -> bytes:
    out: list[bytes] = []
    for path, node in entries:
        stat = stat_of(path, node)
        out += (
            _HEAD.pack(len(path), node.kind, len(stat)),
            path,
            node.digest or _NO_DIGEST,
            stat,
        )
    return b"".join(out)


def _decode(data: bytes) -> Iterator[tuple[bytes, FileState]]:
    at = 0
    while at < len(data):
        length, kind, stat_length = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        path = data[at : at + length]
        at += length
        digest = data[at : at + _DIGEST_BYTES].hex()
        at += _DIGEST_BYTES
        stat = unpack_stat(data[at : at + stat_length]) if stat_length == _STAT_BYTES else None
        at += stat_length
        yield path, FileState(kind, digest, stat)
