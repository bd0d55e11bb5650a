"""Write the changes of a layer as a tar archive, the bytes that give it its diff id.

Invariant: for equal changes the archive equals upstream's (containerd's ``ChangeWriter``)
byte for byte. That fixes what is left out: user names, access and change times, extended
attributes other than file capabilities, sockets; times are cut to seconds, and every
whiteout has owner, mode and time zero.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from boxwright.fsutil.tar import Entry, EntryType, TarWriter
from boxwright.fsutil.whiteouts import PREFIX
from boxwright.snapshots.diff import Change

_CAPABILITY = "security.capability"
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOATIME
_TYPES = {
    stat.S_IFREG: EntryType.FILE,
    stat.S_IFDIR: EntryType.DIRECTORY,
    stat.S_IFLNK: EntryType.SYMLINK,
    stat.S_IFCHR: EntryType.CHARACTER,
    stat.S_IFBLK: EntryType.BLOCK,
    stat.S_IFIFO: EntryType.FIFO,
}


def write_changes(
    tar: TarWriter, changes: Iterable[Change], root: Path, *, epoch_s: int | None = None
) -> None:
    """Write ``changes`` in their order, each after its parent folders; blocking.

    Args:
        tar: where to; not closed.
        changes: see :func:`boxwright.snapshots.diff.changes`.
        root: folder in which every new file can be read under its path.
        epoch_s: later modification times become this one (seconds since the epoch).

    Raises:
        FileChangedError: a file is shorter than its change says.
        OSError: a file can't be read.
    """
    writer = _LayerWriter(tar, root, epoch_s)
    for change in changes:
        if change.info is None:
            writer.delete(change.path)
        else:
            writer.put(change.path, change.info, changed=change.kind != "unmodified")


class _LayerWriter:
    def __init__(self, tar: TarWriter, root: Path, epoch_s: int | None) -> None:
        self._tar = tar
        self._root = os.fsencode(root) + b"/"
        self._device = os.stat(root).st_dev
        self._epoch_s = epoch_s
        self._folders: set[bytes] = {b""}  # already in the archive; the root never is
        self._inodes: dict[int, bytes] = {}  # files with several links, by inode
        self._waiting: dict[int, list[bytes]] = {}  # unchanged links to them

    def delete(self, path: bytes) -> None:
        parent, slash, base = path.rpartition(b"/")
        self._parents(parent)
        self._tar.add_header(Entry(parent + slash + PREFIX + base, mode=0))

    def put(self, path: bytes, info: os.stat_result, *, changed: bool = True) -> None:
        kind = _TYPES.get(stat.S_IFMT(info.st_mode))
        if kind is None:  # a socket: no archive can hold it
            return
        if kind == EntryType.DIRECTORY:
            if changed:
                self._folder(path, info)
            return
        links: list[bytes] = []
        first: bytes | None = None
        if info.st_nlink > 1:
            inode = self._inode(path, info)
            first = self._inodes.get(inode)
            if first is None and not changed:
                self._waiting.setdefault(inode, []).append(path)
                return
            if first is None:
                self._inodes[inode] = path
                links = self._waiting.pop(inode, [])
        elif not changed:
            return
        self._parents(path.rpartition(b"/")[0])
        if first is not None:
            self._link(path, kind, info, first)
        elif kind == EntryType.FILE:
            self._file(path, info)
        else:
            self._tar.add_header(self._entry(path, kind, info))
        for link in links:
            self._parents(link.rpartition(b"/")[0])
            self._link(link, kind, info, path)

    def _inode(self, path: bytes, info: os.stat_result) -> int:
        """Return which file it is; an overlay's view may number it differently than its layer."""
        if info.st_dev == self._device:
            return info.st_ino
        return os.lstat(self._root + path).st_ino

    def _link(self, path: bytes, kind: bytes, info: os.stat_result, target: bytes) -> None:
        entry = self._entry(path, kind, info)
        entry.type, entry.linkname, entry.size = EntryType.HARD_LINK, target, 0
        if kind == EntryType.FILE:
            self._add_capability(entry, self._root + path)
        self._tar.add_header(entry)

    def _folder(self, path: bytes, info: os.stat_result) -> None:
        self._parents(path.rpartition(b"/")[0])
        self._folders.add(path)
        self._tar.add_header(self._entry(path + b"/", EntryType.DIRECTORY, info))

    def _parents(self, path: bytes) -> None:
        if path not in self._folders:
            self._folder(path, os.stat(self._root + path))

    def _file(self, path: bytes, info: os.stat_result) -> None:
        try:
            fd = os.open(self._root + path, _OPEN)
        except PermissionError:  # O_NOATIME is for the owner of the file only
            fd = os.open(self._root + path, _OPEN & ~os.O_NOATIME)
        try:
            if os.listxattr(fd):
                entry = self._entry(path, EntryType.FILE, info)
                self._add_capability(entry, fd)
                self._tar.add_file(entry, fd)
                return
            mode, owner = info.st_mode & 0o7777, (info.st_uid, info.st_gid)
            self._tar.add_plain_file(path, mode, owner, info.st_size, self._mtime(info), fd)
        finally:
            os.close(fd)

    @staticmethod
    def _add_capability(entry: Entry, file: int | bytes) -> None:
        if _CAPABILITY in os.listxattr(file):
            entry.xattrs[_CAPABILITY] = os.getxattr(file, _CAPABILITY)

    def _mtime(self, info: os.stat_result) -> int:
        mtime = int(info[stat.ST_MTIME])
        return mtime if self._epoch_s is None else min(mtime, self._epoch_s)

    def _entry(self, name: bytes, kind: bytes, info: os.stat_result) -> Entry:
        entry = Entry(
            name,
            kind,
            stat.S_IMODE(info.st_mode),
            info.st_uid,
            info.st_gid,
            info.st_size if kind == EntryType.FILE else 0,
            self._mtime(info),
        )
        if kind == EntryType.SYMLINK:
            entry.linkname = os.readlink(self._root + name)
        elif kind in {EntryType.CHARACTER, EntryType.BLOCK}:
            entry.dev_major, entry.dev_minor = os.major(info.st_rdev), os.minor(info.st_rdev)
        return entry
