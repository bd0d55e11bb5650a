"""What earlier downloads answered: with it a server is asked only whether anything changed.

One row per answer and snapshot, in the store's database; it goes with its snapshot. Rows are
kept by a hash of everything that shapes the snapshot (URL, file name, mode, owner, headers).
"""

from __future__ import annotations

from boxwright.core.dataclass import dataclass
from boxwright.core.digest import Digest
from boxwright.store import schema
from boxwright.store.database import Database

_SCHEMA = (
    """CREATE TABLE IF NOT EXISTS http_answers (
        request TEXT NOT NULL,
        snapshot TEXT NOT NULL REFERENCES snapshots (id) ON DELETE CASCADE,
        digest TEXT NOT NULL, filename TEXT NOT NULL, etag TEXT NOT NULL,
        last_modified TEXT NOT NULL, dated INTEGER NOT NULL,
        creator TEXT NOT NULL DEFAULT '', trust TEXT NOT NULL DEFAULT '',
        PRIMARY KEY (request, snapshot)
    ) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS http_answers_by_snapshot ON http_answers (snapshot)",
)

schema.register("http", _SCHEMA)


@dataclass(frozen=True, slots=True)
class HttpRecord:
    """One download.

    Attributes:
        snapshot_id: Where its content lies.
        digest: Of the content.
        filename: The file's name in the snapshot.
        etag: The server's, without the mark of weak ones; empty if none.
        last_modified: The server's header as it was; empty if none.
        is_dated: Whether that header alone is enough to tell a change (RFC 9110, 8.8.2.2).
    """

    snapshot_id: str
    digest: Digest
    filename: str
    etag: str = ""
    last_modified: str = ""
    is_dated: bool = False


class HttpRecords:
    """Access to the rows."""

    def __init__(self, database: Database) -> None:
        self._db = database
        for statement in _SCHEMA:  # a store that was opened before this module was imported
            database.execute(statement)

    def find(self, request: Digest) -> list[HttpRecord]:
        """Return the downloads of a request, the newest snapshot first."""
        rows = self._db.execute(
            "SELECT h.snapshot, h.digest, h.filename, h.etag, h.last_modified, h.dated"
            " FROM http_answers h JOIN snapshots s ON s.id = h.snapshot"
            " WHERE h.request = ? ORDER BY s.created_ns DESC LIMIT 16",
            (request,),
        )
        return [
            HttpRecord(row[0], Digest(row[1]), row[2], row[3], row[4], bool(row[5]))
            for row in rows
        ]

    def add(self, request: Digest, record: HttpRecord) -> None:
        """Store a download."""
        self._db.execute(
            "INSERT OR REPLACE INTO http_answers"
            " (request, snapshot, digest, filename, etag, last_modified, dated)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                request,
                record.snapshot_id,
                record.digest,
                record.filename,
                record.etag,
                record.last_modified,
                record.is_dated,
            ),
        )
