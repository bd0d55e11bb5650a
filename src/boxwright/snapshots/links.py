"""Files that snapshots share by hard link: each is counted once, where it was first.

A snapshot that copied by link is noted with the snapshots that it may have links into, its
*sources*. What it shares with them counts there. When a source is deleted, its files live on in
those that shared with it, its *heirs*: all their sizes are forgotten, and :func:`count` then finds out
in one pass which of them has a file first.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from boxwright.core.dataclass import dataclass
from boxwright.linux import files
from boxwright.store import schema
from boxwright.store.database import Database

schema.register(
    "snapshot-links",
    [
        """CREATE TABLE IF NOT EXISTS snapshot_links (
            snapshot TEXT NOT NULL REFERENCES snapshots (id) ON DELETE CASCADE,
            source TEXT NOT NULL REFERENCES snapshots (id) ON DELETE CASCADE,
            PRIMARY KEY (snapshot, source)) WITHOUT ROWID""",
        "CREATE INDEX IF NOT EXISTS snapshot_links_by_source ON snapshot_links (source)",
    ],
)


class Links:
    """Who may share files with whom."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def add(self, snapshot_id: str, sources: Iterable[str]) -> None:
        """Note that a snapshot may have links into others; those that are gone are left out."""
        self._db.execute_many(
            "INSERT OR IGNORE INTO snapshot_links SELECT ?1, id FROM snapshots"
            " WHERE id = ?2 AND id <> ?1",
            [(snapshot_id, source) for source in sources],
        )

    def sources(self, snapshot_id: str) -> list[str]:
        """Return the snapshots that this one may have links into."""
        query = "SELECT source FROM snapshot_links WHERE snapshot = ?"
        return [row[0] for row in self._db.execute(query, (snapshot_id,))]

    def heirs(self, snapshot_id: str) -> list[str]:
        """Return who may have links into this one, the oldest first."""
        query = (
            "SELECT snapshot FROM snapshot_links JOIN snapshots ON id = snapshot"
            " WHERE source = ? ORDER BY created_ns, id"
        )
        return [row[0] for row in self._db.execute(query, (snapshot_id,))]

    def family(self, snapshot_ids: Iterable[str]) -> set[str]:
        """Return who may share files with any of these, be it through others."""
        found: set[str] = set()
        asked = sorted(set(snapshot_ids))
        while asked:
            rows = self._db.execute(
                "SELECT snapshot, source FROM snapshot_links"
                " WHERE snapshot IN (SELECT value FROM json_each(?1))"
                " OR source IN (SELECT value FROM json_each(?1))",
                (json.dumps(asked),),
            )
            new = {each for row in rows for each in row} - found
            found |= new
            asked = sorted(new)
        return found

    def replace(self, snapshot_id: str, sources: Iterable[str]) -> None:
        """Note which snapshots this one has links into, now that it is known."""
        with self._db.transaction() as cursor:
            cursor.execute("DELETE FROM snapshot_links WHERE snapshot = ?", (snapshot_id,))
            self.add(snapshot_id, sources)

    def bequeath(self, snapshot_id: str) -> list[str]:
        """Hand on what a snapshot is to others before it is deleted.

        Returns:
            Who shared with it, the oldest first: their sizes are to be counted again.
        """
        heirs = self.heirs(snapshot_id)
        if heirs:
            above = self.sources(snapshot_id)
            for heir in heirs:
                self.add(heir, above)
            self._db.execute_many(
                "UPDATE snapshots SET size = NULL WHERE id = ?", [(heir,) for heir in heirs]
            )
        return heirs


@dataclass(frozen=True, slots=True)
class Tree:
    """A snapshot to count, and those that it may have links into."""

    id: str
    folder: Path
    sources: Mapping[str, Path]


@dataclass(frozen=True, slots=True)
class Counted:
    """What a snapshot takes alone, in bytes, and which others have its further files first."""

    tree: Tree
    size: int
    shares_with: frozenset[str]


def count(trees: Iterable[Tree]) -> list[Counted]:
    """Count snapshots, the oldest first; what several of them share counts in the first."""
    found: list[Counted] = []
    known: dict[str, frozenset[int]] = {}
    first: dict[int, str] = {}
    for tree in trees:
        own, shared = _sizes(tree.folder)
        others: set[str] = set()
        for source, folder in tree.sources.items():
            if not shared:
                break
            if source not in known:
                known[source] = frozenset(_inodes(folder))
            for inode in shared.keys() & known[source]:
                others.add(source)
                del shared[inode]
        for inode in list(shared):
            owner = first.setdefault(inode, tree.id)
            if owner != tree.id:
                others.add(owner)
                del shared[inode]
        found.append(Counted(tree, own + sum(shared.values()), frozenset(others)))
    return found


def own_size(folder: Path, others: Sequence[Path] = ()) -> int:
    """Return the bytes of a tree without what ``others`` have as well; 0 if it is missing."""
    return count([Tree("", folder, {str(path): path for path in others})])[0].size


def _sizes(folder: Path) -> tuple[int, dict[int, int]]:
    """Return the bytes that a tree has alone, and by inode those that have links elsewhere."""
    own = 0
    shared: dict[int, int] = {}
    links_left: dict[int, int] = {}
    for _, info in files.walk_status(folder):
        if info.st_nlink > 1 and not stat.S_ISDIR(info.st_mode):
            inode = info.st_ino
            left = links_left.get(inode, info.st_nlink) - 1
            links_left[inode] = left
            shared[inode] = info.st_blocks * files.STATUS_BLOCK
            if not left:
                own += shared.pop(inode)
            continue
        own += info.st_blocks * files.STATUS_BLOCK
    return own, shared


class Taken:
    """Tells which files of sealed layers a tree has already under another name. Blocks.

    A link to one of them would make two files of the tree hard links of each other, which programs
    that run in it notice: copies of both, and archives, would be one file.

    Args:
        links: Of the store.
        sources: Folders of the layers that are copied from.
        below: Folders of the layers that are below what is copied to.
    """

    def __init__(self, links: Links, sources: Sequence[Path], below: Sequence[Path]) -> None:
        self._links = links
        self._sources = sources
        self._below = below
        both = {*sources} & {*below}
        self._both = {place for place, layer in enumerate(sources) if layer in both}
        self._found: frozenset[int] | None = None

    def __call__(self, info: os.stat_result, layer: int | None) -> bool:
        """Return whether the tree has the file with ``info``, of that layer of the sources."""
        if layer in self._both:
            return True
        if info.st_nlink == 1:
            return False
        if self._found is None:
            self._found = frozenset(self._find())
        return info.st_ino in self._found

    def _find(self) -> Iterator[int]:
        family = self._links.family(_id_of(layer) for layer in self._sources)
        for layer in self._below:
            if _id_of(layer) in family:
                yield from _inodes(layer)


def have_twins(links: Links, base: Iterable[Path], upper: Iterable[Path]) -> bool:
    """Return whether a file of one of the ``upper`` layers is in another layer, too. Blocks."""
    upper = list(upper)
    family = links.family(_id_of(layer) for layer in upper)
    seen: set[int] = set()
    for layer in base:
        if _id_of(layer) in family:
            seen.update(_inodes(layer))
    for layer in upper:
        if _id_of(layer) in family:
            own = set(_inodes(layer))
            if not seen.isdisjoint(own):
                return True
            seen |= own
    return False


def _id_of(layer: Path) -> str:
    return layer.parent.name


def _inodes(folder: Path) -> Iterator[int]:
    """Yield the inodes of everything in a tree but folders, without asking for their status."""
    pending = [os.fspath(folder)]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    else:
                        yield entry.inode()
        except FileNotFoundError:
            continue
