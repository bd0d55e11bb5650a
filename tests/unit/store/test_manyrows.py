"""What is asked once for each of many things must not look at all rows of a table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from boxwright.store import Store
from boxwright.store.database import Database


@contextmanager
def looking(database: Database) -> Iterator[list[str]]:
    """Collect, for the statements of the block, the steps of their plans that read whole tables."""
    said: list[str] = []
    found: list[str] = []
    database._connection.set_trace_callback(said.append)
    try:
        yield found
    finally:
        database._connection.set_trace_callback(None)
    for sql in said:
        if sql.split(None, 1)[0] in {"SELECT", "WITH", "UPDATE", "DELETE"}:
            for *_, step in database.execute(f"EXPLAIN QUERY PLAN {sql}"):
                if step.startswith(("SCAN", "LIST SUBQUERY")):
                    found.append(f"{step}: {sql}")


def test_a_blob_that_goes_is_looked_for_by_index(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    try:
        digest = store.blobs.put(b"gone")
        with looking(store.db) as whole:
            assert store.gc(grace_ns=0).blobs == 1
        asked = [each for each in whole if "RECURSIVE up" in each]
        assert {each.partition(":")[0] for each in asked} == {"SCAN up", "SCAN CONSTANT ROW"}
        assert store.blobs.stat(digest) is None
    finally:
        store.close()
