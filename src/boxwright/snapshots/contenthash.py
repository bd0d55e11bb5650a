"""Content digests of paths in snapshots, equal to upstream's byte for byte.

The digest of a folder is the sha256 over its own header and, for each entry by name, a zero
byte, the name, and the entry's digest as text. With wildcards or patterns the digest is over
the list of all selected paths instead. Modification times never count. What was computed is
kept with the snapshot, so that a second question needs neither a mount nor a read.

Known places: files are read through the snapshot's own mount; a local sync hands over what it
hashed while receiving (:meth:`ContentHashes.seed`).
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from boxwright.core.dataclass import dataclass, field
from boxwright.core.digest import Digest
from boxwright.core.workers import to_worker
from boxwright.snapshots.content_tree import FILE, FOLDER, SYMLINK, ContentTree, TreeNode
from boxwright.snapshots.hasher import (
    ChecksumError,
    EmptyTreeError,
    Hasher,
    UnreadError,
    hash_file,
)
from boxwright.snapshots.selection import Selection, selected_entries, selection_digest
from boxwright.snapshots.tarsum import file_hash, unix_mode

if TYPE_CHECKING:
    from boxwright.snapshots.manager import SnapshotManager
    from boxwright.snapshots.refs import ImmutableRef

__all__ = [
    "FILE",
    "FOLDER",
    "SYMLINK",
    "ChecksumError",
    "ContentHashes",
    "ContentTree",
    "Selection",
    "checksum",
    "content_hashes",
    "file_hash",
    "hash_file",
    "unix_mode",
]

_VERSION = 1
_KEPT_TREES = 20
_MAX_STORED = 64 << 20

R = TypeVar("R")


async def checksum(
    ref: ImmutableRef | None,
    path: str,
    *,
    follow_links: bool = False,
    wildcard: bool = False,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    required: Iterable[str] = (),
) -> Digest:
    """Return the content digest of ``path`` in ``ref`` (``None`` is the empty tree).

    The other arguments are those of :class:`Selection`. A wildcard that matches nothing has the
    digest of nothing; a plain path that is missing is an error.

    Raises:
        ChecksumError: the path, or a required one, does not exist.
        PatternError: a pattern is malformed.
        LayerMissingError: a layer of the snapshot can no longer be fetched.
    """
    if ref is None:
        if path in {"/", ""}:
            return Digest.of(b"")
        raise EmptyTreeError(path)
    selection = Selection(follow_links, wildcard, tuple(include), tuple(exclude), tuple(required))
    return await content_hashes(ref.manager).checksum(ref, path, selection)


def content_hashes(manager: SnapshotManager) -> ContentHashes:
    """Return the service of a manager, one for each."""
    if manager.content_hashes is None:
        manager.content_hashes = ContentHashes(manager)
    return manager.content_hashes


@dataclass(slots=True)
class _Held:
    tree: ContentTree
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class ContentHashes:
    """Content trees of all snapshots of a manager; the last used ones are kept in memory."""

    def __init__(self, manager: SnapshotManager) -> None:
        self._manager = manager
        self._held: OrderedDict[str, _Held] = OrderedDict()

    async def checksum(self, ref: ImmutableRef, path: str, selection: Selection) -> Digest:
        """Return a digest; see :func:`checksum`."""
        raw = os.fsencode(path)
        held = await self._hold(ref.id)
        async with held.lock:

            def compute(root: Path | None) -> bytes:
                return selection_digest(Hasher(ref.id, held.tree, root), raw, selection)

            try:
                digest = await self._with_root(ref, held.tree, compute)
            finally:
                if held.tree.is_dirty:
                    await self._save(ref.id, held.tree)
        return Digest.from_hex(digest.hex())

    async def _with_root(
        self, ref: ImmutableRef, tree: ContentTree, compute: Callable[[Path | None], R]
    ) -> R:
        """Try with what is known already; mount only if something has to be read."""
        try:
            if tree.root.children is not None:
                return await to_worker(compute, None)
        except UnreadError:
            pass
        async with AsyncExitStack() as stack:
            root = await stack.enter_async_context(ref.mounted())
            return await to_worker(compute, root)

    async def _hold(self, ref_id: str) -> _Held:
        held = self._held.get(ref_id)
        if held is None:
            tree = await to_worker(self._load, ref_id)
            held = self._held.setdefault(ref_id, _Held(tree))
        self._held.move_to_end(ref_id)
        while len(self._held) > _KEPT_TREES:
            oldest, candidate = next(iter(self._held.items()))
            if candidate.lock.locked() or candidate is held:
                break
            del self._held[oldest]
        return held

    def _load(self, ref_id: str) -> ContentTree:
        rows = self._manager.store.db.execute(
            "SELECT tree FROM content_hashes WHERE snapshot = ? AND version = ?",
            (ref_id, _VERSION),
        )
        try:
            return ContentTree.decode(rows[0][0]) if rows else ContentTree()
        except ValueError:
            return ContentTree()  # read again what was damaged

    async def _save(self, ref_id: str, tree: ContentTree) -> None:
        tree.is_dirty = False
        await to_worker(self._store, ref_id, tree)

    def _store(self, ref_id: str, tree: ContentTree) -> None:
        data = tree.encode()
        if len(data) > _MAX_STORED:
            return
        # Only while the snapshot exists: it may have been pruned in the meantime.
        self._manager.store.db.execute(
            "INSERT OR REPLACE INTO content_hashes (snapshot, version, tree)"
            " SELECT id, ?, ? FROM snapshots WHERE id = ?",
            (_VERSION, data, ref_id),
        )

    def seed(self, ref_id: str, tree: ContentTree) -> None:
        """Hand over the digests of a snapshot that was hashed while it was written.

        They are stored with the first digest of a path that is computed from them; what nobody
        asks for (the folder of a Dockerfile) is not worth a transaction.

        Args:
            ref_id: A committed snapshot.
            tree: All of its entries (:meth:`ContentTree.of_synced`); forked, so that the
                caller may go on with his own for the next sync.
        """
        held = self._held[ref_id] = _Held(tree.fork())
        held.tree.is_dirty = True

    async def tree(self, ref_id: str) -> ContentTree:
        """Return a fork of what is known about a snapshot."""
        return (await self._hold(ref_id)).tree.fork()

    async def entries(
        self, ref_id: str, path: str, selection: Selection
    ) -> list[tuple[bytes, TreeNode]] | None:
        """Return what a digest that was asked for is made of; None if that is not known now."""
        held = await self._hold(ref_id)
        async with held.lock:
            try:
                return await to_worker(
                    selected_entries, Hasher(ref_id, held.tree, None), os.fsencode(path), selection
                )
            except (UnreadError, ChecksumError):
                return None

    def forget(self, ref_id: str) -> None:
        """Drop what is kept in memory about a snapshot that is deleted."""
        self._held.pop(ref_id, None)
