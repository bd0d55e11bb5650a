"""``store verify``: everything that a state folder holds, compared with what it says it holds.

Damage is what was committed and is lost or changed; a leftover is what a crash or an early end
left behind and nobody sees. Both are found; repair forgets what is damaged, so that it is made or
fetched again, and removes leftovers. What only its maker can bring back (an image whose layer
is gone) is named and stays.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from boxwright.core.dataclass import dataclass
from boxwright.core.digest import Digest
from boxwright.errors import BoxwrightError, Code
from boxwright.ops.result import SCRATCH_ID
from boxwright.snapshots.verify import count_trees, find_tree_problems, repair_trees
from boxwright.store.cachekeys import CacheKeyStore
from boxwright.store.errors import NotAStoreError
from boxwright.store.store import Store, VerifyReport
from boxwright.wire.pb import control_pb2

_REMEDIES = {
    "damaged-database": "",
    "damaged-image": "",
    "damaged-repository": "",
    "wrong-parents": "",
    "lost-log": "the build stays in the history without its log",
    "corrupt-blob": "forgotten: it is fetched or made again when it is needed",
    "missing-blob": "forgotten: it is fetched or made again when it is needed",
    "missing-snapshot": "forgotten with all that is built on it: a cache miss",
    "missing-cache-mount": "forgotten: the next step begins with an empty one",
    "torn-snapshot": "forgotten with all that is built on it: a cache miss",
    "torn-cache-mount": "forgotten: the next step begins with an empty one",
    "wrong-size": "counted again",
    "dangling-cache-result": "removed",
    "dangling-tag": "removed",
    "stray-blob": "removed",
    "stray-snapshot": "removed",
    "stray-file": "removed",
    "stray-cache-mount": "removed",
    "stray-ingest": "removed",
}


class StoreDamagedError(BoxwrightError):
    """A state folder that does not hold what it says.

    Args:
        root: The state folder.
        count: How many things are damaged.
        can_repair: Whether a repair would help with any of them.
    """

    code = Code.STORE_CORRUPT

    def __init__(self, root: Path, count: int, *, can_repair: bool) -> None:
        noun = "thing is" if count == 1 else "things are"
        super().__init__(
            f"{count} {noun} damaged in the state folder {root}",
            hint="run 'boxwright store verify --repair'"
            if can_repair
            else "pull or build the named images again, or remove their names",
        )
        self.count = count


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong; ``remedy`` is what a repair does, empty if it can't help."""

    kind: str
    item: str
    detail: str
    is_damage: bool

    @property
    def remedy(self) -> str:
        """What a repair does about it; empty: nothing can be done here."""
        return _REMEDIES[self.kind]


@dataclass(frozen=True, slots=True)
class StoreReport:
    """What was looked at and what was wrong, before any repair."""

    root: Path
    blobs: int
    trees: int
    problems: tuple[Problem, ...]
    is_repaired: bool

    @property
    def damage(self) -> list[Problem]:
        """What is damaged, and still is after the repair if there was one."""
        return [
            problem
            for problem in self.problems
            if problem.is_damage and not (self.is_repaired and problem.remedy)
        ]

    def raise_for_damage(self) -> None:
        """Do nothing on a folder that is sound.

        Raises:
            StoreDamagedError: something is damaged.
        """
        if damage := self.damage:
            can_repair = not self.is_repaired and any(each.remedy for each in damage)
            raise StoreDamagedError(self.root, len(damage), can_repair=can_repair)


def verify_store(root: Path, *, repair: bool = False, rootless: bool = False) -> StoreReport:
    """Open a state folder that nobody uses and check everything in it; slow.

    Args:
        root: The folder.
        repair: Put right what can be.
        rootless: As :meth:`Store.open`.

    Raises:
        NotAStoreError: there is no state folder.
        StoreLockedError: a process uses it.
        StoreCorruptError: its database can't be read at all.
    """
    if not (root / "state.db").exists():
        raise NotAStoreError(root)
    store = Store.open(root, rootless=rootless)
    try:
        trees = count_trees(store)
        found = [
            Problem(each.kind, each.item, each.detail, each.is_damage)
            for each in find_tree_problems(store)
        ]
        if repair:
            repair_trees(store)
        found += _cache_results(store)
        for name in sorted(os.listdir(store.blobs.ingest)):
            found.append(Problem("stray-ingest", name, "nobody writes it", is_damage=False))
            if repair:
                (store.blobs.ingest / name).unlink()
        blobs = store.verify(repair=repair)
        found += _blobs(blobs)
        bad = {*blobs.corrupt, *blobs.missing}
        found += _repositories(store, bad)
        found += _logs(store, bad)
        if repair:
            _repair_rows(store, found)
        return StoreReport(root, blobs.checked, trees, tuple(found), repair)
    finally:
        store.close(drain_trash=True)


def _blobs(report: VerifyReport) -> Iterator[Problem]:
    for text in report.database:
        yield Problem("damaged-database", "state.db", text, is_damage=True)
    for digest in report.corrupt:
        yield Problem("corrupt-blob", digest, "its content has another digest", is_damage=True)
    for digest in report.missing:
        yield Problem("missing-blob", digest, "its file is not there", is_damage=True)
    for name in report.stray:
        yield Problem("stray-blob", name, "no record knows it", is_damage=False)
    for name in report.broken_images:
        yield Problem("damaged-image", name, "a blob of it is damaged or gone", is_damage=True)


def _cache_results(store: Store) -> Iterator[Problem]:
    CacheKeyStore(store.db)
    rows = store.db.execute(
        "SELECT DISTINCT result FROM cache_results WHERE result <> ?"
        " AND result NOT IN (SELECT id FROM snapshots) ORDER BY result",
        (SCRATCH_ID,),
    )
    for (result,) in rows:
        yield Problem("dangling-cache-result", result, "its snapshot is gone", is_damage=False)


def _repositories(store: Store, bad: set[Digest]) -> Iterator[Problem]:
    rows = store.db.execute("SELECT repository, digest FROM registry_manifests ORDER BY 1, 2")
    for repository, digest in rows:
        if not store.is_whole(Digest(digest), bad):
            detail = "a blob of this manifest is damaged or gone"
            yield Problem("damaged-repository", f"{repository}@{digest}", detail, is_damage=True)
    rows = store.db.execute(
        "SELECT repository, tag FROM registry_tags WHERE NOT EXISTS (SELECT 1 FROM"
        " registry_manifests AS m WHERE m.repository = registry_tags.repository"
        " AND m.digest = registry_tags.digest) ORDER BY 1, 2"
    )
    for repository, tag in rows:
        yield Problem(
            "dangling-tag", f"{repository}:{tag}", "it names no manifest", is_damage=True
        )


def _logs(store: Store, bad: set[Digest]) -> Iterator[Problem]:
    rows = store.db.execute(
        "SELECT ref, log_digest FROM build_history WHERE log_digest IS NOT NULL ORDER BY ref"
    )
    for ref, digest in rows:
        if not store.is_whole(Digest(digest), bad):
            yield Problem("lost-log", ref, f"{digest} is damaged or gone", is_damage=True)


def _repair_rows(store: Store, problems: list[Problem]) -> None:
    cache = CacheKeyStore(store.db)
    for problem in problems:
        match problem.kind:
            case "dangling-tag":
                repository, _, tag = problem.item.rpartition(":")
                store.db.execute(
                    "DELETE FROM registry_tags WHERE repository = ? AND tag = ?", (repository, tag)
                )
            case "lost-log":
                _forget_log(store, problem.item)
    # Repairing the trees may have left further ones without their snapshot.
    with cache.batch():
        for problem in list(_cache_results(store)):
            cache.release(problem.item)


def _forget_log(store: Store, ref: str) -> None:
    rows = store.db.execute("SELECT record FROM build_history WHERE ref = ?", (ref,))
    record = control_pb2.BuildHistoryRecord()
    with contextlib.suppress(Exception):  # an unreadable record has no log either
        record = control_pb2.BuildHistoryRecord.FromString(rows[0][0])
    record.ClearField("logs")
    store.db.execute(
        "UPDATE build_history SET log_digest = NULL, record = ? WHERE ref = ?",
        (record.SerializeToString(), ref),
    )
