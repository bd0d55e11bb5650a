"""Bring the snapshot of a shared folder up to date.

The last state is a committed snapshot that never changes; what changed since goes into a new
layer on top of it. So an unchanged folder costs a comparison and gives the same snapshot, a
changed one costs its changes, a build that still reads the old state is not disturbed, and an
interrupted sync leaves nothing behind. After some layers the tree is copied into a fresh one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from boxwright.core.dataclass import dataclass, field
from boxwright.core.workers import to_worker
from boxwright.session.base import FIRST_STATS, TransferError
from boxwright.session.packets import Stat, decode_stat, join_path, split_path, stat_packet
from boxwright.session.treewrite import TreeNames, TreeWriter, remove
from boxwright.snapshots import content_tree
from boxwright.snapshots.content_tree import ContentTree
from boxwright.snapshots.contenthash import content_hashes
from boxwright.snapshots.linkcopy import LinkCopier
from boxwright.snapshots.manager import SnapshotManager
from boxwright.snapshots.refs import ImmutableRef, MutableRef
from boxwright.sources.contentheader import content_header, header_digest
from boxwright.sources.localindex import (
    KIND_DIR,
    KIND_FILE,
    KIND_HARDLINK,
    KIND_OTHER,
    KIND_SYMLINK,
    ContextIndex,
    Entry,
    closest,
)
from boxwright.sources.locallisting import Listing

MAX_DEPTH = 16
_DOUBTFUL_BYTES = 256 << 10
_DOUBTFUL_FILES = 16
RECORD_TYPE = "source.local"
_TREE_KINDS = {KIND_DIR: content_tree.FOLDER, KIND_SYMLINK: content_tree.SYMLINK}


def kind_of(stat: Stat) -> int:
    """Return the index's kind of an entry."""
    if stat.is_file:
        return KIND_HARDLINK if stat.linkname else KIND_FILE
    if stat.is_dir:
        return KIND_DIR
    if stat.is_symlink:
        return KIND_SYMLINK
    return KIND_HARDLINK if stat.is_hardlink else KIND_OTHER


@dataclass(slots=True)
class _Doubtful:
    """A file with the stat of the last state, whose content is compared.

    Attributes:
        stat: What the other side says of it.
        old: Its entry in the last state.
        pieces: Its content.
    """

    stat: Stat
    old: Entry
    pieces: list[bytes] = field(default_factory=list)

    def is_same(self) -> bool:
        """Return whether the content is that of the last state."""
        hasher = hashlib.sha256(content_header(self.stat))
        for data in self.pieces:
            hasher.update(data)
        return hasher.digest() == self.old.digest


class LocalTree:
    """One sync of one shared folder; a :class:`~boxwright.session.base.TreeReceiver`.

    Args:
        manager: Where snapshots are made.
        known: Earlier states, the last one first, with their snapshots held by the caller. The
            last one is the base of this sync, unless :meth:`begin` chooses another.
        description: For listings of snapshots.
        trust_stats: Take an unchanged stat for unchanged content (the ``metadata`` differ).
        keep_owner: Whether owners can be set.
    """

    def __init__(
        self,
        manager: SnapshotManager,
        known: Sequence[tuple[ContextIndex, ImmutableRef]],
        *,
        description: str,
        trust_stats: bool = True,
        keep_owner: bool = True,
    ) -> None:
        self._manager = manager
        self._known = known
        self._description = description
        self._trust_stats = trust_stats
        self._mounts = AsyncExitStack()
        self._mutable: MutableRef | None = None
        self._flat = False
        self._fresh_files: dict[bytes, Entry] = {}
        self._changed_paths: list[bytes] = []
        self._gone: set[bytes] = set()
        self._touched: set[bytes] = set()
        self._planned_dirs: set[bytes] = set()
        self._doubtful: dict[int, _Doubtful] = {}
        self._doubtful_paths: set[bytes] = set()
        self._doubtful_links: list[Stat] = []
        self._doubtful_bytes = 0
        self._at = 0
        self._has_run_only = True
        self._packets: list[bytes] = []
        self.names = TreeNames()
        self.writer = TreeWriter(b"", keep_owner=keep_owner, header=content_header)
        self.entries: dict[bytes, Entry] = {}
        self._use(*known[0]) if known else self._use(ContextIndex(), None)

    def _use(self, base: ContextIndex, base_ref: ImmutableRef | None) -> None:
        self._base = base
        self._base_ref = base_ref
        self._listing = base.listing if self._trust_stats else None
        self.changed = base_ref is None

    @property
    def base(self) -> ContextIndex:
        """The state that this is a change of; an empty one for none."""
        return self._base

    @property
    def is_successor(self) -> bool:
        """Whether half of the base is unchanged: this is a later state of the same folder."""
        kept = len(self.entries) - len(self._changed_paths)
        return 2 * kept >= len(self._base.entries)

    def begin(self, first: Sequence[bytes]) -> None:
        """Choose the state that these encoded stats belong to; a fresh start if none."""
        states = [index for index, _ in self._known]
        chosen = closest(states, first, complete=len(first) < FIRST_STATS)
        if chosen is not None:
            self._use(*self._known[chosen])
        else:
            self._use(ContextIndex(), None)

    def take_known(self, batch: Sequence[bytes], start: int) -> int:
        """Take over the entries of the last state that are named again, one behind the other."""
        if self._listing is None:
            return 0
        count = self._listing.common(self._at, batch, start)
        if count:
            if not self._has_run_only:
                self._keep_run(self._listing, self._at, self._at + count)
            self._at += count
        return count

    def _keep_run(self, listing: Listing, begin: int, end: int) -> None:
        entries, names = listing.run(begin, end)
        self.names.add_run(names)
        self.entries.update(entries)
        self._packets += listing.packets[begin:end]

    def _note_run(self) -> None:
        """Write down the entries from the first on that were taken over before another came.

        As long as nothing else has come, their number says it all.
        """
        if self._has_run_only:
            self._has_run_only = False
            if self._listing is not None and self._at:
                self._keep_run(self._listing, 0, self._at)

    def add(self, file_id: int, raw_stat: bytes) -> bool:
        """Take an encoded stat; return whether its data is wanted."""
        self._note_run()
        path, rest = split_path(raw_stat)
        self._packets.append(stat_packet(raw_stat))
        if self._listing is not None and (place := self._listing.place(path)) is not None:
            self._at = place + 1
        if self.keep_if_same(path, rest):
            return False
        stat = decode_stat(raw_stat)
        if self._doubt(file_id, stat, rest):
            return True
        if self.add_changed(stat, rest):
            self.writer.expect(file_id, stat)
            return True
        return False

    def _doubt(self, file_id: int, stat: Stat, rest: bytes) -> bool:
        """Take over a small file whose stat is the same, until its content says otherwise.

        Dockerfiles are asked for in this way in every build.
        """
        old = self._base.entries.get(stat.path)
        if (
            old is None
            or old.rest != rest
            or old.kind != KIND_FILE
            or stat.size > _DOUBTFUL_BYTES
            or len(self._doubtful) == _DOUBTFUL_FILES
        ):
            return False
        self.keep(stat.path, old)
        self._doubtful[file_id] = _Doubtful(stat, old)
        self._doubtful_paths.add(stat.path)
        return True

    def keep_if_same(self, path: bytes, rest: bytes) -> bool:
        """Take over an entry of the last state if nothing about it has changed."""
        old = self._base.entries.get(path)
        if old is None or old.rest != rest:
            return False
        if old.kind == KIND_HARDLINK or (not self._trust_stats and old.kind == KIND_FILE):
            return False
        self.keep(path, old)
        return True

    def keep(self, path: bytes, entry: Entry) -> None:
        """Take over an entry of the last state."""
        self.names.add_known(
            path, is_folder=entry.kind == KIND_DIR, is_file=entry.kind in {KIND_FILE, KIND_OTHER}
        )
        self.entries[path] = entry

    def add_changed(self, stat: Stat, rest: bytes, *, inode: int = 0, ctime_ns: int = 0) -> bool:
        """Take a new or changed entry; return whether it is a file whose data is needed."""
        path = stat.path
        old = self._base.entries.get(path)
        self.names.add(stat, known_clean=old is not None)
        kind = kind_of(stat)
        if (
            kind == KIND_HARDLINK
            and old is not None
            and old.rest == rest
            and stat.linkname not in self._fresh_files
        ):
            self.entries[path] = old  # the same second name of the same, unchanged file
            if stat.linkname in self._doubtful_paths:
                self._doubtful_links.append(stat)
            return False
        return self._note_changed(stat, rest, kind, inode, ctime_ns)

    def _note_changed(
        self, stat: Stat, rest: bytes, kind: int, inode: int = 0, ctime_ns: int = 0
    ) -> bool:
        path = stat.path
        self.entries[path] = entry = Entry(rest, kind, b"", inode, ctime_ns)
        self._changed_paths.append(path)
        self._touch(path)
        if kind == KIND_FILE:
            self._fresh_files[path] = entry
            return True
        if kind == KIND_DIR:
            self._planned_dirs.add(path)
        self.writer.plan(stat)
        return False

    def restate(self, path: bytes, entry: Entry) -> None:
        """Correct what was said of a changed file before its content was read."""
        self.entries[path] = self._fresh_files[path] = entry

    def _touch(self, path: bytes) -> None:
        self.changed = True
        self._touched.add(path.rpartition(b"/")[0])

    def end(self) -> None:
        """All entries are named: what the last state has more than that is to be removed."""
        if self._has_run_only and not self.entries and self._at == len(self._base.entries):
            self.entries = self._base.entries
            return
        self._note_run()
        for path in self._base.entries.keys() - self.entries.keys():
            parent = path.rpartition(b"/")[0]
            if not parent or parent in self.names.folders:  # else it goes with its folder
                self._gone.add(path)
                self._touch(path)

    async def prepare(self) -> None:
        """Make and mount the new layer, once, and only if there is a change."""
        if self._mutable is not None or not self.changed:
            return
        flatten = self._base_ref is not None and self._base.depth >= MAX_DEPTH
        parent = None if flatten else self._base_ref
        self._mutable = self._manager.new(
            parent, description=self._description, record_type=RECORD_TYPE
        )
        root = await self._mounts.enter_async_context(self._mutable.mounted())
        if flatten and self._base_ref is not None:
            async with self._base_ref.mounted() as view:
                await to_worker(_copy_tree, view, root)
        self.writer.root = os.fsencode(root)
        self._flat = parent is None

    def write(self, batch: Sequence[tuple[int, bytes]]) -> None:
        """Write pieces of files; those of doubtful ones are kept until all are here.

        Raises:
            TransferError: a small file was sent as a large one.
        """
        if self._doubtful:
            certain = []
            for file_id, data in batch:
                doubtful = self._doubtful.get(file_id)
                if doubtful is None:
                    certain.append((file_id, data))
                    continue
                doubtful.pieces.append(data)
                self._doubtful_bytes += len(data)
            if self._doubtful_bytes > 2 * _DOUBTFUL_FILES * _DOUBTFUL_BYTES:
                raise TransferError("files grew while they were sent")
            batch = certain
        if batch:
            self.writer.write(batch)

    async def finish(self) -> None:
        """Write what remains; the tree is then as the other side named it."""
        refuted = [each for each in self._doubtful.items() if not each[1].is_same()]
        for file_id, doubtful in refuted:
            self._note_changed(doubtful.stat, doubtful.old.rest, KIND_FILE)
            self.writer.expect(file_id, doubtful.stat)
        for stat in self._doubtful_links:
            if stat.linkname in self._fresh_files:
                self._note_changed(stat, self.entries[stat.path].rest, KIND_HARDLINK)
        if self.changed:
            await self.prepare()
            await to_worker(self._finish, refuted)

    def _finish(self, refuted: Sequence[tuple[int, _Doubtful]]) -> None:
        self.writer.make_planned()
        for file_id, doubtful in refuted:
            self.writer.write([*((file_id, data) for data in doubtful.pieces if data)])
            self.writer.write([(file_id, b"")])
        for path in self._gone:
            remove(self.writer.absolute(path))
        self.writer.close(tuple(self._touched_folders()))
        for path, entry in self._fresh_files.items():
            self.entries[path] = entry._replace(digest=self.writer.digests[path])
        for path, entry in self.entries.items():
            if entry.kind == KIND_HARDLINK and not entry.digest:
                self._copy_digest(path, entry)

    def _copy_digest(self, path: bytes, entry: Entry) -> None:
        """A hard link has the content digest of the file that it is."""
        target = self.entries.get(decode_stat(entry.rest).linkname)
        if target is not None:
            self.entries[path] = entry._replace(digest=target.digest)

    def _touched_folders(self) -> Iterable[Stat]:
        """Folders that get new times by what is written into them but keep their own."""
        for path in self._touched - self._planned_dirs - {b""}:
            entry = self.entries.get(path)
            if entry is not None and entry.kind == KIND_DIR:
                yield decode_stat(join_path(path, entry.rest))

    async def commit(self) -> tuple[ImmutableRef, ContextIndex]:
        """Return a handle on the snapshot of the new state, and its index."""
        if self._mutable is None:
            if self._base_ref is None:
                raise RuntimeError("commit of a tree that was not finished")
            return self._base_ref.clone(), self._index(self._base.snapshot_id, self._base.depth)
        await self._mounts.aclose()
        ref = await self._mutable.commit()
        await self._seed(ref)
        depth = 1 if self._flat else self._base.depth + 1
        return ref, self._index(ref.id, depth)

    def _index(self, snapshot_id: str, depth: int) -> ContextIndex:
        index = ContextIndex(snapshot_id, depth, self.entries)
        if self._has_run_only:
            index.listing = self._base.listing
        elif len(self._packets) == len(self.entries):
            index.listing = Listing(self.entries, self._packets)
        return index

    async def _seed(self, ref: ImmutableRef) -> None:
        """Hand over the content digests, so that nobody reads the files again for them."""
        hashes = content_hashes(self._manager)
        tree = await hashes.tree(self._base_ref.id) if self._base_ref is not None else None
        if tree is None or tree.root.children is None:
            tree, changed = ContentTree.of_synced(), list(self.entries)
        else:
            changed = self._changed_paths
        await to_worker(self._update_digests, tree, changed)
        hashes.seed(ref.id, tree)

    def _update_digests(self, tree: ContentTree, changed: Iterable[bytes]) -> None:
        for path in self._gone:
            tree.delete(b"/" + path)
        for path in changed:
            entry = self.entries[path]
            if entry.digest:
                tree.set(b"/" + path, content_tree.FILE, entry.digest)
                continue
            stat = decode_stat(join_path(path, entry.rest))
            kind = _TREE_KINDS.get(entry.kind, content_tree.FILE)
            link = stat.linkname if entry.kind == KIND_SYMLINK else b""
            tree.set(b"/" + path, kind, header_digest(stat), link)

    async def discard(self) -> None:
        """Throw away what was begun; harmless after a commit."""
        self.writer.abort()
        await self._mounts.aclose()
        if self._mutable is not None:
            await self._mutable.release()


def _copy_tree(source: Path, target: Path) -> None:
    LinkCopier().copy_tree(source, target)
