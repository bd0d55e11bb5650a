"""Read a shared folder in place: client and engine are in one process, or on one machine.

No byte passes a connection, and what is hashed is what is copied. An entry whose inode and
change time are those of the last state is not looked at further; except where its times are
so new that it could have been changed again without a visible trace (git's racy index), its
content decides then.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat as stat_module
import time
from collections.abc import Callable
from pathlib import Path

from boxwright.core.workers import to_worker
from boxwright.session.base import ContextReadError, SyncRequest
from boxwright.session.packets import Stat, encode_stat, split_path
from boxwright.session.tasks import run_together
from boxwright.session.treewalk import TreeWalk, WalkedEntry
from boxwright.session.treewrite import TreeWriteError
from boxwright.sources.contentheader import content_header
from boxwright.sources.localindex import KIND_FILE, KIND_HARDLINK, ContextIndex, Entry
from boxwright.sources.localtree import LocalTree

_READ_BYTES = 1 << 20
_OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_FINE_GRAIN_NS = 20_000_000
_COARSE_GRAIN_NS = 2_000_000_000
_LARGE_BYTES = 1 << 20
_BATCH_BYTES = 32 << 20
_BATCH_FILES = 1024
_ATTEMPTS = 3

CopiedCallback = Callable[[int], None]


class InPlaceSync:
    """One sync of a folder that we can read ourselves.

    Args:
        tree: Takes the entries.
        base: The index that ``tree`` was made from.
        root: The folder.
        request: Patterns.
    """

    def __init__(
        self, tree: LocalTree, base: ContextIndex, root: Path, request: SyncRequest
    ) -> None:
        self._tree = tree
        self._base = base
        self._root = os.fsencode(root)
        self._request = request
        self._scan_ns = 0
        self._to_copy: list[WalkedEntry] = []
        self.refreshed = False

    async def run(self, on_copied: CopiedCallback) -> None:
        """Bring the tree up to date.

        Raises:
            ContextReadError: something can't be read.
        """
        await to_worker(self._scan)
        self._tree.end()
        if self._to_copy:
            await self._tree.prepare()
            await to_worker(self._tree.writer.make_planned)
            # Small files are bound by the interpreter: a second thread would only get in the
            # way. Large ones are hashed and copied without it.
            small = [walked for walked in self._to_copy if walked.stat.size < _LARGE_BYTES]
            large = [walked for walked in self._to_copy if walked.stat.size >= _LARGE_BYTES]
            await run_together(self._copy_all(small, on_copied), self._copy_all(large, on_copied))
        await self._tree.finish()

    async def _copy_all(self, files: list[WalkedEntry], on_copied: CopiedCallback) -> None:
        for batch in _batches(files):
            on_copied(await to_worker(self._copy_batch, batch))

    def _scan(self) -> None:
        self._scan_ns = time.time_ns()
        walk = TreeWalk(self._root, self._request, known=self._is_known)
        self._root = walk.root
        old_entries = self._base.entries
        tree = self._tree
        for walked in walk:
            path = walked.stat.path
            if walked.known:
                tree.keep(path, old_entries[path])
            else:
                self._add(walked)

    def _is_known(self, path: bytes, found: os.stat_result) -> bool:
        old = self._base.entries.get(path)
        return (
            old is not None
            and old.ctime_ns == found.st_ctime_ns
            and old.inode == found.st_ino
            and old.ctime_ns != 0
        )

    def _add(self, walked: WalkedEntry) -> None:
        stat, found = walked.stat, walked.os_stat
        path, rest = split_path(encode_stat(stat))
        inode, ctime_ns = found.st_ino, self._trusted_ctime(found)
        old = self._base.entries.get(path)
        if old is not None and old.rest == rest and self._is_same(old, walked):
            self._tree.keep(path, old._replace(inode=inode, ctime_ns=ctime_ns))
            self.refreshed = True
            return
        if self._tree.add_changed(stat, rest, inode=inode, ctime_ns=ctime_ns):
            self._to_copy.append(walked)

    def _is_same(self, old: Entry, walked: WalkedEntry) -> bool:
        """Return whether an entry with an unchanged stat also has unchanged content."""
        if old.kind == KIND_HARDLINK:
            return False  # decided by the file that it is another name of
        return old.kind != KIND_FILE or self._content_digest(walked) == old.digest

    def _trusted_ctime(self, found: os.stat_result) -> int:
        """Return the change time, or 0 where the entry may change within the same tick."""
        newest = max(found.st_ctime_ns, found.st_mtime_ns)
        coarse = found.st_ctime_ns % 1_000_000_000 == 0
        grain_ns = _COARSE_GRAIN_NS if coarse else _FINE_GRAIN_NS
        return found.st_ctime_ns if newest < self._scan_ns - grain_ns else 0

    def _open(self, path: bytes) -> int:
        try:
            descriptor = os.open(self._root + b"/" + path, _OPEN_FLAGS)
        except OSError as exc:
            raise self._read_error(path, exc) from exc
        if not stat_module.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise self._read_error(path, OSError(errno.ESTALE, "it is no longer a regular file"))
        return descriptor

    def _read_error(self, path: bytes, cause: OSError) -> ContextReadError:
        return ContextReadError(os.fsdecode(self._root + b"/" + path), cause)

    def _content_digest(self, walked: WalkedEntry) -> bytes:
        if stat_module.S_ISSOCK(walked.os_stat.st_mode):
            return hashlib.sha256(content_header(walked.stat)).digest()
        path = walked.stat.path
        hasher = hashlib.sha256(content_header(walked.stat))
        descriptor = self._open(path)
        try:
            while data := os.read(descriptor, _READ_BYTES):
                hasher.update(data)
        except OSError as exc:
            raise self._read_error(path, exc) from exc
        finally:
            os.close(descriptor)
        return hasher.digest()

    def _copy_batch(self, batch: list[WalkedEntry]) -> int:
        return sum(self._copy(walked) for walked in batch)

    def _copy(self, walked: WalkedEntry) -> int:
        """Copy one file and hash it on the way; return its size.

        A file that changes meanwhile is copied again; one that never rests is taken as it was
        read, and looked at again next time.
        """
        stat = walked.stat
        if stat_module.S_ISSOCK(walked.os_stat.st_mode):
            self._tree.writer.finish_file(self._tree.writer.open(stat))
            return 0
        descriptor = self._open(stat.path)
        try:
            for _ in range(_ATTEMPTS):
                before = os.fstat(descriptor)
                if before.st_ctime_ns != walked.os_stat.st_ctime_ns:
                    stat = self._restate(stat, before)
                self._copy_content(descriptor, stat)
                after = os.fstat(descriptor)
                if (after.st_ctime_ns, after.st_size) == (before.st_ctime_ns, before.st_size):
                    break
                os.lseek(descriptor, 0, os.SEEK_SET)
                walked = walked._replace(os_stat=before)
            return stat.size
        except OSError as exc:
            raise self._read_error(stat.path, exc) from exc
        finally:
            os.close(descriptor)

    def _copy_content(self, descriptor: int, stat: Stat) -> None:
        opened = self._tree.writer.open(stat)
        try:
            while data := os.read(descriptor, _READ_BYTES):
                try:
                    opened.write(data)
                except OSError as exc:
                    raise TreeWriteError(self._tree.writer.absolute(stat.path), exc) from exc
        finally:
            self._tree.writer.finish_file(opened)

    def _restate(self, stat: Stat, found: os.stat_result) -> Stat:
        """Take over size and time of a file that changed after it was listed."""
        stat = stat._replace(size=found.st_size, mtime_ns=found.st_mtime_ns)
        rest = split_path(encode_stat(stat))[1]
        self._tree.restate(stat.path, Entry(rest, KIND_FILE, b"", found.st_ino, 0))
        return stat


def _batches(files: list[WalkedEntry]) -> list[list[WalkedEntry]]:
    """Cut the list into pieces of a bounded number of bytes and files."""
    batches: list[list[WalkedEntry]] = []
    size = _BATCH_BYTES
    for walked in files:
        if size >= _BATCH_BYTES or len(batches[-1]) >= _BATCH_FILES:
            batches.append([])
            size = 0
        batches[-1].append(walked)
        size += walked.stat.size
    return batches
