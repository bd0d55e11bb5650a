"""Image names: durable tags that pin a whole graph of blobs."""

from __future__ import annotations

import json

from boxwright.core.clock import Clock
from boxwright.core.dataclass import dataclass
from boxwright.core.descriptor import Descriptor
from boxwright.store.database import Database


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """A name and what it points to; times in nanoseconds since the epoch."""

    name: str
    descriptor: Descriptor
    created_ns: int
    updated_ns: int


class ImageStore:
    """The names of one state folder; every change is on the disk when the call returns.

    Attributes:
        changes: Counts them. Who finds the number that he noted before he read may keep what he read.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self.changes = 0

    def set(self, name: str, descriptor: Descriptor) -> None:
        """Point ``name`` to ``descriptor``, whose blobs must be stored with their refs.

        Args:
            name: The full reference with its tag, ``docker.io/library/app:latest``.
            descriptor: The manifest or index.

        Raises:
            DiskFullError: there is no room.
        """
        now = self._clock.now_ns()
        with self._database.transaction(durable=True) as cursor:
            self.changes += 1  # before anybody can read the new state
            cursor.execute(
                "INSERT INTO images (name, digest, descriptor, created_ns, updated_ns)"
                " VALUES (?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET"
                " digest = excluded.digest, descriptor = excluded.descriptor,"
                " updated_ns = excluded.updated_ns",
                (name, descriptor.digest, json.dumps(descriptor.to_json()), now, now),
            )

    def get(self, name: str) -> Descriptor | None:
        """Return what ``name`` points to."""
        rows = self._database.execute("SELECT descriptor FROM images WHERE name = ?", (name,))
        return Descriptor.from_json(json.loads(rows[0][0])) if rows else None

    def delete(self, name: str) -> bool:
        """Remove a name; return whether it was there. Its blobs go with the next collection."""
        with self._database.transaction(durable=True) as cursor:
            self.changes += 1  # before anybody can read the new state
            cursor.execute("DELETE FROM images WHERE name = ?", (name,))
            return cursor.rowcount > 0

    def list(self) -> list[ImageRecord]:
        """Return all names in alphabetical order."""
        rows = self._database.execute(
            "SELECT name, descriptor, created_ns, updated_ns FROM images ORDER BY name"
        )
        return [
            ImageRecord(row[0], Descriptor.from_json(json.loads(row[1])), row[2], row[3])
            for row in rows
        ]
