"""What is asked once for each of many things must not look at all rows of a table."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from boxwright.store import Store
from boxwright.store.database import Database

LookingAtAll = Callable[[Database], AbstractContextManager[list[str]]]


def test_a_blob_that_goes_is_looked_for_by_index(
    tmp_path: Path, looking_at_all: LookingAtAll
) -> None:
    store = Store.open(tmp_path)
    try:
        digest = store.blobs.put(b"gone")
        with looking_at_all(store.db) as whole:
            assert store.gc(grace_ns=0).blobs == 1
        for_each = [step.partition(":")[0] for step in whole if "RECURSIVE up" in step]
        assert set(for_each) == {"SCAN up"}
        assert store.blobs.stat(digest) is None
    finally:
        store.close()


def test_queries_wait_neither_for_scans_nor_scans_for_transactions(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    scanning, goes_on = threading.Event(), threading.Event()
    try:
        store.blobs.put(b"there")
        assert store.db.scan("SELECT count(*) FROM blobs") == [(1,)]
        assert store.db._scanner is not None

        def wait() -> int:
            scanning.set()
            return int(goes_on.wait(60))

        store.db._scanner.create_function("wait", 0, wait)
        with ThreadPoolExecutor(1) as pool:
            scan = pool.submit(store.db.scan, "SELECT wait(), count(*) FROM blobs")
            assert scanning.wait(60)
            store.blobs.put(b"made meanwhile")  # would wait for ever for the one lock
            assert not scan.done()
            goes_on.set()
            assert scan.result(60) == [(1, 1)]
            with store.db.transaction() as cursor:
                cursor.execute("DELETE FROM blobs")
                seen = pool.submit(store.db.scan, "SELECT count(*) FROM blobs")
                assert seen.result(60) == [(2,)]
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            store.db.scan("DELETE FROM blobs")
    finally:
        goes_on.set()
        store.close()
    assert not (tmp_path / "state.db-wal").exists()
