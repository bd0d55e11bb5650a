"""The database schema, one migration after the other.

Every table of the state folder is declared here or registered by its package before
:meth:`boxwright.store.store.Store.open` runs; a migration that has shipped never changes.
Every record of a thing that a build made carries *creator* (who made it, empty for the owner of
the folder) and *trust* (the scope that may use it, empty for everybody), so that
permissions can be added without a look back at unowned records.
"""

from __future__ import annotations

from collections.abc import Sequence

from boxwright.core.dataclass import dataclass


@dataclass(frozen=True, slots=True)
class Migration:
    """Statements that lead from schema version ``version - 1`` to ``version``."""

    version: int
    statements: Sequence[str]


_FIRST = (
    """CREATE TABLE meta (
        key TEXT PRIMARY KEY, value TEXT NOT NULL
    ) WITHOUT ROWID""",
    """CREATE TABLE blobs (
        digest TEXT PRIMARY KEY, size INTEGER NOT NULL, labels TEXT NOT NULL DEFAULT '{}',
        created_ns INTEGER NOT NULL, used_ns INTEGER NOT NULL,
        creator TEXT NOT NULL DEFAULT '', trust TEXT NOT NULL DEFAULT ''
    ) WITHOUT ROWID""",
    """CREATE TABLE blob_refs (
        parent TEXT NOT NULL, child TEXT NOT NULL, PRIMARY KEY (parent, child)
    ) WITHOUT ROWID""",
    """CREATE TABLE leases (
        id TEXT PRIMARY KEY, created_ns INTEGER NOT NULL, expires_ns INTEGER,
        boot TEXT NOT NULL, labels TEXT NOT NULL DEFAULT '{}', creator TEXT NOT NULL DEFAULT ''
    ) WITHOUT ROWID""",
    """CREATE TABLE lease_items (
        lease TEXT NOT NULL REFERENCES leases (id) ON DELETE CASCADE,
        kind TEXT NOT NULL, item TEXT NOT NULL, PRIMARY KEY (lease, kind, item)
    ) WITHOUT ROWID""",
    "CREATE INDEX lease_items_by_item ON lease_items (kind, item)",
    """CREATE TABLE images (
        name TEXT PRIMARY KEY, digest TEXT NOT NULL, descriptor TEXT NOT NULL,
        created_ns INTEGER NOT NULL, updated_ns INTEGER NOT NULL,
        creator TEXT NOT NULL DEFAULT '', trust TEXT NOT NULL DEFAULT ''
    ) WITHOUT ROWID""",
    """CREATE TABLE snapshots (
        id TEXT PRIMARY KEY, kind TEXT NOT NULL, parents TEXT NOT NULL DEFAULT '[]',
        description TEXT NOT NULL DEFAULT '', record_type TEXT NOT NULL DEFAULT 'regular',
        created_ns INTEGER NOT NULL, used_ns INTEGER NOT NULL,
        usage_count INTEGER NOT NULL DEFAULT 0,
        size INTEGER, boot TEXT, present INTEGER NOT NULL, plain INTEGER NOT NULL DEFAULT 0,
        chain_id TEXT UNIQUE, diff_id TEXT, blob TEXT, labels TEXT NOT NULL DEFAULT '{}',
        creator TEXT NOT NULL DEFAULT '', trust TEXT NOT NULL DEFAULT ''
    ) WITHOUT ROWID""",
    """CREATE TABLE snapshot_parents (
        child TEXT NOT NULL REFERENCES snapshots (id) ON DELETE CASCADE,
        parent TEXT NOT NULL REFERENCES snapshots (id), PRIMARY KEY (child, parent)
    ) WITHOUT ROWID""",
    "CREATE INDEX snapshot_parents_by_parent ON snapshot_parents (parent)",
    """CREATE TABLE snapshot_blobs (
        snapshot TEXT NOT NULL REFERENCES snapshots (id) ON DELETE CASCADE,
        digest TEXT NOT NULL, variant TEXT NOT NULL, descriptor TEXT NOT NULL,
        PRIMARY KEY (snapshot, variant, digest)
    ) WITHOUT ROWID""",
    "CREATE INDEX snapshot_blobs_by_digest ON snapshot_blobs (digest)",
    """CREATE TABLE content_hashes (
        snapshot TEXT PRIMARY KEY REFERENCES snapshots (id) ON DELETE CASCADE,
        version INTEGER NOT NULL, tree BLOB NOT NULL
    )""",
    """CREATE TABLE cache_mounts (
        id TEXT PRIMARY KEY, key TEXT NOT NULL, parent TEXT NOT NULL DEFAULT '',
        private INTEGER NOT NULL DEFAULT 0, description TEXT NOT NULL DEFAULT '',
        created_ns INTEGER NOT NULL, used_ns INTEGER NOT NULL,
        usage_count INTEGER NOT NULL DEFAULT 0, size INTEGER,
        creator TEXT NOT NULL DEFAULT '', trust TEXT NOT NULL DEFAULT ''
    ) WITHOUT ROWID""",
    "CREATE INDEX cache_mounts_by_key ON cache_mounts (key, parent)",
)

MIGRATIONS: list[Migration] = [
    Migration(1, _FIRST),
    # Cache mounts that no syncfs has covered are as doubtful after a power cut as snapshots.
    Migration(2, ("ALTER TABLE cache_mounts ADD COLUMN boot TEXT",)),
    # "Does anything lead to this blob?" is asked once for each blob that collection removes.
    Migration(
        3,
        (
            "CREATE INDEX blob_refs_by_child ON blob_refs (child)",
            "CREATE INDEX snapshots_by_blob ON snapshots (blob) WHERE blob IS NOT NULL",
            "CREATE INDEX images_by_digest ON images (digest)",
        ),
    ),
]

_extensions: dict[str, tuple[str, ...]] = {}
_blob_roots: dict[str, tuple[str, ...]] = {}


def latest_version() -> int:
    """Return the schema version that this program writes."""
    return MIGRATIONS[-1].version


def register(name: str, statements: Sequence[str], *, blob_roots: Sequence[str] = ()) -> None:
    """Add the tables of another package, made on every open when they are missing.

    Args:
        name: The package, once per program.
        statements: ``CREATE … IF NOT EXISTS`` only, so that they may run again.
        blob_roots: Queries of one column of blob digests that collection must keep, with an
            index by that column: each blob that goes is looked for in all of them.

    Raises:
        ValueError: a statement could fail or change something on its second run.
    """
    for statement in statements:
        if "IF NOT EXISTS" not in statement:
            raise ValueError(f"schema of {name}: write CREATE … IF NOT EXISTS")
    _extensions[name] = tuple(statements)
    _blob_roots[name] = tuple(blob_roots)


def extensions() -> list[str]:
    """Return the statements of all registered packages."""
    return [statement for group in _extensions.values() for statement in group]


def blob_roots() -> list[str]:
    """Return the queries of all registered packages for the blobs they need."""
    return [query for group in _blob_roots.values() for query in group]


# Indexes need no version of their own: an older program may go on with them.
register(
    "indexes",
    [
        # Of many snapshots few are new; all that go are looked for among the cache mounts' parents.
        "CREATE INDEX IF NOT EXISTS snapshots_unsynced ON snapshots (boot) WHERE boot IS NOT NULL",
        "CREATE INDEX IF NOT EXISTS snapshots_uncounted ON snapshots (size) WHERE size IS NULL",
        "CREATE INDEX IF NOT EXISTS cache_mounts_by_parent ON cache_mounts (parent)",
    ],
)

# Tables whose rows keep blobs are declared here, not where they are used: a process that collects
# garbage without ever importing their package must know them all the same.
register(
    "registry",
    [
        """CREATE TABLE IF NOT EXISTS registry_blobs (
            repository TEXT NOT NULL, digest TEXT NOT NULL,
            PRIMARY KEY (repository, digest)) WITHOUT ROWID""",
        """CREATE TABLE IF NOT EXISTS registry_manifests (
            repository TEXT NOT NULL, digest TEXT NOT NULL, media_type TEXT NOT NULL,
            subject TEXT, artifact_type TEXT NOT NULL DEFAULT '',
            annotations TEXT NOT NULL DEFAULT '{}', creator TEXT NOT NULL DEFAULT '',
            PRIMARY KEY (repository, digest)) WITHOUT ROWID""",
        """CREATE INDEX IF NOT EXISTS registry_manifests_by_subject
            ON registry_manifests (repository, subject)""",
        """CREATE INDEX IF NOT EXISTS registry_manifests_by_digest
            ON registry_manifests (digest)""",
        """CREATE TABLE IF NOT EXISTS registry_tags (
            repository TEXT NOT NULL, tag TEXT NOT NULL, digest TEXT NOT NULL,
            updated_ns INTEGER NOT NULL, creator TEXT NOT NULL DEFAULT '',
            PRIMARY KEY (repository, tag)) WITHOUT ROWID""",
    ],
    blob_roots=["SELECT digest FROM registry_manifests"],
)

register(
    "build_documents",
    [
        """CREATE TABLE IF NOT EXISTS build_documents (
            ref TEXT NOT NULL, digest TEXT NOT NULL, data BLOB NOT NULL,
            PRIMARY KEY (ref, digest)) WITHOUT ROWID""",
        "CREATE INDEX IF NOT EXISTS build_documents_by_digest ON build_documents (digest)",
    ],
)

register(
    "explain",
    [
        """CREATE TABLE IF NOT EXISTS build_keys (
            ref TEXT PRIMARY KEY, project BLOB NOT NULL, created_ns INTEGER NOT NULL,
            creator TEXT NOT NULL DEFAULT '', trust TEXT NOT NULL DEFAULT '',
            steps BLOB NOT NULL) WITHOUT ROWID""",
        "CREATE INDEX IF NOT EXISTS build_keys_by_age ON build_keys (created_ns)",
        """CREATE TABLE IF NOT EXISTS build_tables (
            ref TEXT NOT NULL, name BLOB NOT NULL, PRIMARY KEY (ref, name)) WITHOUT ROWID""",
        "CREATE INDEX IF NOT EXISTS build_tables_by_name ON build_tables (name)",
        """CREATE TABLE IF NOT EXISTS content_tables (
            name BLOB NOT NULL, position INTEGER NOT NULL, chunk BLOB NOT NULL,
            PRIMARY KEY (name, position)) WITHOUT ROWID""",
        "CREATE INDEX IF NOT EXISTS content_tables_by_chunk ON content_tables (chunk)",
        """CREATE TABLE IF NOT EXISTS content_subtables (
            parent BLOB NOT NULL, child BLOB NOT NULL,
            PRIMARY KEY (parent, child)) WITHOUT ROWID""",
        "CREATE INDEX IF NOT EXISTS content_subtables_by_child ON content_subtables (child)",
        """CREATE TABLE IF NOT EXISTS content_chunks (
            id BLOB PRIMARY KEY, entries BLOB NOT NULL) WITHOUT ROWID""",
    ],
)

register(
    "history",
    [
        (
            "CREATE TABLE IF NOT EXISTS build_history ("
            " ref TEXT PRIMARY KEY, created_ns INTEGER NOT NULL, completed_ns INTEGER NOT NULL,"
            " pinned INTEGER NOT NULL, creator TEXT NOT NULL DEFAULT '',"
            " trust_scope TEXT NOT NULL DEFAULT '', log_digest TEXT, record BLOB NOT NULL"
            ") WITHOUT ROWID"
        ),
        "CREATE INDEX IF NOT EXISTS build_history_by_age ON build_history (completed_ns)",
        "CREATE INDEX IF NOT EXISTS build_history_by_start ON build_history (created_ns)",
        (
            "CREATE INDEX IF NOT EXISTS build_history_by_log ON build_history (log_digest)"
            " WHERE log_digest IS NOT NULL"
        ),
    ],
    blob_roots=["SELECT log_digest FROM build_history WHERE log_digest IS NOT NULL"],
)
