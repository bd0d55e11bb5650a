"""Compare what the database says about trees with what lies on the disk.

Works on an open store without a :class:`~boxwright.snapshots.manager.SnapshotManager`, whose
opening would put most of it right silently. Trees carry no digest of their own: their rows,
folders, sizes and edges are checked, not the bytes of each file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from boxwright.core.dataclass import dataclass
from boxwright.snapshots.links import own_size
from boxwright.snapshots.records import Records, Row, own_folders
from boxwright.snapshots.recovery import recover
from boxwright.store import Store


@dataclass(frozen=True, slots=True)
class TreeProblem:
    """One contradiction.

    Attributes:
        kind: Stable name for programs.
        item: Snapshot or cache mount.
        detail: What was observed.
        is_damage: Something that was committed is lost; otherwise a leftover.
    """

    kind: str
    item: str
    detail: str
    is_damage: bool


def count_trees(store: Store) -> int:
    """Return how many snapshots and cache mounts the database knows."""
    rows = store.db.execute(
        "SELECT (SELECT count(*) FROM snapshots) + (SELECT count(*) FROM cache_mounts)"
    )
    return int(rows[0][0])


def find_tree_problems(store: Store) -> list[TreeProblem]:
    """Return everything that is wrong with snapshots and cache mounts; slow.

    Raises:
        OSError: a folder can't be read.
    """
    rows = Records(store.db).all()
    folder = store.root / "snapshots"
    found = [problem for row in rows for problem in _row_problems(store, row, folder / row.id)]
    found += _edge_problems(store, rows)
    found += _stray(folder, {row.id for row in rows}, "stray-snapshot")
    found += _cache_mount_problems(store)
    return found


def repair_trees(store: Store) -> None:
    """Forget what is torn or gone with all that is built on it, and count sizes again.

    Image layers stay as records and are unpacked again when they are needed.
    """
    table, folder = Records(store.db), store.root / "snapshots"
    for row in table.all():
        if list(_missing(row, folder / row.id)):
            store.discard(folder / row.id)
        elif row.size is not None and _size(table, row, folder / row.id) != row.size:
            table.update(row.id, size=None)
    if folder.exists():
        recover(store, table, folder)
    known = {row[0] for row in store.db.execute("SELECT id FROM cache_mounts")}
    mounts = store.root / "cachemounts"
    names = set(os.listdir(mounts)) if mounts.exists() else set()
    for name in names - known:
        store.discard(mounts / name)
    store.db.execute("DELETE FROM cache_mounts WHERE boot <> ?", (store.boot_id,))
    store.db.execute_many(
        "DELETE FROM cache_mounts WHERE id = ?", [(name,) for name in known - names]
    )


def _row_problems(store: Store, row: Row, folder: Path) -> Iterator[TreeProblem]:
    if row.boot is not None and row.boot != store.boot_id:
        detail = "the machine stopped before it was on the disk"
        yield TreeProblem("torn-snapshot", row.id, detail, is_damage=False)
        return
    missing = list(_missing(row, folder))
    for name in missing:
        yield TreeProblem("missing-snapshot", row.id, f"{name} is not there", is_damage=True)
    if missing or not folder.exists():
        return
    for name in sorted(set(os.listdir(folder)) - own_folders(row).keys()):
        item = f"{row.id}/{name}"
        yield TreeProblem("stray-file", item, "nothing knows it", is_damage=False)
    if row.size is not None and (size := _size(Records(store.db), row, folder)) != row.size:
        detail = f"{row.size} bytes recorded, {size} bytes on the disk"
        yield TreeProblem("wrong-size", row.id, detail, is_damage=False)


def _size(table: Records, row: Row, folder: Path) -> int:
    sources = [folder.with_name(source) for source in table.links.sources(row.id)]
    return own_size(folder, sources)


def _missing(row: Row, folder: Path) -> Iterator[str]:
    for name, is_vouched in own_folders(row).items():
        if is_vouched and not (folder / name).is_dir():
            yield name


def _edge_problems(store: Store, rows: list[Row]) -> Iterator[TreeProblem]:
    edges: dict[str, set[str]] = {}
    for child, parent in store.db.execute("SELECT child, parent FROM snapshot_parents"):
        edges.setdefault(child, set()).add(parent)
    for row in rows:
        wanted = {parent for parent in row.parents if parent}
        if wanted != edges.get(row.id, set()):
            detail = "its edges differ from its row"
            yield TreeProblem("wrong-parents", row.id, detail, is_damage=True)


def _stray(folder: Path, known: set[str], kind: str) -> list[TreeProblem]:
    if not folder.exists():
        return []
    return [
        TreeProblem(kind, name, "no record knows it", is_damage=False)
        for name in sorted(os.listdir(folder))
        if name not in known
    ]


def _cache_mount_problems(store: Store) -> list[TreeProblem]:
    folder = store.root / "cachemounts"
    rows = store.db.execute("SELECT id, boot FROM cache_mounts ORDER BY id")
    found = _stray(folder, {row[0] for row in rows}, "stray-cache-mount")
    for mount_id, boot in rows:
        if boot is not None and boot != store.boot_id:
            detail = "the machine stopped before it was on the disk"
            found.append(TreeProblem("torn-cache-mount", mount_id, detail, is_damage=False))
        elif not (folder / mount_id).is_dir():
            detail = "its folder is not there"
            found.append(TreeProblem("missing-cache-mount", mount_id, detail, is_damage=True))
    return found
