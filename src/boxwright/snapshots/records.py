"""Snapshot records: what the database knows about each tree.

``kind`` says what the record's own folder holds:

* ``layer``: ``fs``, one layer on top of ``parents[0]`` (or of nothing). ``present`` is false
  while it exists only as a blob.
* ``merge``: the layers of all parents, in order; ``view`` once they had to be rewritten.
* ``diff``: what ``parents[1]`` has over ``parents[0]`` (either may be empty, meaning the empty
  tree). When the upper chain extends the lower one these are simply its further layers;
  otherwise the comparison lies in ``fs`` once it was made.

Beside the ``fs`` of a layer that was merged over another base may lie ``pure``, its changes and
nothing else: no row notes it, and it is made again when another process needs it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Container, Sequence
from typing import Literal

from boxwright.core.dataclass import dataclass
from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.snapshots.links import Links
from boxwright.snapshots.usage import SnapshotRecord
from boxwright.store import Database

Kind = Literal["layer", "merge", "diff"]

PURE = "pure"

_COLUMNS = (
    "id, kind, parents, description, record_type, created_ns, used_ns, usage_count, size, boot,"
    " present, plain, chain_id, diff_id, blob, labels"
)


@dataclass(slots=True)
class Row:
    """One row of the table ``snapshots``; times in nanoseconds since the epoch."""

    id: str
    kind: Kind
    parents: tuple[str, ...]
    description: str
    record_type: str
    created_ns: int
    used_ns: int
    usage_count: int = 0
    size: int | None = None
    boot: str | None = None  # set until a syncfs has covered the tree
    present: bool = True
    plain: bool = False  # the view has been made
    chain_id: str | None = None
    diff_id: Digest | None = None
    blob: Digest | None = None
    labels: str = "{}"


def own_folders(row: Row) -> dict[str, bool]:
    """Return what may lie in a record's own folder, and whether its row vouches for it."""
    found = {}
    if row.present:
        found["fs"] = True
    if row.plain:
        found["view"] = True
    if row.present and row.kind == "layer" and row.parents:
        found[PURE] = False
    return found


# A cache export asks for the layers below each of its records: the same ones again and again.
@functools.lru_cache(maxsize=4096)
def _descriptor(text: str) -> Descriptor:
    return Descriptor.from_json(json.loads(text))


def _row(values: Sequence[object]) -> Row:
    row = Row(*values)  # type: ignore[arg-type]
    row.parents = tuple(json.loads(str(row.parents)))
    row.present, row.plain = bool(row.present), bool(row.plain)
    row.diff_id = Digest(row.diff_id) if row.diff_id else None
    row.blob = Digest(row.blob) if row.blob else None
    return row


class Records:
    """Queries and updates of snapshot rows."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self.links = Links(database)

    def insert(self, row: Row) -> None:
        """Store a new row with its edges to its parents.

        Raises:
            sqlite3.IntegrityError: the id or chain id exists, or a parent is gone.
        """
        with self._db.transaction() as cursor:
            cursor.execute(
                f"INSERT INTO snapshots ({_COLUMNS}) VALUES ({'?,' * 15}?)",  # noqa: S608
                (
                    row.id,
                    row.kind,
                    json.dumps(row.parents),
                    row.description,
                    row.record_type,
                    row.created_ns,
                    row.used_ns,
                    row.usage_count,
                    row.size,
                    row.boot,
                    row.present,
                    row.plain,
                    row.chain_id,
                    row.diff_id,
                    row.blob,
                    row.labels,
                ),
            )
            cursor.executemany(
                "INSERT INTO snapshot_parents (child, parent) VALUES (?, ?)",
                [(row.id, parent) for parent in dict.fromkeys(row.parents) if parent],
            )

    def get(self, snapshot_id: str) -> Row | None:
        """Return the row with this id."""
        rows = self._db.execute(
            f"SELECT {_COLUMNS} FROM snapshots WHERE id = ?",  # noqa: S608
            (snapshot_id,),
        )
        return _row(rows[0]) if rows else None

    def by_chain(self, chain_id: str) -> Row | None:
        """Return the row of an image chain."""
        rows = self._db.execute(
            f"SELECT {_COLUMNS} FROM snapshots WHERE chain_id = ?",  # noqa: S608
            (chain_id,),
        )
        return _row(rows[0]) if rows else None

    def all(self) -> list[Row]:
        """Return all rows, the oldest first."""
        query = f"SELECT {_COLUMNS} FROM snapshots ORDER BY created_ns, id"  # noqa: S608
        return [_row(values) for values in self._db.execute(query)]

    def listed(self, *, in_use: Container[str], leased: Container[str]) -> list[SnapshotRecord]:
        """Return what listings show of all rows, the oldest first; see :meth:`Database.scan`.

        Args:
            in_use: Ids of those that builds hold.
            leased: Ids of those that leases hold.
        """
        rows = self._db.scan(
            "SELECT id, parents, description, record_type, created_ns, used_ns, usage_count, size,"
            " EXISTS (SELECT 1 FROM snapshot_parents WHERE parent = id)"
            " FROM snapshots ORDER BY created_ns, id"
        )
        return [
            SnapshotRecord(
                id=key,
                parents=tuple(filter(None, json.loads(parents))),
                description=description,
                record_type=record_type,
                created_ns=created_ns,
                last_used_ns=used_ns,
                usage_count=count,
                size_bytes=size,
                in_use=key in in_use,
                leased=key in leased,
                shared=bool(shared),
            )
            for (
                key,
                parents,
                description,
                record_type,
                created_ns,
                used_ns,
                count,
                size,
                shared,
            ) in rows
        ]

    def update(self, snapshot_id: str, **columns: object) -> None:
        """Set columns of one row."""
        names = ", ".join(f"{name} = ?" for name in columns)
        self._db.execute(
            f"UPDATE snapshots SET {names} WHERE id = ?",  # noqa: S608
            (*columns.values(), snapshot_id),
        )

    def touch(self, snapshot_id: str, now_ns: int) -> None:
        """Count one use."""
        self._db.execute(
            "UPDATE snapshots SET used_ns = ?, usage_count = usage_count + 1 WHERE id = ?",
            (now_ns, snapshot_id),
        )

    def children(self, snapshot_id: str) -> list[str]:
        """Return the ids of the records that are built on this one."""
        rows = self._db.execute(
            "SELECT child FROM snapshot_parents WHERE parent = ?", (snapshot_id,)
        )
        return [row[0] for row in rows]

    def delete(self, snapshot_id: str) -> list[str]:
        """Remove a row, its edges, blob variants and content digests.

        Returns:
            The records whose sizes are to be counted again: they have links into its files.

        Raises:
            sqlite3.IntegrityError: another record is built on it.
        """
        with self._db.transaction() as cursor:
            heirs = self.links.bequeath(snapshot_id)
            cursor.execute("DELETE FROM snapshots WHERE id = ?", (snapshot_id,))
        return heirs

    def unsynced(self) -> list[Row]:
        """Return the rows whose trees no syncfs has covered yet, the oldest first."""
        query = (
            f"SELECT {_COLUMNS} FROM snapshots WHERE boot IS NOT NULL"  # noqa: S608
            " ORDER BY created_ns, id"
        )
        return [_row(values) for values in self._db.scan(query)]

    def uncounted(self) -> list[Row]:
        """Return the rows with trees whose size is not known, the oldest first."""
        query = (
            f"SELECT {_COLUMNS} FROM snapshots WHERE size IS NULL AND (present OR plain)"  # noqa: S608
            " ORDER BY created_ns, id"
        )
        return [_row(values) for values in self._db.scan(query)]

    def total_bytes(self) -> int:
        """Return the sum of all sizes that are known."""
        return int(self._db.scan("SELECT coalesce(sum(size), 0) FROM snapshots")[0][0])

    def mark_synced(self, ids: Sequence[str]) -> None:
        """Note that the trees of these rows are on the disk."""
        self._db.execute_many(
            "UPDATE snapshots SET boot = NULL WHERE id = ?", [(item,) for item in ids]
        )

    def add_blob(self, snapshot_id: str, variant: str, descriptor: Descriptor) -> None:
        """Note a blob that holds this layer; ``variant`` names its compression and options."""
        self._db.execute(
            "INSERT OR REPLACE INTO snapshot_blobs (snapshot, variant, digest, descriptor)"
            " VALUES (?, ?, ?, ?)",
            (snapshot_id, variant, descriptor.digest, json.dumps(descriptor.to_json())),
        )

    def blobs(self, snapshot_id: str) -> dict[str, Descriptor]:
        """Return the known blobs of a layer by variant."""
        rows = self._db.execute(
            "SELECT variant, descriptor FROM snapshot_blobs WHERE snapshot = ?", (snapshot_id,)
        )
        return {row[0]: _descriptor(row[1]) for row in rows}

    def forget_blob(self, snapshot_id: str, digest: Digest) -> None:
        """Forget a blob of a layer that turned out to be missing."""
        self._db.execute(
            "DELETE FROM snapshot_blobs WHERE snapshot = ? AND digest = ?", (snapshot_id, digest)
        )
