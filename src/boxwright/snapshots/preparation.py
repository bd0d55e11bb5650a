"""Having a tree's layers on the disk: fetch, unpack, compare, rewrite; each at most once.

Layers of an image are fetched in parallel and unpacked from the base up, as a layer may take
the attributes of a folder that it only implies from those below. Whoever asks for the same
layer while it is being unpacked waits for that; when he who unpacks is cancelled, the next
one waiting goes on.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from boxwright.core.workers import to_worker
from boxwright.errors import BoxwrightError
from boxwright.snapshots import materialise
from boxwright.snapshots.backend import MAX_LAYERS
from boxwright.snapshots.diff import changes, is_pure, write_difference, write_layer
from boxwright.snapshots.errors import LayerMissingError
from boxwright.snapshots.links import Taken, have_twins
from boxwright.snapshots.node import Node
from boxwright.snapshots.records import PURE
from boxwright.snapshots.refs import LayerTree
from boxwright.store import disk_errors
from boxwright.store.trash import remove_tree

if TYPE_CHECKING:
    from boxwright.snapshots.manager import SnapshotManager


class Preparation:
    """The part of the manager that makes layer folders."""

    def __init__(self, manager: SnapshotManager) -> None:
        self._manager = manager
        self._stackable: dict[str, bool] = {}

    # -- structure ----------------------------------------------------------------------

    def layers(self, node: Node) -> list[Node]:
        """Return the records of the layers of a tree, base first."""
        found: list[Node] = []
        while node.row.kind == "layer":
            found.append(node)
            if not node.row.parents:
                return found[::-1]
            node = self._manager.node(node.row.parents[0])
        return self._derived_layers(node) + found[::-1]

    def _derived_layers(self, node: Node) -> list[Node]:
        row = node.row
        if row.kind == "merge":
            return [
                layer
                for parent in row.parents
                for layer in self.layers(self._manager.node(parent))
            ]
        further = self._further_layers(node)
        return [node] if further is None else further

    def _further_layers(self, node: Node) -> list[Node] | None:
        """Return the layers of a diff whose upper chain extends its lower one, else None."""
        lower_id, upper_id = node.row.parents
        if not upper_id:
            return None
        upper = self.layers(self._manager.node(upper_id))
        lower = self.layers(self._manager.node(lower_id)) if lower_id else []
        if [layer.row.id for layer in upper[: len(lower)]] != [layer.row.id for layer in lower]:
            return None
        return upper[len(lower) :]

    def stack(self, node: Node) -> list[Path]:
        """Return the folders that overlayfs stacks for a prepared tree, base first."""
        tail: list[Path] = []
        while node.row.kind == "layer":
            tail.append(node.fs)
            if not node.row.parents:
                return tail[::-1]
            node = self._manager.node(node.row.parents[0])
        return self._derived_stack(node) + tail[::-1]

    def _derived_stack(self, node: Node) -> list[Path]:
        base = self._base_stack(node)
        if node.row.plain:
            return [*base, self._manager.folder(node.row.id) / "view"]
        return base + [layer.pure or layer.fs for layer in self._upper_layers(node)]

    def _base_stack(self, node: Node) -> list[Path]:
        if node.row.kind == "merge":
            return self.stack(self._manager.node(node.row.parents[0]))
        return []

    def _upper_layers(self, node: Node) -> list[Node]:
        """Return the layers that a merge or diff puts over its base stack."""
        if node.row.kind == "diff":
            return self.layers(node)
        return [
            layer
            for parent in node.row.parents[1:]
            for layer in self.layers(self._manager.node(parent))
        ]

    def is_available(self, node: Node) -> bool:
        """Return whether everything that ``node`` consists of is here or can be fetched."""
        pending = [node]
        while pending:
            node = pending.pop()
            row = node.row
            if node.prepared:
                continue
            if row.kind == "layer" and not row.present and not node.fetches:
                stat = self._manager.store.blobs.stat
                if row.blob is None or stat(row.blob) is None:
                    return False
            pending.extend(self._manager.node(parent) for parent in row.parents if parent)
        return True

    # -- making -------------------------------------------------------------------------

    async def prepare(self, node: Node) -> None:
        """Have everything that a mount of ``node`` needs on the disk.

        Raises:
            LayerMissingError: a layer is no longer in the store and can't be fetched.
            LayerMismatchError: a layer is not what its image says.
            DiskFullError: no space left.
        """
        if node.prepared:
            return
        chain = self._chain(node)
        await self._fetch_all([link for link in chain if link.row.kind == "layer"])
        for link in chain:
            if link.row.kind == "layer":
                await self._unpack(link)
            else:
                await self._prepare_derived(link)
            link.prepared = True

    def _chain(self, node: Node) -> list[Node]:
        """Return ``node`` and the records below it that are not prepared, the lowest first."""
        found = [node]
        while node.row.kind == "layer" and node.row.parents and not node.prepared:
            node = self._manager.node(node.row.parents[0])
            found.append(node)
        return [link for link in reversed(found) if not link.prepared]

    async def prepare_layer(self, node: Node) -> None:
        """Have the own folder of one layer on the disk.

        Raises:
            LayerMissingError: it is no longer in the store and can't be fetched.
        """
        if node.row.kind == "layer":
            await self.prepare(node)
        else:
            await self._compare(node)

    async def _fetch_all(self, nodes: Sequence[Node]) -> None:
        missing = [node for node in nodes if not node.row.present]
        if len(missing) == 1:
            await self.fetch(missing[0])
        elif missing:
            try:
                async with asyncio.TaskGroup() as group:
                    for node in missing:
                        group.create_task(self.fetch(node))
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None

    async def fetch(self, node: Node) -> None:
        """Bring the blob of a layer into the store.

        Raises:
            LayerMissingError: there is no way to fetch it.
            BoxwrightError: of the last way that was left.
        """
        async with node.lock:
            row = node.row
            if row.blob is None:
                raise LayerMissingError(None)
            if self._manager.store.blobs.stat(row.blob) is not None:
                return
            failure: BoxwrightError = LayerMissingError(row.blob)
            while node.fetches:
                fetch = node.fetches[-1]
                try:
                    await fetch()
                except BoxwrightError as error:
                    # The client that it would come from may be gone: another may be there.
                    failure = error
                    if fetch in node.fetches:
                        node.fetches.remove(fetch)
                else:
                    return
            raise failure

    async def _unpack(self, node: Node) -> None:
        async with node.lock:
            row = node.row
            if row.present:
                return
            if row.blob is None:
                raise LayerMissingError(None)
            manager = self._manager
            below = self.stack(manager.node(row.parents[0])) if row.parents else []
            await to_worker(
                materialise.unpack_blob,
                manager.store,
                row.blob,
                row.diff_id,
                manager.folder(row.id),
                below,
                userxattr=manager.backend.userxattr,
            )
            self._made(node, present=True)
            node.fetches.clear()

    def _made(self, node: Node, *, present: bool = False, plain: bool = False) -> None:
        row = node.row
        row.present, row.plain = row.present or present, row.plain or plain
        row.boot = self._manager.store.boot_id
        table = self._manager.table
        table.update(row.id, present=row.present, plain=row.plain, boot=row.boot)
        self._manager.tree_grew(row)
        if row.kind != "layer":
            below = (self._manager.node(parent) for parent in row.parents if parent)
            table.links.add(row.id, {each.row.id for tree in below for each in self.layers(tree)})

    async def _prepare_derived(self, node: Node) -> None:
        if node.row.kind == "merge":
            await self.prepare(self._manager.node(node.row.parents[0]))
        for layer in self._upper_layers(node):
            await self.prepare_layer(layer)
            await self._purify(layer)
        async with node.lock:
            if node.row.plain or await self._is_stackable(node):
                return
            upper = [layer.pure or layer.fs for layer in self._upper_layers(node)]
            async with AsyncExitStack() as stack:
                base = self._base_stack(node)
                below = (
                    await stack.enter_async_context(self._manager.mounts.stack(base))
                    if base
                    else None
                )
                await to_worker(
                    materialise.flatten,
                    upper,
                    below,
                    self._manager.folder(node.row.id),
                    userxattr=self._manager.backend.userxattr,
                    taken=Taken(self._manager.table.links, upper, base),
                )
            self._made(node, plain=True)

    async def _purify(self, layer: Node) -> None:
        """Have a folder with nothing but the changes of a layer, for use on another base."""
        if layer.pure is not None or layer.row.kind != "layer" or not layer.row.parents:
            return
        manager = self._manager
        async with manager.layer_tree(layer.row.id) as tree, layer.lock:
            if layer.pure is None:
                await self._set_apart(layer, tree)

    async def _set_apart(self, layer: Node, tree: LayerTree) -> None:
        manager = self._manager
        try:
            layer.pure = await to_worker(
                _pure_folder, tree, manager.folder(layer.row.id), manager.backend.userxattr
            )
        finally:
            if layer.pure != layer.fs:
                # What was written, whole or not, counts with the layer. The layer's boot stays:
                # the next process doesn't rely on it.
                manager.tree_grew(layer.row)

    async def _is_stackable(self, node: Node) -> bool:
        """Return whether the layers of a merge or diff may be stacked just as they are.

        Deletions in a layer were made for another base: overlayfs shows a whiteout with nothing
        below it as a file, and a folder marked opaque hides what an earlier input brought.
        The kernel refuses the same folder twice in one stack. A file that two layers have, by link
        from one place, would be a hard link in the tree.
        """
        base = self._base_stack(node)
        upper = [layer.pure or layer.fs for layer in self._upper_layers(node)]
        if not upper and not base:
            return False
        stack = base + upper
        if len(set(stack)) != len(stack) or len(stack) > MAX_LAYERS:
            return False
        if any([await to_worker(materialise.has_marks, layer) for layer in upper]):
            return False
        return not await to_worker(have_twins, self._manager.table.links, base, upper)

    async def _compare(self, node: Node) -> None:
        """Write the difference of two unrelated trees into the folder of a diff."""
        async with node.lock:
            if node.row.present:
                return
            manager = self._manager
            lower_id, upper_id = node.row.parents
            async with AsyncExitStack() as stack:
                lower = upper = None
                backing: list[Path] = []
                if lower_id:
                    view = manager.mount_view(manager.node(lower_id))
                    lower = await stack.enter_async_context(view)
                if upper_id:
                    upper_node = manager.node(upper_id)
                    view = manager.mount_view(upper_node)
                    upper = await stack.enter_async_context(view)
                    backing = manager.stack_of(upper_node)
                folder = manager.folder(node.row.id)
                await to_worker(
                    _write_difference, folder, lower, upper, backing, manager.backend.userxattr
                )
            self._made(node, present=True)


def _pure_folder(
    tree: LayerTree,
    folder: Path,
    userxattr: bool,  # noqa: FBT001 - crosses to_worker
) -> Path:
    target = folder / PURE
    remove_tree(target)  # of an attempt that failed
    if is_pure(tree, tree.upper):
        return tree.upper
    materialise.make_root(target, tree.view)
    with disk_errors(target):
        write_layer(
            changes(tree), tree.lower, tree.view, [tree.upper], target, userxattr=userxattr
        )
    return target


def _write_difference(
    folder: Path,
    lower: Path | None,
    upper: Path | None,
    backing: Sequence[Path],
    userxattr: bool,  # noqa: FBT001 - crosses to_worker
) -> None:
    staged, target = folder / "fs.new", folder / "fs"
    remove_tree(staged)
    materialise.make_root(staged, upper)
    with disk_errors(target):
        write_difference(lower, upper, backing, staged, userxattr=userxattr)
    remove_tree(target)
    os.rename(staged, target)
