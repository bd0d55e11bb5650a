"""A folder of which only names and attributes are wanted (``local.metadatatransfer``).

The snapshot holds one file with the stats of everything as they came, each behind its length
(32 bits, little endian), and beside it those files that the op's exceptions name, with the
folders above them. The file's name and form are facts of the protocol (fsutil).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

from boxwright.core.workers import to_worker
from boxwright.errors import LimitExceededError
from boxwright.fsutil.patterns import PatternMatcher
from boxwright.session.base import TreeReceiver
from boxwright.session.packets import Stat, decode_stat, encode_stat, split_path
from boxwright.session.treewrite import check_spelling
from boxwright.sources.localtree import LocalTree

METADATA_PATH = b".fsutil-metadata"
_LIMIT_BYTES = 1 << 30
_METADATA_FILE = -1  # the sender counts its files from 0
_FOLDER_ABOVE = -2


class MetadataReceiver(TreeReceiver):
    """Stands between a transfer and the tree that it fills.

    Args:
        tree: What is made.
        exceptions: Patterns of what is transferred with its content.
        now_ns: The time of the file.
    """

    def __init__(self, tree: LocalTree, exceptions: Sequence[str], now_ns: int) -> None:
        self._tree = tree
        self._exceptions = PatternMatcher(exceptions) if exceptions else None
        self._now_ns = now_ns
        self._stats = bytearray()
        self._above: list[tuple[bytes, bytes]] = []
        self._is_new = False

    def begin(self, first: Sequence[bytes]) -> None:
        """Nothing to do: stats make a file of their own each time."""

    def take_known(self, batch: Sequence[bytes], start: int) -> int:
        """Nothing is known: stats make a file of their own each time."""
        del batch, start
        return 0

    def add(self, file_id: int, raw_stat: bytes) -> bool:
        """Note an encoded stat; return whether the file's data is wanted.

        Raises:
            LimitExceededError: the stats are too large.
            HostileTreeError: the path is none.
        """
        path, _ = split_path(raw_stat)
        if path == METADATA_PATH:
            return False
        check_spelling(path)
        self._stats += struct.pack("<I", len(raw_stat)) + raw_stat
        if len(self._stats) > _LIMIT_BYTES:
            raise LimitExceededError(
                "the names of a folder are too many", detail=f"more than {_LIMIT_BYTES} bytes"
            )
        parent = path.rpartition(b"/")[0]
        while self._above and self._above[-1][0] != parent:
            self._above.pop()
        is_wanted = self._exceptions is not None and self._exceptions.matches(os.fsdecode(path))
        if not is_wanted:
            if decode_stat(raw_stat).is_dir:
                self._above.append((path, raw_stat))
            return False
        for _, folder in self._above:
            self._tree.add(_FOLDER_ABOVE, folder)
        self._above.clear()
        return self._tree.add(file_id, raw_stat)

    def end(self) -> None:
        """All entries are named."""
        stat = Stat(METADATA_PATH, 0o644, size=len(self._stats), mtime_ns=self._now_ns)
        self._is_new = self._tree.add(_METADATA_FILE, encode_stat(stat))
        self._tree.end()

    async def prepare(self) -> None:
        """Have a place to write to."""
        await self._tree.prepare()

    def write(self, batch: Sequence[tuple[int, bytes]]) -> None:
        """Write pieces of files."""
        self._tree.write(batch)

    async def finish(self) -> None:
        """Write the stats; the tree is then whole."""
        if self._is_new:
            await self._write_stats()
        await self._tree.finish()

    async def _write_stats(self) -> None:
        await self._tree.prepare()
        pieces = [(_METADATA_FILE, bytes(self._stats))] if self._stats else []
        await to_worker(self._tree.write, [*pieces, (_METADATA_FILE, b"")])
