"""Leases: what somebody still needs, for as long as he holds it.

A lease of a running build ends with the process that made it, at the latest when the store is
opened again; a *persistent* one (an upload, a registry's pin) lives until it is released or
expires, and is on the disk when ``create`` returns.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Self

from boxwright.core.clock import Clock
from boxwright.core.dataclass import dataclass
from boxwright.core.digest import Digest
from boxwright.store.database import Database

_PERSISTENT = ""


@dataclass(frozen=True, slots=True)
class LeaseInfo:
    """One lease; times in nanoseconds since the epoch."""

    id: str
    created_ns: int
    expires_ns: int | None
    labels: Mapping[str, str]
    persistent: bool


class Lease:
    """A handle; usable from every thread, released by its holder or at the block's end."""

    def __init__(self, leases: Leases, lease_id: str) -> None:
        self._leases = leases
        self.id = lease_id

    def add_blob(self, digest: Digest) -> None:
        """Keep a blob, and what it refers to, from collection; it need not exist yet."""
        self._leases.add(self.id, "blob", (digest,))

    def add_blobs(self, digests: Iterable[Digest]) -> None:
        """Keep several blobs."""
        self._leases.add(self.id, "blob", digests)

    def add_snapshot(self, snapshot_id: str) -> None:
        """Keep a snapshot and those below it from being pruned."""
        self._leases.add(self.id, "snapshot", (snapshot_id,))

    def release(self) -> None:
        """Give everything up; harmless a second time."""
        self._leases.release(self.id)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.release()


class Leases:
    """All leases of one state folder."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._run = secrets.token_hex(8)

    def create(
        self,
        lease_id: str | None = None,
        *,
        labels: Mapping[str, str] | None = None,
        expires_ns: int | None = None,
        persistent: bool = False,
    ) -> Lease:
        """Make a lease, or renew the expiry of the one with this id.

        Args:
            lease_id: A name that its holder finds it by again; random if not given.
            labels: Free facts for listings.
            expires_ns: Nanoseconds since the epoch; ``None`` never expires.
            persistent: Outlive this process.
        """
        lease_id = lease_id or secrets.token_hex(12)
        with self._database.transaction(durable=persistent) as cursor:
            cursor.execute(
                "INSERT INTO leases (id, created_ns, expires_ns, boot, labels)"
                " VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT (id) DO UPDATE SET expires_ns = excluded.expires_ns",
                (
                    lease_id,
                    self._clock.now_ns(),
                    expires_ns,
                    _PERSISTENT if persistent else self._run,
                    json.dumps(dict(labels or {}), sort_keys=True),
                ),
            )
        return Lease(self, lease_id)

    def add(self, lease_id: str, kind: str, items: Iterable[str]) -> None:
        """Add items of one kind (``blob`` or ``snapshot``) to a lease.

        Raises:
            sqlite3.IntegrityError: the lease was released already (a bug of the caller).
        """
        self._database.execute_many(
            "INSERT OR IGNORE INTO lease_items (lease, kind, item) VALUES (?, ?, ?)",
            [(lease_id, kind, item) for item in items],
        )

    def release(self, lease_id: str) -> None:
        """Remove a lease and its items, if it is still there."""
        self._database.execute("DELETE FROM leases WHERE id = ?", (lease_id,))

    def list(self) -> list[LeaseInfo]:
        """Return all leases by their age."""
        rows = self._database.execute(
            "SELECT id, created_ns, expires_ns, labels, boot FROM leases ORDER BY created_ns, id"
        )
        return [
            LeaseInfo(row[0], row[1], row[2], json.loads(row[3]), row[4] == _PERSISTENT)
            for row in rows
        ]

    def snapshots(self) -> set[str]:
        """Return the ids of all leased snapshots."""
        rows = self._database.scan("SELECT item FROM lease_items WHERE kind = 'snapshot'")
        return {row[0] for row in rows}

    def has_snapshot(self, snapshot_id: str) -> bool:
        """Return whether a lease holds a snapshot."""
        query = "SELECT 1 FROM lease_items WHERE kind = 'snapshot' AND item = ? LIMIT 1"
        return bool(self._database.execute(query, (snapshot_id,)))

    def expire(self) -> int:
        """Remove expired leases; return how many."""
        rows = self._database.execute(
            "DELETE FROM leases WHERE expires_ns <= ? RETURNING id", (self._clock.now_ns(),)
        )
        return len(rows)

    def recover(self) -> int:
        """Remove the leases of processes that are gone, and expired ones; return how many."""
        rows = self._database.execute(
            "DELETE FROM leases WHERE boot NOT IN (?, ?) RETURNING id", (_PERSISTENT, self._run)
        )
        return len(rows) + self.expire()
