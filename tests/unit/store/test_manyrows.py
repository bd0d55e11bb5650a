"""What is asked once for each of many things must not look at all rows of a table."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

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
