"""Which files a content digest was made of: tables that share what they have in common.

A table lists names with their digests. A folder with everything in it has a table of its own,
named by its content digest, so a folder that did not change is neither walked nor stored again.
A table is cut into chunks where the checksum of a name says so, and a chunk is stored once,
however many tables hold it. So a build that changed one file of ten thousand adds a few
kilobytes, and an unchanged build adds nothing.

In ``state.db``: ``content_tables`` (table, position, chunk), ``content_subtables`` and
``content_chunks``. Losing them costs ``boxwright why`` the names of files, nothing else.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from sqlite3 import Cursor

from boxwright.core.dataclass import dataclass
from boxwright.session.packets import decode_stat, join_path
from boxwright.snapshots.content_tree import FOLDER, TreeNode, unpack_stat
from boxwright.sources.contentheader import kernel_mode
from boxwright.store.database import Database

MAX_ENTRIES = 200_000
"""More new entries than this are not kept."""

_CUT_MASK = 63
_NAME_BYTES = 16
_DIGEST_BYTES = 32
_NO_DIGEST = bytes(_DIGEST_BYTES)
_HEAD = struct.Struct(">HBBB")
_IS_USED = (
    "SELECT 1 FROM build_tables WHERE name = ?1"
    " UNION ALL SELECT 1 FROM content_subtables WHERE child = ?1 LIMIT 1"
)
_WIRE_STAT = 0x80
_MAX_STAT = 255

StatOf = Callable[[bytes], bytes]
"""Returns the stat that a client sent for a path, without the path; empty if it sent none."""

Entries = Sequence[tuple[bytes, TreeNode, bytes]]
"""Paths with what is there and, if all that is in a folder belongs to it, its table's name."""


@dataclass(frozen=True, slots=True)
class FileState:
    """One entry of a table.

    Attributes:
        kind: ``FILE``, ``FOLDER`` or ``SYMLINK`` of :mod:`boxwright.snapshots.content_tree`.
        digest: Of metadata and content; of a folder, of its metadata. In hex.
        stat: Mode, uid, gid and size in bytes; None if not known.
        subtable: Of a folder, the table of what is in it; empty if that is not part of it.
    """

    kind: int
    digest: str
    stat: tuple[int, int, int, int] | None = None
    subtable: bytes = b""


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
    subtables: tuple[bytes, ...] = ()


def table_name(*parts: str) -> bytes:
    """Return the name of the table behind a content digest and what selected it."""
    text = "\0".join(parts).encode("utf-8", "surrogateescape")
    return hashlib.sha256(text).digest()[:_NAME_BYTES]


class ContentTables:
    """The tables of one state folder. Blocking; safe from every thread."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def missing(self, names: Iterable[bytes]) -> set[bytes]:
        """Return those that are not stored."""
        return {name for name in names if not self._is_stored(name)}

    def _is_stored(self, name: bytes) -> bool:
        query = "SELECT 1 FROM content_tables WHERE name = ? LIMIT 1"
        return bool(self._db.execute(query, (name,)))

    def make(self, name: bytes, entries: Entries, stat_of: StatOf) -> list[Table]:
        """Return the tables of ``entries`` and of the folders among them that are not stored.

        Nothing, if there is too much that is new.
        """
        made: list[Table] = []
        pending: list[tuple[bytes, bytes, Entries]] = [(name, b"", entries)]
        seen: set[bytes] = {name}
        count = 0
        while pending:
            current, prefix, rows = pending.pop()
            count += len(rows)
            if count > MAX_ENTRIES:
                return []
            made.append(self._table(current, prefix, rows, stat_of))
            for path, node, sub in rows:
                if sub and sub not in seen and not self._is_stored(sub):
                    pending.append((sub, prefix + path, _children(node)))
                seen.add(sub)
        return made

    def _table(self, name: bytes, prefix: bytes, rows: Entries, stat_of: StatOf) -> Table:
        pieces = {_chunk_name(piece): piece for piece in _cut(rows)}
        fresh = {
            key: _encode(piece, prefix, stat_of)
            for key, piece in pieces.items()
            if not self._db.execute("SELECT 1 FROM content_chunks WHERE id = ?", (key,))
        }
        return Table(name, tuple(pieces), fresh, tuple({sub for _, _, sub in rows if sub}))

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
        cursor.executemany(
            "INSERT OR IGNORE INTO content_subtables VALUES (?, ?)",
            [(table.name, child) for child in table.subtables],
        )

    @staticmethod
    def drop_unused(cursor: Cursor, names: Iterable[bytes]) -> None:
        """Remove those tables that no build and no table has, then those that only they had.

        What is looked at does not grow with what stays: a builder at its limit forgets a build with
        each new one. Tables never lead back to themselves: a name is a digest of what is in it.
        """
        pending = list(names)
        while pending:
            name = pending.pop()
            if cursor.execute(_IS_USED, (name,)).fetchone():
                continue
            chunks = cursor.execute(
                "DELETE FROM content_tables WHERE name = ? RETURNING chunk", (name,)
            ).fetchall()
            cursor.executemany(
                "DELETE FROM content_chunks WHERE id = ?1"
                " AND NOT EXISTS (SELECT 1 FROM content_tables WHERE chunk = ?1)",
                chunks,
            )
            deleted = "DELETE FROM content_subtables WHERE parent = ? RETURNING child"
            pending += [child for (child,) in cursor.execute(deleted, (name,)).fetchall()]

    def changes(self, old: bytes, new: bytes) -> list[FileChange] | None:
        """Return what differs between two tables, by path; None if one is not stored."""
        if self.missing((old, new)):
            return None
        found: list[FileChange] = []
        pending: list[tuple[bytes, bytes, bytes]] = [(b"", old, new)]
        while pending and len(found) < MAX_ENTRIES:
            prefix, old_table, new_table = pending.pop()
            was, now = self._differing(old_table, new_table)
            for name in was.keys() | now.keys():
                path, before, after = prefix + name, was.get(name), now.get(name)
                if _identity(before) != _identity(after):
                    found.append(FileChange(path, before, after))
                subtables = (_subtable_of(before), _subtable_of(after))
                if subtables[0] != subtables[1] and _comparable(before, after):
                    pending.append((path, *subtables))
        return sorted(found, key=lambda change: change.path)

    def _differing(
        self, old: bytes, new: bytes
    ) -> tuple[dict[bytes, FileState], dict[bytes, FileState]]:
        """Return the entries of two tables without the chunks that both have."""
        before, after = self._chunks(old), self._chunks(new)
        common = set(before) & set(after)
        was = dict(self._entries(each for each in before if each not in common))
        now = dict(self._entries(each for each in after if each not in common))
        return was, now

    def _chunks(self, name: bytes) -> list[bytes]:
        query = "SELECT chunk FROM content_tables WHERE name = ? ORDER BY position"
        return [row[0] for row in self._db.execute(query, (name,))]

    def _entries(self, keys: Iterable[bytes]) -> Iterator[tuple[bytes, FileState]]:
        for key in keys:
            rows = self._db.execute("SELECT entries FROM content_chunks WHERE id = ?", (key,))
            if rows:
                yield from _decode(rows[0][0])


def subtable(node: TreeNode) -> bytes:
    """Return the name of a folder's table; empty if it has none, or is not known as a whole."""
    if node.kind != FOLDER or node.content is None or node.children is None:
        return b""
    return node.content[:_NAME_BYTES]


def _children(node: TreeNode) -> Entries:
    names = sorted((node.children or {}).items())
    return [(b"/" + name, child, subtable(child)) for name, child in names]


def _identity(state: FileState | None) -> tuple[int, str] | None:
    return None if state is None else (state.kind, state.digest)


def _subtable_of(state: FileState | None) -> bytes:
    return state.subtable if state is not None else b""


def _comparable(old: FileState | None, new: FileState | None) -> bool:
    """Whether what is in two folders can be compared: it is known of both, or one is missing."""
    return (old is None or bool(old.subtable)) == (new is None or bool(new.subtable))


def _cut(entries: Entries) -> Iterator[Entries]:
    """Cut after names whose checksum ends in zeros: a change moves no other cut."""
    start = 0
    for number, (path, _, _) in enumerate(entries, 1):
        if not zlib.crc32(path) & _CUT_MASK:
            yield entries[start:number]
            start = number
    if start < len(entries) or not entries:
        yield entries[start:]


def _chunk_name(entries: Entries) -> bytes:
    text = b"\0".join(
        [path + b"\0" + (node.digest or _NO_DIGEST) + sub for path, node, sub in entries]
    )
    return hashlib.sha256(text).digest()[:_NAME_BYTES]


def _encode(entries: Entries, prefix: bytes, stat_of: StatOf) -> bytes:
    out: list[bytes] = []
    for path, node, sub in entries:
        kind, stat = node.kind, node.stat
        if not stat and (sent := stat_of(prefix + path)) and len(sent) <= _MAX_STAT:
            kind, stat = kind | _WIRE_STAT, sent  # decoded when somebody asks
        head = _HEAD.pack(len(path), kind, len(stat), len(sub))
        out += (head, path, node.digest or _NO_DIGEST, stat, sub)
    return b"".join(out)


def _decode(data: bytes) -> Iterator[tuple[bytes, FileState]]:
    at = 0
    while at < len(data):
        length, kind, stat_length, sub_length = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        pieces = []
        for size in (length, _DIGEST_BYTES, stat_length, sub_length):
            pieces.append(data[at : at + size])
            at += size
        path, digest, stat, sub = pieces
        known = _stat(path, stat, sent=bool(kind & _WIRE_STAT)) if stat else None
        yield path, FileState(kind & ~_WIRE_STAT, digest.hex(), known, sub)


def _stat(path: bytes, data: bytes, *, sent: bool) -> tuple[int, int, int, int]:
    if not sent:
        return unpack_stat(data)
    stat = decode_stat(join_path(path, data))
    return kernel_mode(stat), stat.uid, stat.gid, stat.size
