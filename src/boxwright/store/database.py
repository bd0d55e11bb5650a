"""One SQLite database in WAL mode, shared by all threads through one lock.

Queries that read very many rows have a connection of their own (:meth:`Database.scan`), so that
those of the event loop need not wait for them.

Invariant: a statement runs inside a transaction of its own or inside the caller's
``transaction()``; there are no implicit ones. With ``durable=True`` the commit is on the disk
when the block ends (``synchronous=FULL``: leases, tags, history); otherwise a power cut may
lose the last commits but never their order (``NORMAL``).
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from boxwright.store import schema
from boxwright.store.errors import DiskFullError, StoreCorruptError, StoreVersionError

Params = Sequence[Any]

_BUSY_TIMEOUT_MS = 5000


class Database:
    """The connection; safe from every thread, closed by its owner (the Store).

    Args:
        path: The file; made if missing.
        on_full: Called when the disk is full, before that is reported.

    Raises:
        StoreVersionError: a newer version wrote it.
        StoreCorruptError: it is no database, or damaged.
    """

    def __init__(self, path: Path, *, on_full: Callable[[], None] = lambda: None) -> None:
        self._path = path
        self._on_full = on_full
        self._lock = threading.RLock()
        self._scan_lock = threading.Lock()
        self._scanner: sqlite3.Connection | None = None
        self._depth = 0
        self._full_sync = False
        self._late_sync = False
        with self._errors():
            # 512 cached statements: the solver's queries are few but hot.
            self._connection = sqlite3.connect(
                path, isolation_level=None, check_same_thread=False, cached_statements=512
            )
            try:
                self._configure()
                self._migrate()
            except BaseException:
                self._connection.close()
                raise

    def _configure(self) -> None:
        run = self._connection.execute
        run(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = NORMAL")
        run("PRAGMA foreign_keys = ON")
        run("PRAGMA temp_store = MEMORY")
        run("PRAGMA cache_size = -8192")

    def _migrate(self) -> None:
        found = int(self._connection.execute("PRAGMA user_version").fetchone()[0])
        known = schema.latest_version()
        if found > known:
            raise StoreVersionError(self._path.parent, found, known)
        with self.transaction(durable=True) as cursor:
            for migration in schema.MIGRATIONS:
                if migration.version > found:
                    for statement in migration.statements:
                        cursor.execute(statement)
            for statement in schema.extensions():
                cursor.execute(statement)
            cursor.execute(f"PRAGMA user_version = {known:d}")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.IntegrityError:
            raise
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                self._on_full()
                raise DiskFullError(self._path) from error
            if error.sqlite_errorcode in _CORRUPT:
                raise StoreCorruptError(
                    f"the metadata database {self._path} is damaged",
                    detail=str(error),
                    hint="run 'boxwright prune --all --reset', or move the folder away",
                ) from error
            raise

    def execute(self, sql: str, params: Params = ()) -> list[tuple[Any, ...]]:
        """Run one statement and return all rows.

        Raises:
            DiskFullError: there was no room for it.
            StoreCorruptError: the file is damaged.
        """
        with self._lock, self._errors():
            return self._connection.execute(sql, params).fetchall()

    def scan(self, sql: str, params: Params = ()) -> list[tuple[Any, ...]]:
        """Run a query that reads very many rows; nobody but other scans waits for it.

        It sees what is committed when it begins, so not what a transaction around it wrote.

        Raises:
            StoreCorruptError: the file is damaged.
        """
        with self._scan_lock, self._errors():
            if self._scanner is None:
                self._scanner = sqlite3.connect(
                    self._path, isolation_level=None, check_same_thread=False
                )
                self._scanner.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
                self._scanner.execute("PRAGMA temp_store = MEMORY")
                self._scanner.execute("PRAGMA query_only = ON")
            return self._scanner.execute(sql, params).fetchall()

    def execute_many(self, sql: str, rows: Sequence[Params]) -> None:
        """Run one statement for many rows in one transaction.

        Raises:
            DiskFullError: there was no room for it; none of the rows is stored.
        """
        with self.transaction() as cursor:
            cursor.executemany(sql, rows)

    @contextmanager
    def transaction(self, *, durable: bool = False) -> Iterator[sqlite3.Cursor]:
        """Run the block as one transaction; nested blocks join the outermost one.

        The block holds the lock of the whole database: keep it short, no files, no waiting, and
        no commit or deletion of a blob (BlobStore takes its own lock first).

        Args:
            durable: Be on the disk when the outermost block ends.

        Raises:
            DiskFullError: there was no room; nothing of the block is stored.
        """
        with self._lock, self._errors():
            cursor = self._connection.cursor()
            if self._depth:
                self._late_sync = self._late_sync or (durable and not self._full_sync)
                yield cursor
                return
            self._depth, self._full_sync, self._late_sync = 1, durable, False
            if durable:  # the level can't change inside a transaction
                cursor.execute("PRAGMA synchronous = FULL")
            try:
                cursor.execute("BEGIN IMMEDIATE")
                yield cursor
                cursor.execute("COMMIT")
                if self._late_sync:  # a checkpoint syncs the log, and with it this commit
                    cursor.execute("PRAGMA wal_checkpoint(PASSIVE)")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.rollback()
                raise
            finally:
                self._depth = 0
                if durable:
                    cursor.execute("PRAGMA synchronous = NORMAL")

    def integrity_errors(self) -> list[str]:
        """Return what SQLite's own check finds wrong, at best nothing."""
        rows = self.execute("PRAGMA integrity_check") + self.execute("PRAGMA foreign_key_check")
        return [" ".join(map(str, row)) for row in rows if row != ("ok",)]

    def close(self) -> None:
        """Close the connections; the log is merged into the file."""
        with self._scan_lock, self._lock:
            if self._scanner is not None:
                self._scanner.close()  # first: the last one merges the log
            self._connection.close()


_CORRUPT = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
