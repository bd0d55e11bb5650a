"""What to do about snapshots when their store is opened.

A folder without a row was never committed; a row of another boot without a syncfs may have lost
what its folder held; a row without its folder has lost it. Nothing is ever guessed from the content of a tree.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from boxwright.snapshots.records import Records, Row, own_folders
from boxwright.store import Store

logger = logging.getLogger(__name__)


def recover(store: Store, table: Records, folder: Path) -> None:
    """Forget trees that are torn or gone and remove folders that nothing knows.

    Raises:
        OSError: the folder can't be read.
    """
    lost = 0
    for row in reversed(table.unsynced()):  # children before parents
        if row.boot != store.boot_id:
            lost += _forget(table, row)
    names = {entry.name for entry in os.scandir(folder)}
    rows = table.all()
    for row in reversed(rows):
        if (row.present or row.plain) and row.id not in names and table.get(row.id):
            lost += _forget(table, row)
    known = {row.id: row for row in (table.all() if lost else rows)}
    for entry in list(os.scandir(folder)):
        found = known.get(entry.name)
        if found is None:
            store.discard(Path(entry.path))
            lost += 1
            continue
        vouched = own_folders(found)
        strays = [inner.path for inner in os.scandir(entry.path) if not vouched.get(inner.name)]
        if strays:
            # They were counted, and others may have links into them.
            for counted in (found.id, *table.links.heirs(found.id)):
                table.update(counted, size=None)
        for stray in strays:
            store.discard(Path(stray))
    if lost:
        logger.info("%d unfinished or unsynced snapshots removed", lost)


def _forget(table: Records, row: Row) -> int:
    """Forget a torn tree and all that is built on it; return how many records went."""
    if row.blob is not None or row.kind != "layer":
        # An image layer is unpacked again, a rewritten stack is rewritten again.
        table.update(row.id, present=0, plain=0, boot=None)
        return 1
    lost = 0
    for child in table.children(row.id):
        found = table.get(child)
        if found is None:
            continue
        lost += _forget_all(table, found)
    if table.get(row.id):
        table.delete(row.id)
    return lost + 1


def _forget_all(table: Records, row: Row) -> int:
    lost = 0
    for child in table.children(row.id):
        found = table.get(child)
        if found is not None:
            lost += _forget_all(table, found)
    if table.get(row.id):
        table.delete(row.id)
    return lost + 1
