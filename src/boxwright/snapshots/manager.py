"""All snapshots of one store: making, finding, mounting, merging, deleting.

On disk::

    <root>/snapshots/<id>/fs      one layer in overlayfs's form
    <root>/snapshots/<id>/view    a rewritten stack of a merge or diff (see records)
    <root>/snapshots/<id>/work    overlayfs's own, only while mounted for writing
    <root>/run/mnt/<n>            mount points

Invariants: a folder without a row is garbage; a committed folder never changes; a row is written
after its folder is whole. Trees are not synced file by file: a row carries the id of the boot
that made it until :meth:`SnapshotManager.sync` has covered it, and after another boot such a
row is forgotten (an image layer is merely unpacked again).

Public methods that are not coroutines touch only memory, SQLite rows and single folders.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

from boxwright.core.clock import Clock
from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.core.locks import KeyedLocks
from boxwright.core.workers import to_worker
from boxwright.linux import files
from boxwright.oci.annotations import UNCOMPRESSED
from boxwright.snapshots import chains, materialise
from boxwright.snapshots.backend import Backend, BackendName, open_backend
from boxwright.snapshots.errors import SnapshotInUseError, SnapshotNotFoundError
from boxwright.snapshots.links import Counted, Taken, Tree, count, own_size
from boxwright.snapshots.mounts import Mounts
from boxwright.snapshots.node import LayerBlob, Node
from boxwright.snapshots.preparation import Preparation
from boxwright.snapshots.records import Records, Row
from boxwright.snapshots.recovery import recover
from boxwright.snapshots.refs import ImmutableRef, Layer, LayerTree, MutableRef
from boxwright.snapshots.usage import SnapshotRecord
from boxwright.store import Store, trace
from boxwright.store.trash import remove_tree

if TYPE_CHECKING:
    from boxwright.snapshots.cachemounts import CacheMounts
    from boxwright.snapshots.contenthash import ContentHashes

_ID_BYTES = 8
_MAX_FETCHES = 8
_NOTED_AT_ONCE = 100
SOURCE_VARIANT = "source"
WHOLE_PREFIX = "tree:"
LOCAL_SOURCE = "source.local"


class SnapshotManager:
    """Owner of all snapshots of a store; belongs to one event loop, closed before the store."""

    def __init__(self, store: Store, backend: Backend) -> None:
        self.store = store
        self.clock: Clock = store.clock
        self.backend = backend
        self.table = Records(store.db)
        self._folder = store.root / "snapshots"
        self._nodes: dict[str, Node] = {}
        self._mutable: dict[str, MutableRef] = {}
        self.mutable_lock = KeyedLocks()  # of an unfinished tree: it is mounted by one at a time
        self.layer_locks = KeyedLocks()  # of snapshot and form of blob: one export makes a layer
        self._counting = asyncio.Lock()
        self._grown: set[str] = set()
        self.mounts = Mounts(backend, store.mounts)
        self._preparation = Preparation(self)
        self.content_hashes: ContentHashes | None = None
        self.cache_mounts: CacheMounts | None = None

    @classmethod
    def open(
        cls,
        store: Store,
        *,
        userxattr: bool | None = None,
        backend: BackendName = "overlay",
    ) -> Self:
        """Recover the snapshots of ``store``.

        Args:
            store: An open store.
            userxattr: Mark layers by ``user.`` attributes, as needed in a user namespace;
                the store's ``rootless`` if not given.
            backend: How stacks of layers are mounted; it is tried.

        Raises:
            MountError: the backend does not work here.
        """
        folder = store.root / "snapshots"
        folder.mkdir(exist_ok=True, mode=0o700)
        wants_userxattr = store.rootless if userxattr is None else userxattr
        manager = cls(store, open_backend(backend, folder, userxattr=wants_userxattr))
        recover(store, manager.table, folder)
        return manager

    def folder(self, snapshot_id: str) -> Path:
        """Return the folder of a record."""
        return self._folder / snapshot_id

    # -- handles ------------------------------------------------------------------------

    def node(self, snapshot_id: str) -> Node:
        """Return the record in memory.

        Raises:
            SnapshotNotFoundError: there is no such record.
        """
        found = self._nodes.get(snapshot_id)
        if found is None:
            row = self.table.get(snapshot_id)
            if row is None:
                raise SnapshotNotFoundError(snapshot_id)
            found = self._remember(row)
        return found

    def _remember(self, row: Row) -> Node:
        node = self._nodes[row.id] = Node(row, self.folder(row.id) / "fs")
        return node

    def hold(self, node: Node) -> ImmutableRef:
        """Return a counted handle on a record."""
        node.refs += 1
        return ImmutableRef(self, node)

    def drop(self, node: Node) -> None:
        """Take back one handle.

        The record stays in memory: others may be about to use its locks without a handle.
        """
        node.refs -= 1

    def borrow_parent(self, node: Node) -> ImmutableRef | None:
        """Return an uncounted handle on what a layer is built on."""
        row = node.row
        if row.kind == "diff" or not row.parents:
            return None
        return ImmutableRef(self, self.node(row.parents[0]), counted=False)

    def get(self, snapshot_id: str) -> ImmutableRef | None:
        """Return a handle on a committed snapshot, or ``None`` if it is gone."""
        if not self.exists(snapshot_id):
            return None
        node = self.node(snapshot_id)
        self._touch(node.row)
        return self.hold(node)

    def exists(self, snapshot_id: str) -> bool:
        """Return whether a snapshot is there and could be mounted.

        An image that was never unpacked is gone with the process that knew how to fetch it,
        unless its blobs are in the store: then :meth:`from_blobs` brings it back.
        """
        try:
            return self._preparation.is_available(self.node(snapshot_id))
        except SnapshotNotFoundError:
            return False

    def _touch(self, row: Row) -> None:
        row.used_ns = self.clock.now_ns()
        row.usage_count += 1
        self.table.touch(row.id, row.used_ns)

    # -- making -------------------------------------------------------------------------

    def new(
        self, parent: ImmutableRef | None, *, description: str, record_type: str = "regular"
    ) -> MutableRef:
        """Begin a tree on top of ``parent``, which is held until the tree ends.

        Args:
            parent: A committed snapshot, ``None`` for an empty tree.
            description: What makes it, for listings.
            record_type: As in the wire's UsageRecord.
        """
        snapshot_id = secrets.token_hex(_ID_BYTES)
        held = parent.clone() if parent is not None else None
        ref = MutableRef(self, snapshot_id, held, description, record_type)
        self._mutable[snapshot_id] = ref
        return ref

    async def ensure_upper(self, ref: MutableRef) -> list[Path]:
        """Make the folder of an unfinished tree and return the layers below, base first.

        Raises:
            LayerMissingError: a layer of the parent can no longer be fetched.
            DiskFullError: no space left.
        """
        layers = await ref.parent.stack() if ref.parent is not None else []
        if not ref.upper.exists():
            await to_worker(materialise.make_root, ref.upper, layers[-1] if layers else None)
        return layers

    async def mount_writable(self, ref: MutableRef) -> Path:
        """Mount an unfinished tree (its handle counts the users)."""
        layers = await self.ensure_upper(ref)
        if not layers:
            return ref.upper
        return await self.mounts.writable(layers, ref.upper, self.folder(ref.id) / "work")

    async def unmount_writable(self, ref: MutableRef, root: Path) -> None:
        """Undo :meth:`mount_writable`, even when cancelled."""
        if root != ref.upper:
            await self.mounts.unmount(root)

    def taken(self, sources: Sequence[Path], below: Sequence[Path]) -> Taken:
        """Return what tells which files of layers may not be linked into a tree."""
        return Taken(self.table.links, sources, below)

    async def commit(self, ref: MutableRef) -> ImmutableRef:
        """Write the row of a finished tree (its handle has made sure that nobody mounts it)."""
        await self.ensure_upper(ref)
        work = self.folder(ref.id) / "work"
        if work.exists():
            await to_worker(remove_tree, work)
        trace.point("snapshot-unmounted")
        row = Row(
            id=ref.id,
            kind="layer",
            parents=(ref.parent.id,) if ref.parent is not None else (),
            description=ref.description,
            record_type=ref.record_type,
            created_ns=ref.created_ns,
            used_ns=self.clock.now_ns(),
            usage_count=1,
            boot=self.store.boot_id,
        )
        with self.store.db.transaction():
            self.table.insert(row)
            self.table.links.add(row.id, ref.sources)
        trace.point("snapshot-recorded")
        await self._forget_mutable(ref)
        node = self._remember(row)
        return self.hold(node)

    async def discard(self, ref: MutableRef) -> None:
        """Throw an unfinished tree away."""
        self.store.discard(self.folder(ref.id))
        await self._forget_mutable(ref)

    async def _forget_mutable(self, ref: MutableRef) -> None:
        self._mutable.pop(ref.id, None)
        if ref.parent is not None:
            await ref.parent.release()

    def from_blobs(
        self, layers: Sequence[LayerBlob], *, description: str = "", record_type: str = "regular"
    ) -> ImmutableRef:
        """Return the snapshot of an image's layers; nothing is fetched or unpacked yet.

        The same diff ids in the same order are the same snapshot, whatever their compression.

        Args:
            layers: From the base up, at least one.
            description: For listings, where a layer has none of its own.
            record_type: As in the wire's UsageRecord.

        Raises:
            ValueError: there are no layers.
        """
        if not layers:
            raise ValueError("an image without layers has no snapshot")
        chain: str | None = None
        parent: Row | None = None
        with self.store.db.transaction():
            for layer in layers:
                chain = chains.extend_chain(chain, layer.diff_id)
                parent = self._chain_row(chain, layer, parent, description, record_type)
                self._offer(self.node(parent.id), layer)
        if parent is None:
            raise ValueError("an image without layers has no snapshot")
        top = self.node(parent.id)
        self._touch(top.row)
        return self.hold(top)

    def offer(self, layers: Sequence[LayerBlob]) -> None:
        """Say where the layers of an image can be fetched now, as far as they are known.

        A layer that nobody has read yet may be wanted again after the client whose content or
        logins it was to come from is gone. The client of a build that names the image offers
        them anew before its cached result is looked at.
        """
        chain: str | None = None
        for layer in layers:
            chain = chains.extend_chain(chain, layer.diff_id)
            row = self.table.by_chain(chain)
            if row is None:
                return
            if not row.present:
                row = self._chain_row(chain, layer, None, "", row.record_type)
                self._offer(self.node(row.id), layer)

    def _offer(self, node: Node, layer: LayerBlob) -> None:
        if layer.fetch is not None and not node.row.present:
            del node.fetches[: -_MAX_FETCHES + 1]
            node.fetches.append(layer.fetch)
            node.origin.update(layer.origin)

    def _chain_row(
        self,
        chain: str,
        layer: LayerBlob,
        parent: Row | None,
        description: str,
        record_type: str,
    ) -> Row:
        row = self.table.by_chain(chain)
        if row is None:
            now = self.clock.now_ns()
            row = Row(
                id=secrets.token_hex(_ID_BYTES),
                kind="layer",
                parents=(parent.id,) if parent is not None else (),
                description=layer.description or description,
                record_type=record_type,
                created_ns=layer.created_ns or now,
                used_ns=now,
                present=False,
                chain_id=chain,
                diff_id=layer.diff_id,
                blob=layer.descriptor.digest,
            )
            self.table.insert(row)
            self.table.add_blob(row.id, SOURCE_VARIANT, layer.descriptor)
        elif not row.present and row.blob != layer.descriptor.digest:
            # The same content in another compression: take the one that can be had now.
            row.blob = layer.descriptor.digest
            self.table.update(row.id, blob=row.blob)
            self.table.add_blob(row.id, SOURCE_VARIANT, layer.descriptor)
            if row.id in self._nodes:
                self._nodes[row.id].row.blob = row.blob
        return row

    def merge(self, refs: Sequence[ImmutableRef], *, description: str = "merge") -> ImmutableRef:
        """Return the tree of all ``refs`` laid over each other, the last on top.

        Nothing is copied unless deletions or repeated layers forbid a plain stack.

        Raises:
            ValueError: there are no refs.
        """
        if not refs:
            raise ValueError("merge of nothing")
        if len(refs) == 1:
            return refs[0].clone()
        return self._derived("merge", tuple(ref.id for ref in refs), description)

    def diff(
        self,
        lower: ImmutableRef | None,
        upper: ImmutableRef | None,
        *,
        description: str = "diff",
    ) -> ImmutableRef:
        """Return what ``upper`` has over ``lower``; ``None`` is the empty tree.

        Raises:
            ValueError: both are empty.
        """
        if upper is None and lower is None:
            raise ValueError("diff of nothing")
        if lower is None and upper is not None:
            return upper.clone()
        parents = (lower.id if lower else "", upper.id if upper else "")
        return self._derived("diff", parents, description)

    def _derived(
        self, kind: chains.DerivedKind, parents: tuple[str, ...], description: str
    ) -> ImmutableRef:
        now = self.clock.now_ns()
        row = Row(
            id=secrets.token_hex(_ID_BYTES),
            kind=kind,
            parents=parents,
            description=description,
            record_type="regular",
            created_ns=now,
            used_ns=now,
            usage_count=1,
            present=False,
        )
        self.table.insert(row)
        node = self._remember(row)
        return self.hold(node)

    # -- reading ------------------------------------------------------------------------

    async def prepare(self, node: Node) -> None:
        """Have everything on the disk that a mount of ``node`` needs."""
        await self._preparation.prepare(node)

    def stack_of(self, node: Node) -> list[Path]:
        """Return the folders that make up a prepared tree, base first."""
        return self._preparation.stack(node)

    def layer_nodes(self, node: Node) -> list[Node]:
        """Return the records of the layers that an image of ``node`` consists of, base first."""
        return self._preparation.layers(node)

    @asynccontextmanager
    async def mount_view(self, node: Node) -> AsyncIterator[Path]:
        """Give the read-only root of a tree; shared and counted."""
        holder = self.hold(node)
        try:
            await self.prepare(node)
            layers = self.stack_of(node)
            if len(layers) == 1:
                yield layers[0]
                return
            async with node.mount_lock:
                if node.view is None:
                    node.view = await self.mounts.view(layers)
                node.readers += 1
                view = node.view
            try:
                yield view
            finally:
                node.readers -= 1
                if node.readers == 0:
                    node.view = None
                    await self.mounts.unmount(view)
        finally:
            await holder.release()

    async def layers(self, node: Node) -> list[Layer]:
        """Return the layers of a tree from the base up.

        The states of a client's folder lie over each other, which nobody shall see in an image:
        they are one layer without what was deleted since.
        """
        nodes = self.layer_nodes(node)
        states = 0
        while states < len(nodes) and nodes[states].row.record_type == LOCAL_SOURCE:
            if nodes[states].row.parents != tuple(n.row.id for n in nodes[states - 1 : states]):
                break
            states += 1
        if states < 2:
            return [self._layer(item) for item in nodes]
        whole = self._layer(nodes[states - 1], is_whole=True)
        return [whole, *(self._layer(item) for item in nodes[states:])]

    def _layer(self, node: Node, *, is_whole: bool = False) -> Layer:
        row = node.row
        blobs = {
            variant.removeprefix(WHOLE_PREFIX): descriptor
            for variant, descriptor in self.table.blobs(row.id).items()
            if variant.startswith(WHOLE_PREFIX) == is_whole
            and (variant == SOURCE_VARIANT or self.store.blobs.stat(descriptor.digest))
        }
        diff_id = row.diff_id
        if is_whole:
            # "@" is a form with cut off times, so another archive.
            noted = (b.annotations.get(UNCOMPRESSED) for v, b in blobs.items() if "@" not in v)
            diff_id = next((Digest(text) for text in noted if text), None)
        return Layer(
            snapshot_id=row.id,
            diff_id=diff_id,
            blob=blobs.get(SOURCE_VARIANT) or next(iter(blobs.values()), None),
            blobs=blobs,
            description=row.description,
            created_ns=row.created_ns,
            is_whole=is_whole,
        )

    @asynccontextmanager
    async def layer_tree(
        self, snapshot_id: str, *, is_whole: bool = False
    ) -> AsyncIterator[LayerTree]:
        """Give a layer's own folder, what is below it, and both together."""
        node = self.node(snapshot_id)
        holder = self.hold(node)
        try:
            if is_whole:
                async with self.mount_view(node) as view:
                    yield LayerTree(view, None, view)
                return
            await self._preparation.prepare_layer(node)
            upper = self.folder(snapshot_id) / "fs"
            parent = node.row.parents[0] if node.row.parents else ""
            if not parent:
                yield LayerTree(upper, None, upper)
                return
            async with self.mount_view(self.node(parent)) as lower:
                if node.row.kind == "diff":
                    yield LayerTree(upper, lower, upper)
                    return
                async with self.mount_view(node) as view:
                    yield LayerTree(upper, lower, view)
        finally:
            await holder.release()

    async def fetch_layer(self, snapshot_id: str) -> None:
        """Bring the source blob of an image layer into the store, without unpacking it.

        Raises:
            LayerMissingError: it can no longer be fetched.
        """
        await self._preparation.fetch(self.node(snapshot_id))

    def layer_origin(self, snapshot_id: str) -> Mapping[str, str]:
        """Return the labels that the source blob of an image layer gets when it is fetched."""
        return self.node(snapshot_id).origin

    async def set_blob(
        self, snapshot_id: str, descriptor: Descriptor, diff_id: Digest, variant: str
    ) -> None:
        """Note a blob of a layer; see :meth:`ImmutableRef.set_blob`."""
        node = self.node(snapshot_id)
        with self.store.db.transaction():
            self.table.add_blob(snapshot_id, variant or descriptor.media_type, descriptor)
            if node.row.diff_id is None:
                node.row.diff_id = diff_id
                self.table.update(snapshot_id, diff_id=diff_id)

    async def get_blob(self, snapshot_id: str, variant: str) -> Descriptor | None:
        """Return a blob of a layer; see :meth:`ImmutableRef.get_blob`."""
        found = self.table.blobs(snapshot_id).get(variant)
        if found is None or self.store.blobs.stat(found.digest) is None:
            return None
        return found

    # -- listing, deleting --------------------------------------------------------------

    def records(self) -> list[SnapshotRecord]:
        """Return all snapshots with what is known about them, the oldest first.

        Then unfinished ones, then cache mounts.
        """
        return self._listing()()

    async def list_records(self) -> list[SnapshotRecord]:
        """Return :meth:`records`, read by a worker: there may be very many."""
        return await to_worker(self._listing())

    def _listing(self) -> Callable[[], list[SnapshotRecord]]:
        """Return what lists the records; what belongs to the event loop has been looked at."""
        held = {key for key, node in self._nodes.items() if node.refs > 0}
        unfinished = [SnapshotRecord.of_mutable(ref) for ref in self._mutable.values()]
        mounts = self.cache_mounts.records() if self.cache_mounts is not None else []
        # One that is finished before the rows are read would be there twice.
        shown = {record.id for record in unfinished}

        def run() -> list[SnapshotRecord]:
            leased = self.store.leases.snapshots()
            rows = self.table.listed(in_use=held, leased=leased)
            found = [record for record in rows if record.id not in shown]
            return found + unfinished + mounts

        return run

    async def size_bytes(self, snapshot_id: str) -> int:
        """Return what a record's own folder takes on the disk; counted once, then stored.

        Files that it shares with a snapshot that it copied from count there.
        """
        if self.node(snapshot_id).row.size is None:
            await self.count_sizes()
        node = self.node(snapshot_id)
        if node.row.size is not None:
            return node.row.size
        return await to_worker(own_size, self.folder(snapshot_id))

    async def count_sizes(self) -> None:
        """Count all snapshots whose size is not known, those together that may share files."""
        async with self._counting:
            self._grown.clear()
            trees = await to_worker(self._uncounted)
            counted = await to_worker(count, trees) if trees else []
            for start in range(0, len(counted), _NOTED_AT_ONCE):
                with self.store.db.transaction():
                    for each in counted[start : start + _NOTED_AT_ONCE]:
                        self._note_size(each)
                await asyncio.sleep(0)  # each note looks anew at what it depends on

    def _uncounted(self) -> list[Tree]:
        trees = []
        for row in self.table.uncounted():
            folders = {source: self.folder(source) for source in self.table.links.sources(row.id)}
            trees.append(Tree(row.id, self.folder(row.id), folders))
        return trees

    def tree_grew(self, row: Row) -> None:
        """Forget the size of a snapshot in whose folder something was made, also one just counted."""
        self._grown.add(row.id)
        row.size = None
        self.table.update(row.id, size=None)

    def _note_size(self, counted: Counted) -> None:
        """Store a size, unless the tree grew or what it was held against has gone meanwhile."""
        tree = counted.tree
        if tree.id in self._grown:
            return
        known = self.table.links.sources(tree.id)
        if set(known) != set(tree.sources):
            return
        if any(self.table.get(other) is None for other in (tree.id, *counted.shares_with)):
            return
        self.table.links.replace(tree.id, counted.shares_with)
        self.table.update(tree.id, size=counted.size)
        if tree.id in self._nodes:
            self._nodes[tree.id].row.size = counted.size

    async def _freed_bytes(self, snapshot_id: str) -> int:
        """Return what deleting a snapshot gives back: not what others have links to."""
        heirs = self.table.links.heirs(snapshot_id)
        if not heirs:
            return await self.size_bytes(snapshot_id)
        others = [*heirs, *self.table.links.sources(snapshot_id)]
        folders = [self.folder(other) for other in others]
        return await to_worker(own_size, self.folder(snapshot_id), folders)

    async def usage(self) -> list[SnapshotRecord]:
        """Return :meth:`records` with all sizes counted."""
        await self._count_all()
        return await self.list_records()

    async def used_bytes(self) -> int:
        """Return what all records take together."""
        await self._count_all()
        mounts = self.cache_mounts.records() if self.cache_mounts is not None else []
        trees = await to_worker(self.table.total_bytes)
        return trees + sum(mount.size_bytes or 0 for mount in mounts)

    async def _count_all(self) -> None:
        await self.count_sizes()
        if self.cache_mounts is not None:
            for record in self.cache_mounts.records():
                if record.size_bytes is None:
                    await self.cache_mounts.count_size(record.id)

    async def delete(self, snapshot_id: str) -> int:
        """Delete a snapshot or cache mount that nothing needs; return the bytes that it freed.

        Raises:
            SnapshotNotFoundError: there is no such snapshot.
            SnapshotInUseError: a handle, a lease or another snapshot needs it.
        """
        if self.cache_mounts is not None and self.cache_mounts.has(snapshot_id):
            return await self.cache_mounts.delete(snapshot_id)
        size = await self._freed_bytes(snapshot_id)
        if reason := self.held_by(snapshot_id):
            raise SnapshotInUseError(snapshot_id, reason)
        if self.store.leases.has_snapshot(snapshot_id):
            raise SnapshotInUseError(snapshot_id, "a lease holds it")
        heirs = self.table.delete(snapshot_id)
        trace.point("snapshot-row-deleted")
        self.forget(snapshot_id, heirs)
        self.store.discard(self.folder(snapshot_id))
        trace.point("snapshot-trashed")
        return size

    def held_by(self, snapshot_id: str) -> str:
        """Return who needs a snapshot besides leases, in words; empty: nobody."""
        node = self._nodes.get(snapshot_id)
        if node is not None and (node.refs or node.readers or node.lock.locked()):
            return "a build uses it"
        if self.table.children(snapshot_id):
            return "another snapshot is built on it"
        if self.cache_mounts is not None and self.cache_mounts.is_parent(snapshot_id):
            return "a cache mount is built on it"
        return ""

    def forget(self, snapshot_id: str, heirs: Iterable[str] = ()) -> None:
        """Drop from memory what is known about a snapshot whose row is gone, and heirs' sizes."""
        self._nodes.pop(snapshot_id, None)
        for heir in heirs:
            if heir in self._nodes:
                self._nodes[heir].row.size = None
        if self.content_hashes is not None:
            self.content_hashes.forget(snapshot_id)

    async def sync(self) -> int:
        """Write all trees to the disk and note it; return how many were not covered before."""
        waiting = [row.id for row in await to_worker(self.table.unsynced)]
        caches = self.cache_mounts.unsynced() if self.cache_mounts is not None else []
        if waiting or caches:
            await to_worker(_sync_folder, self._folder)
            for start in range(0, len(waiting), _NOTED_AT_ONCE):
                await to_worker(self.table.mark_synced, waiting[start : start + _NOTED_AT_ONCE])
            if self.cache_mounts is not None:
                self.cache_mounts.mark_synced(caches)
            for snapshot_id in waiting:
                if snapshot_id in self._nodes:
                    self._nodes[snapshot_id].row.boot = None
        return len(waiting) + len(caches)

    async def keep_synced(self, *, interval_s: float = 60.0) -> None:
        """Call :meth:`sync` now and then, for ever; the engine runs it as a task of its own.

        Args:
            interval_s: Between two rounds; long enough for the kernel to have written most of
                it by itself.
        """
        while True:
            await asyncio.sleep(interval_s)
            await self.sync()

    async def close(self, *, sync: bool = False) -> None:
        """Throw unfinished trees away and, with ``sync``, have the others survive a power cut."""
        for ref in list(self._mutable.values()):
            if not ref.is_mounted:
                await ref.release()
        if sync:
            await self.sync()


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        files.syncfs(fd)
    finally:
        os.close(fd)
