"""Cache metadata in the store's database: keys, their results, and the links between them.

Each key has a row number; links and results refer to it, so that a link costs a few dozen bytes
and a look-up is one search in one b-tree. Digests are stored as their raw bytes.

Losing rows is harmless (a miss), so writes are not synced one by one; a key that leads nowhere
is removed together with the last result that it led to.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from sqlite3 import Cursor

from boxwright.core.cacheinfo import CacheInfoLink, CacheResult, root_key
from boxwright.core.digest import Digest
from boxwright.store import schema
from boxwright.store.database import Database

_SCHEMA = (
    """CREATE TABLE IF NOT EXISTS cache_keys (
        id INTEGER PRIMARY KEY, name BLOB NOT NULL UNIQUE
    )""",
    """CREATE TABLE IF NOT EXISTS cache_results (
        key INTEGER NOT NULL REFERENCES cache_keys (id) ON DELETE CASCADE,
        result TEXT NOT NULL, created_ns INTEGER NOT NULL,
        creator TEXT NOT NULL DEFAULT '', trust TEXT NOT NULL DEFAULT '',
        PRIMARY KEY (key, result)
    ) WITHOUT ROWID""",
    """CREATE INDEX IF NOT EXISTS cache_results_by_result ON cache_results (result)""",
    """CREATE TABLE IF NOT EXISTS cache_links (
        source INTEGER NOT NULL REFERENCES cache_keys (id) ON DELETE CASCADE,
        digest BLOB NOT NULL, input INTEGER NOT NULL, output INTEGER NOT NULL,
        selector BLOB NOT NULL,
        target INTEGER NOT NULL REFERENCES cache_keys (id) ON DELETE CASCADE,
        PRIMARY KEY (source, digest, input, output, selector, target)
    ) WITHOUT ROWID""",
    """CREATE INDEX IF NOT EXISTS cache_links_by_target ON cache_links (target)""",
)

schema.register("cachekeys", _SCHEMA)


class CacheKeyStore:
    """The solver's ``CacheKeyStorage`` over the store's database."""

    def __init__(self, database: Database, *, creator: str = "", trust: str = "") -> None:
        self._db = database
        self._creator = creator
        self._trust = trust
        for statement in _SCHEMA:
            database.execute(statement)

    def batch(self) -> AbstractContextManager[object]:
        """Make all writes of a block one transaction."""
        return self._db.transaction()

    def exists(self, key_id: str) -> bool:
        """Return whether the key has a result or leads to another key."""
        rows = self._db.execute(
            """SELECT EXISTS (SELECT 1 FROM cache_results
                WHERE key = (SELECT id FROM cache_keys WHERE name = ?1))
            OR EXISTS (SELECT 1 FROM cache_links
                WHERE source = (SELECT id FROM cache_keys WHERE name = ?1))""",
            (_pack(key_id),),
        )
        return bool(rows[0][0])

    def ids(self) -> Iterable[str]:
        """Return the ids of all keys."""
        return [_unpack(row[0]) for row in self._db.execute("SELECT name FROM cache_keys")]

    def result_ids(self) -> list[str]:
        """Return the ids of all results."""
        return [row[0] for row in self._db.execute("SELECT DISTINCT result FROM cache_results")]

    def results(self, key_id: str) -> list[CacheResult]:
        """Return the results of a key; none if there is no such key."""
        rows = self._db.execute(
            """SELECT result, created_ns FROM cache_results
            WHERE key = (SELECT id FROM cache_keys WHERE name = ?)""",
            (_pack(key_id),),
        )
        return [CacheResult(*row) for row in rows]

    def load(self, key_id: str, result_id: str) -> CacheResult | None:
        """Return one result of a key."""
        rows = self._db.execute(
            """SELECT result, created_ns FROM cache_results
            WHERE key = (SELECT id FROM cache_keys WHERE name = ?) AND result = ?""",
            (_pack(key_id), result_id),
        )
        return CacheResult(*rows[0]) if rows else None

    def add_result(self, key_id: str, result: CacheResult) -> None:
        """Store a result under a key, replacing one with the same id."""
        with self._db.transaction() as cursor:
            row = (_number(cursor, key_id), *result, self._creator, self._trust)
            cursor.execute("INSERT OR REPLACE INTO cache_results VALUES (?, ?, ?, ?, ?)", row)

    def release(self, result_id: str) -> None:
        """Forget a result under all keys, and every key that then leads nowhere."""
        with self._db.transaction() as cursor:
            keys = cursor.execute(
                "DELETE FROM cache_results WHERE result = ? RETURNING key", (result_id,)
            ).fetchall()
            pending = [row[0] for row in keys]
            while pending:
                pending.extend(_drop_if_empty(cursor, pending.pop()))

    def ids_by_result(self, result_id: str) -> list[str]:
        """Return the keys that have this result."""
        rows = self._db.execute(
            "SELECT name FROM cache_results JOIN cache_keys ON id = key WHERE result = ?",
            (result_id,),
        )
        return [_unpack(row[0]) for row in rows]

    def add_link(self, key_id: str, link: CacheInfoLink, target: str) -> None:
        """Make ``key_id`` lead to ``target`` under the condition ``link``."""
        with self._db.transaction() as cursor:
            row = (
                _number(cursor, key_id),
                _pack(link.digest),
                link.input,
                link.output,
                _pack(link.selector),
                _number(cursor, target),
            )
            cursor.execute("INSERT OR IGNORE INTO cache_links VALUES (?, ?, ?, ?, ?, ?)", row)

    def links(self, key_id: str, link: CacheInfoLink) -> list[str]:
        """Return where the key leads under exactly this condition."""
        rows = self._db.execute(
            """SELECT name FROM cache_links JOIN cache_keys ON id = target
            WHERE source = (SELECT id FROM cache_keys WHERE name = ?)
            AND digest = ? AND input = ? AND output = ? AND selector = ?""",
            (_pack(key_id), *_condition(link)),
        )
        return [_unpack(row[0]) for row in rows]

    def has_link(self, key_id: str, link: CacheInfoLink, target: str) -> bool:
        """Return whether the link is stored."""
        rows = self._db.execute(
            """SELECT 1 FROM cache_links
            WHERE source = (SELECT id FROM cache_keys WHERE name = ?)
            AND digest = ? AND input = ? AND output = ? AND selector = ?
            AND target = (SELECT id FROM cache_keys WHERE name = ?)""",
            (_pack(key_id), *_condition(link), _pack(target)),
        )
        return bool(rows)

    def backlinks(self, key_id: str) -> list[tuple[str, CacheInfoLink]]:
        """Return the keys that lead here, with ``link.digest`` already a root key."""
        rows = self._db.execute(
            """SELECT name, input, output, digest, selector
            FROM cache_links JOIN cache_keys ON id = source
            WHERE target = (SELECT id FROM cache_keys WHERE name = ?)""",
            (_pack(key_id),),
        )
        return [
            (
                _unpack(name),
                CacheInfoLink(number, 0, root_key(_unpack(digest), output), _unpack(selector)),
            )
            for name, number, output, digest, selector in rows
        ]


def _number(cursor: Cursor, key_id: str) -> int:
    """Return the row of a key, making it if it is new."""
    name = _pack(key_id)
    found = cursor.execute("SELECT id FROM cache_keys WHERE name = ?", (name,)).fetchone()
    if found is None:
        cursor.execute("INSERT INTO cache_keys (name) VALUES (?)", (name,))
        return int(cursor.lastrowid or 0)
    return int(found[0])


def _drop_if_empty(cursor: Cursor, key: int) -> list[int]:
    """Delete a key that has no results and leads nowhere; return the keys that led to it."""
    used = cursor.execute(
        "SELECT EXISTS (SELECT 1 FROM cache_results WHERE key = ?)"
        " OR EXISTS (SELECT 1 FROM cache_links WHERE source = ?)",
        (key, key),
    ).fetchone()[0]
    if used:
        return []
    parents = cursor.execute(
        "DELETE FROM cache_links WHERE target = ? RETURNING source", (key,)
    ).fetchall()
    cursor.execute("DELETE FROM cache_keys WHERE id = ?", (key,))
    return list(dict.fromkeys(row[0] for row in parents))


def _condition(link: CacheInfoLink) -> tuple[bytes | str, int, int, bytes | str]:
    return (_pack(link.digest), link.input, link.output, _pack(link.selector))


def _pack(text: str) -> bytes | str:
    """Return the raw bytes of a sha256 digest, anything else as it is."""
    if text.startswith("sha256:") and len(text) == 71:
        return bytes.fromhex(text[7:])
    return text


def _unpack(stored: bytes | str) -> str:
    return Digest.from_hex(stored.hex()) if isinstance(stored, bytes) else stored
