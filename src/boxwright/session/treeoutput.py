"""Receive a ``local`` output into a folder of the user."""

from __future__ import annotations

import os
from collections.abc import Sequence

from boxwright.core.workers import to_worker
from boxwright.session.base import MessagePipe
from boxwright.session.packets import decode_stat
from boxwright.session.treereceive import ReceivedCallback, receive_tree
from boxwright.session.treewrite import TreeNames, TreeWriteError, TreeWriter, remove


class FolderReceiver:
    """A :class:`~boxwright.session.base.TreeReceiver` that writes into a user's folder.

    Files become the user's own. Existing entries of the same names are replaced, others stay
    unless ``mirror`` is set.

    Args:
        root: The folder; it and its parents are made if missing.
        mirror: Remove what the transfer did not name (``mode=delete``).
    """

    def __init__(self, root: bytes, *, mirror: bool = False) -> None:
        self._root = root
        self._mirror = mirror
        self._names = TreeNames()
        self._writer = TreeWriter(root, keep_owner=False)

    def begin(self, first: Sequence[bytes]) -> None:
        """Nothing to do: what is there is replaced in any case."""

    def take_known(self, batch: Sequence[bytes], start: int) -> int:
        """Nothing is known."""
        del batch, start
        return 0

    def add(self, file_id: int, raw_stat: bytes) -> bool:
        """Take an entry; all data is wanted."""
        stat = decode_stat(raw_stat)
        self._names.add(stat)
        if stat.is_file and not stat.is_hardlink:
            self._writer.expect(file_id, stat)
            return True
        self._writer.plan(stat)
        return False

    def end(self) -> None:
        """Nothing to do: removal waits until all is written."""

    async def prepare(self) -> None:
        """Nothing to do: the folder was made at the start."""

    def write(self, batch: Sequence[tuple[int, bytes]]) -> None:
        """Write pieces of files."""
        self._writer.write(batch)

    async def finish(self) -> None:
        """Set times, and mirror deletions."""
        await to_worker(self._close)

    def _close(self) -> None:
        self._writer.make_planned()
        if self._mirror:
            self._delete_unnamed(b"")
        self._writer.close()

    def _delete_unnamed(self, folder: bytes) -> None:
        prefix = folder + b"/" if folder else b""
        for name in os.listdir(self._root + b"/" + folder):
            path = prefix + name
            if path not in self._names:
                remove(self._root + b"/" + path)
            elif path in self._names.folders:
                self._delete_unnamed(path)

    def abort(self) -> None:
        """Close what is open."""
        self._writer.abort()


async def receive_output(
    pipe: MessagePipe,
    root: bytes,
    *,
    mirror: bool = False,
    on_received: ReceivedCallback | None = None,
) -> None:
    """Receive a whole tree into ``root``.

    Raises:
        TreeWriteError: the folder can't be made or written to.
        HostileTreeError: the other side named something outside.
    """
    try:
        await to_worker(os.makedirs, root, exist_ok=True)
    except OSError as exc:
        raise TreeWriteError(root, exc) from exc
    receiver = FolderReceiver(await to_worker(os.path.realpath, root), mirror=mirror)
    try:
        await receive_tree(pipe, receiver, on_received=on_received)
    finally:
        receiver.abort()
