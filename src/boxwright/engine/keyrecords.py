"""What the cache keys of each build were made of, kept as long as the build is remembered.

One row of ``build_keys`` for each build: a compressed ``BuildKeys`` message, the build's
*project* (what it builds, however it changes: equal for builds that are worth comparing), and
in ``build_tables`` the tables of files that it refers to (:mod:`boxwright.engine.contenttables`).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from sqlite3 import Cursor

from boxwright.core.dataclass import dataclass
from boxwright.core.digest import Digest
from boxwright.engine.contenttables import ContentTables, Table
from boxwright.progress.events import VertexEvent
from boxwright.store.database import Database
from boxwright.wire.pb import explain_pb2

_LEVEL = 1
_LIMIT_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """The keys of one build.

    Attributes:
        project: equal for builds of the same thing.
        keys: of all steps.
        tables: those that are not stored yet.
    """

    project: bytes
    keys: explain_pb2.BuildKeys
    tables: tuple[Table, ...] = ()

    def add_times(self, events: Iterable[VertexEvent]) -> None:
        """Note how long the steps took that ran."""
        by_digest = {event.digest: event for event in events}
        for step in self.keys.steps:
            event = by_digest.get(Digest(step.digest))
            if event is None or event.started_ns is None or event.completed_ns is None:
                continue
            if step.outcome == explain_pb2.RAN:
                step.took_ns = max(0, event.completed_ns - event.started_ns)


@dataclass(frozen=True, slots=True)
class StoredKeys:
    """The keys of one remembered build."""

    ref: str
    project: bytes
    keys: explain_pb2.BuildKeys


class KeyRecords:
    """The key records of one state folder. Blocking; safe from every thread."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self.tables = ContentTables(database)

    @staticmethod
    def save(cursor: Cursor, ref: str, created_ns: int, record: KeyRecord) -> None:
        """Store the keys of a build; part of the caller's transaction."""
        data = zlib.compress(record.keys.SerializeToString(), _LEVEL)
        cursor.execute(
            "INSERT OR REPLACE INTO build_keys (ref, project, created_ns, steps)"
            " VALUES (?, ?, ?, ?)",
            (ref, record.project, created_ns, data),
        )
        for table in record.tables:
            ContentTables.put(cursor, table)
        names = {each.table for step in record.keys.steps for each in step.inputs if each.table}
        cursor.executemany(
            "INSERT OR IGNORE INTO build_tables VALUES (?, ?)", [(ref, name) for name in names]
        )

    @staticmethod
    def drop(cursor: Cursor, refs: Iterable[str]) -> None:
        """Forget builds, and the tables that only they had."""
        lost: set[bytes] = set()
        for ref in refs:
            cursor.execute("DELETE FROM build_keys WHERE ref = ?", (ref,))
            deleted = "DELETE FROM build_tables WHERE ref = ? RETURNING name"
            lost.update(name for (name,) in cursor.execute(deleted, (ref,)).fetchall())
        ContentTables.drop_unused(cursor, lost)

    def find(self, ref: str = "") -> StoredKeys | None:
        """Return the keys of a build, of the newest if no ref is given."""
        columns = "SELECT ref, project, steps FROM build_keys"
        if ref:
            rows = self._db.execute(f"{columns} WHERE ref = ?", (ref,))
        else:
            rows = self._db.execute(f"{columns} ORDER BY created_ns DESC LIMIT 1")
        return _stored(rows[0]) if rows else None

    def before(self, ref: str, limit: int) -> Iterator[StoredKeys]:
        """Yield at most ``limit`` builds that began before another one, newest first."""
        query = (
            "SELECT ref, project, steps FROM build_keys WHERE created_ns <"
            " (SELECT created_ns FROM build_keys WHERE ref = ?) ORDER BY created_ns DESC LIMIT ?"
        )
        for row in self._db.execute(query, (ref, limit)):
            yield _stored(row)


def _stored(row: tuple[str, bytes, bytes]) -> StoredKeys:
    ref, project, data = row
    plain = zlib.decompressobj().decompress(data, _LIMIT_BYTES)
    return StoredKeys(ref, project, explain_pb2.BuildKeys.FromString(plain))
