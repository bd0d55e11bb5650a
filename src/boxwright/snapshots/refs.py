"""Handles on snapshots: what the rest of the engine holds.

An :class:`ImmutableRef` is a counted reference to a committed tree; the tree can't be deleted
while one exists. A :class:`MutableRef` is the only handle on a tree that is being made; it ends
in ``commit`` or ``release``. Both belong to the event loop of their manager.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from boxwright.core.dataclass import dataclass, field
from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest

if TYPE_CHECKING:
    from boxwright.snapshots.manager import SnapshotManager
    from boxwright.snapshots.node import Node


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of a snapshot, as an exporter sees it.

    Attributes:
        snapshot_id: The record whose folder holds the layer.
        diff_id: Digest of its uncompressed archive, if it was ever computed.
        blob: The blob that it came from or was first written to, if any.
        blobs: All known blobs by variant; ``source`` is the one it was unpacked from.
        description: What made it.
        created_ns: When it was made, nanoseconds since the epoch.
        is_whole: It is the whole tree of its record and not only what lies in the folder.
    """

    snapshot_id: str
    diff_id: Digest | None
    blob: Descriptor | None
    blobs: dict[str, Descriptor] = field(default_factory=dict)
    description: str = ""
    created_ns: int = 0
    is_whole: bool = False


@dataclass(frozen=True, slots=True)
class LayerTree:
    """A layer's files for as long as its context is open.

    Attributes:
        upper: The layer's own folder in overlayfs's form (whiteouts, opaque marks).
        lower: The whole tree below it, ``None`` if there is nothing below.
        view: The tree with the layer applied.
    """

    upper: Path
    lower: Path | None
    view: Path


class ImmutableRef:
    """A committed snapshot; release every handle exactly once (or use ``async with``)."""

    def __init__(self, manager: SnapshotManager, node: Node, *, counted: bool = True) -> None:
        self._manager = manager
        self._node = node
        self._counted = counted

    def __repr__(self) -> str:
        return f"<ImmutableRef {self.id}>"

    @property
    def id(self) -> str:
        """The snapshot's id, stable over restarts."""
        return self._node.row.id

    @property
    def parent(self) -> ImmutableRef | None:
        """The snapshot below; valid as long as this one is held, not to be released."""
        return self._manager.borrow_parent(self._node)

    @property
    def description(self) -> str:
        """What made it, for listings."""
        return self._node.row.description

    @property
    def record_type(self) -> str:
        """``regular``, ``internal``, ``frontend``, ``source.local`` … as in UsageRecord."""
        return self._node.row.record_type

    @property
    def created_ns(self) -> int:
        """When it was committed, nanoseconds since the epoch."""
        return self._node.row.created_ns

    @property
    def last_used_ns(self) -> int:
        """When it was last asked for, nanoseconds since the epoch."""
        return self._node.row.used_ns

    @property
    def usage_count(self) -> int:
        """How often it was asked for."""
        return self._node.row.usage_count

    @property
    def manager(self) -> SnapshotManager:
        """The manager that it belongs to."""
        return self._manager

    @property
    def chain_id(self) -> Digest | None:
        """The image chain id (image-spec, config.md) of a snapshot made of image layers."""
        chain = self._node.row.chain_id
        return Digest(chain) if chain else None

    def clone(self) -> ImmutableRef:
        """Return another handle on the same snapshot."""
        return self._manager.hold(self._node)

    async def release(self) -> None:
        """Give this handle up; harmless a second time."""
        if self._counted:
            self._counted = False
            self._manager.drop(self._node)

    async def size_bytes(self) -> int:
        """Return what the snapshot's own folder takes on the disk, without those below."""
        return await self._manager.size_bytes(self.id)

    def mounted(self, *, read_only: bool = True) -> AbstractAsyncContextManager[Path]:
        """Return a context with the root of the whole tree, for reading only.

        Layers that are not there yet are fetched and unpacked first. The mount is shared by
        all who read; a tree of one layer is that layer's folder itself, so never write.

        Args:
            read_only: Must be true.

        Raises:
            ValueError: ``read_only`` is false: only a MutableRef is written to.
            LayerMissingError: a layer can no longer be fetched.
            MountError: the kernel refused.
        """
        if not read_only:
            raise ValueError("a committed snapshot is never mounted for writing")
        return self._manager.mount_view(self._node)

    async def extract(self) -> None:
        """Fetch and unpack what is missing, without mounting.

        Raises:
            LayerMissingError: a layer can no longer be fetched.
        """
        await self._manager.prepare(self._node)

    async def stack(self) -> list[Path]:
        """Return the layer folders that overlayfs stacks for this tree, base first.

        Raises:
            LayerMissingError: a layer can no longer be fetched.
        """
        await self._manager.prepare(self._node)
        return self._manager.stack_of(self._node)

    async def layers(self) -> list[Layer]:
        """Return the layers from the base up, as an image of this tree has them."""
        return await self._manager.layers(self._node)

    def layer_tree(self, snapshot_id: str) -> AbstractAsyncContextManager[LayerTree]:
        """Return a context with the files of one of :meth:`layers`.

        Raises:
            LayerMissingError: a layer can no longer be fetched.
            MountError: the kernel refused.
        """
        return self._manager.layer_tree(snapshot_id)

    async def set_blob(
        self, descriptor: Descriptor, diff_id: Digest, *, variant: str = "", layer_id: str = ""
    ) -> None:
        """Note a blob that holds the top layer, or the layer ``layer_id``.

        Args:
            descriptor: The blob, in the store.
            diff_id: The digest of its uncompressed form.
            variant: Compression and options, so that another export finds it again.
            layer_id: A ``snapshot_id`` of :meth:`layers`.
        """
        await self._manager.set_blob(layer_id or self.id, descriptor, diff_id, variant)

    async def get_blob(self, variant: str = "") -> Descriptor | None:
        """Return the blob of the top layer for ``variant``, if it is still in the store."""
        return await self._manager.get_blob(self.id, variant)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        await self.release()


class MutableRef:
    """A tree that is being made on top of a parent; nobody else sees it before ``commit``."""

    def __init__(
        self,
        manager: SnapshotManager,
        snapshot_id: str,
        parent: ImmutableRef | None,
        description: str,
        record_type: str,
    ) -> None:
        self._manager = manager
        self._open = True
        self._users = 0
        self._root: Path | None = None
        self.id = snapshot_id
        self.parent = parent
        self.description = description
        self.record_type = record_type
        self.created_ns = manager.clock.now_ns()
        self.sources: set[str] = set()

    def __repr__(self) -> str:
        return f"<MutableRef {self.id}>"

    @property
    def upper(self) -> Path:
        """The folder that receives the changes, in overlayfs's form; never write while mounted."""
        return self._manager.folder(self.id) / "fs"

    def note_links(self, layers: Iterable[Path]) -> None:
        """Say that files may have been linked from these layer folders of other snapshots."""
        self.sources.update(layer.parent.name for layer in layers)

    @property
    def is_mounted(self) -> bool:
        """Whether somebody has the tree mounted."""
        return self._users > 0

    @asynccontextmanager
    async def mounted(self) -> AsyncIterator[Path]:
        """Give the writable root of the whole tree; several may share it.

        Raises:
            LayerMissingError: a layer of the parent can no longer be fetched.
            MountError: the kernel refused.
            DiskFullError: no space left.
        """
        async with self._manager.mutable_lock(self.id):
            if not self._open:
                raise RuntimeError(f"{self!r} is committed or released")
            if self._root is None:
                self._root = await self._manager.mount_writable(self)
            self._users += 1
        root = self._root
        try:
            yield root
        finally:
            self._users -= 1
            if self._users == 0:
                self._root = None
                await self._manager.unmount_writable(self, root)

    async def commit(self) -> ImmutableRef:
        """Seal the tree and return the first handle on it.

        Raises:
            RuntimeError: it is still mounted, committed already or released.
        """
        self._close("commit")
        try:
            return await self._manager.commit(self)
        except BaseException:
            await self._manager.discard(self)
            raise

    async def release(self) -> None:
        """Throw the tree away; harmless after a commit or a second time.

        Raises:
            RuntimeError: it is still mounted.
        """
        if self._open:
            self._close("release")
            await self._manager.discard(self)

    def _close(self, what: str) -> None:
        if not self._open:
            raise RuntimeError(f"{what}: {self!r} is committed or released already")
        if self._users:
            raise RuntimeError(f"{what}: {self!r} is still mounted")
        self._open = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        await self.release()
