"""Tables of files: what they share, and what differs between them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from boxwright.engine.contenttables import ContentTables, FileChange, subtable, table_name
from boxwright.engine.keyrecords import KeyRecord, KeyRecords
from boxwright.session.packets import Stat, encode_stat, split_path
from boxwright.snapshots.content_tree import FILE, FOLDER, ContentTree, TreeNode
from boxwright.snapshots.hasher import Hasher
from boxwright.store.database import Database
from boxwright.wire.pb import explain_pb2

Files = dict[bytes, bytes]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    made = Database(tmp_path_factory.mktemp("db") / "state.db")
    yield made
    made.close()


def entries(files: Files) -> list[tuple[bytes, TreeNode, bytes]]:
    """Return the whole of a tree, as a plain selection does."""
    tree = ContentTree.of_synced()
    for path, content in files.items():
        tree.set(path, FILE, hashlib.sha256(content).digest())
    for path in {path.rpartition(b"/")[0] for path in files} - {b""}:
        tree.set(path, FOLDER, hashlib.sha256(b"folder").digest())
    Hasher("test", tree, None).whole(b"", follow_last=False)
    return [(b"", tree.root, subtable(tree.root))]


def store(database: Database, name: bytes, files: Files) -> int:
    """Store a table as a build would; return how many chunks were new."""
    tables = ContentTables(database)
    made = tables.make(name, entries(files), stat_of)
    with database.transaction() as cursor:
        for table in made:
            tables.put(cursor, table)
        cursor.execute("INSERT OR IGNORE INTO build_tables VALUES ('build', ?)", (name,))
    return sum(len(table.fresh) for table in made)


def stat_of(path: bytes) -> bytes:
    """Return what a client would have sent."""
    return split_path(encode_stat(Stat(path[1:], 0o644, 1, 2, len(path))))[1]


names = st.lists(
    st.binary(min_size=1, max_size=4).map(lambda raw: b"/%d/" % (raw[0] % 3) + raw.hex().encode()),
    max_size=300,
    unique=True,
)
trees = names.flatmap(
    lambda paths: st.fixed_dictionaries({path: st.sampled_from([b"1", b"2"]) for path in paths})
)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    deadline=None,
)
@given(old=trees, new=trees)
def test_differences_are_those_of_the_files(database: Database, old: Files, new: Files) -> None:
    first, second = table_name("old", repr(old)), table_name("new", repr(new))
    store(database, first, old)
    store(database, second, new)
    found = ContentTables(database).changes(first, second)
    assert found is not None
    wanted = sorted(p for p in old.keys() | new.keys() if old.get(p) != new.get(p))
    files = [change for change in found if change.path.count(b"/") == 2]
    assert [change.path for change in files] == wanted
    folders = {path.rpartition(b"/")[0] for path in old} ^ {
        path.rpartition(b"/")[0] for path in new
    }
    assert {change.path for change in found if change not in files} == folders
    for change in files:
        assert (change.old is None) == (change.path not in old)
        assert (change.new is None) == (change.path not in new)


def test_one_changed_file_of_many_adds_one_chunk(database: Database) -> None:
    files = {b"/folder/%05d" % number: b"same" for number in range(10_000)}
    assert store(database, b"many-1", files) > 100
    # the file's chunk, the root's, and the entry of the table itself
    assert store(database, b"many-2", {**files, b"/folder/05000": b"other"}) == 3
    assert store(database, b"many-3", files) == 0
    (change,) = ContentTables(database).changes(b"many-1", b"many-2") or ()
    assert isinstance(change, FileChange)
    assert change.path == b"/folder/05000"
    assert change.new is not None
    assert change.new.stat == (0o100644, 1, 2, len(b"/folder/05000"))
    assert change.old is not None
    assert change.new.digest == hashlib.sha256(b"other").hexdigest()


def test_an_empty_table_is_a_table(database: Database) -> None:
    store(database, b"empty", {})
    assert ContentTables(database).missing([b"empty", b"unknown"]) == {b"unknown"}
    store(database, b"one", {b"/a/b": b"1"})
    found = ContentTables(database).changes(b"empty", b"one") or ()
    assert [(change.path, change.old) for change in found] == [(b"/a", None), (b"/a/b", None)]
    assert ContentTables(database).changes(b"empty", b"unknown") is None


def test_what_no_build_has_goes(tmp_path: Path) -> None:
    database = Database(tmp_path / "state.db")
    try:
        store(database, b"kept", {b"/x/a": b"1", b"/y/b": b"2"})
        store(database, b"gone", {b"/x/a": b"1", b"/y/b": b"3"})
        with database.transaction() as cursor:
            cursor.execute("DELETE FROM build_tables WHERE name = ?", (b"gone",))
            ContentTables.drop_unused(cursor, [b"gone"])
        assert ContentTables(database).missing([b"kept", b"gone"]) == {b"gone"}
        left = {row[0] for row in database.execute("SELECT id FROM content_chunks")}
        assert left == {row[0] for row in database.execute("SELECT chunk FROM content_tables")}
        store(database, b"other", {})
        found = ContentTables(database).changes(b"other", b"kept") or ()
        assert {change.path for change in found} == {b"/x", b"/x/a", b"/y", b"/y/b"}
    finally:
        database.close()


def test_tables_go_with_the_last_build_that_has_them(database: Database) -> None:
    store(database, b"common", {b"/x/a": b"1"})
    store(database, b"own", {b"/x/b": b"2"})
    records, builds = KeyRecords(database), {"one": [b"common"], "two": [b"common", b"own"]}
    for ref, names in builds.items():
        keys = explain_pb2.BuildKeys()
        step = keys.steps.add()
        for name in names:
            step.inputs.add(table=name)
        with database.transaction() as cursor:
            KeyRecords.save(cursor, ref, 1, KeyRecord(b"project", keys))
    with database.transaction() as cursor:
        KeyRecords.drop(cursor, ["build"])
    for ref, missing in (("one", set()), ("two", {b"common", b"own"})):
        with database.transaction() as cursor:
            KeyRecords.drop(cursor, [ref])
        assert records.find(ref) is None
        assert records.tables.missing([b"common", b"own"]) == missing
    assert database.execute("SELECT * FROM content_chunks") == []


@given(builds=st.lists(trees, min_size=1, max_size=6), chance=st.randoms(use_true_random=False))
def test_what_is_left_is_what_builds_lead_to(
    database: Database, builds: list[Files], chance: Random
) -> None:
    for table in ("build_tables", "content_tables", "content_subtables", "content_chunks"):
        database.execute(f"DELETE FROM {table}")
    for number, files in enumerate(builds):
        store(database, table_name("root", repr(files)), files)
        name = table_name("root", repr(files))
        database.execute("UPDATE build_tables SET ref = ? WHERE ref = 'build'", (str(number),))
        database.execute("INSERT OR IGNORE INTO build_tables VALUES (?, ?)", (str(number), name))
    refs = [str(number) for number in range(len(builds))]
    chance.shuffle(refs)
    for ref in refs:
        with database.transaction() as cursor:
            KeyRecords.drop(cursor, [ref])
        reached = database.execute(
            "WITH RECURSIVE reached (name) AS (SELECT name FROM build_tables UNION"
            " SELECT child FROM content_subtables JOIN reached ON parent = reached.name)"
            " SELECT DISTINCT name FROM reached ORDER BY 1"
        )
        left = "SELECT DISTINCT name FROM content_tables ORDER BY 1"
        assert database.execute(left) == reached
        chunks = "SELECT DISTINCT chunk FROM content_tables ORDER BY 1"
        assert database.execute("SELECT id FROM content_chunks ORDER BY 1") == database.execute(
            chunks
        )
    assert database.execute("SELECT * FROM content_subtables") == []
