"""Write a received tree into a folder, confined to it.

Names come from the other side and are hostile until checked: :class:`TreeNames` lets through
only relative, clean paths whose folder was named before as a folder, so no path can lead over
a symlink of the same transfer; :class:`TreeWriter` makes sure that such folders are real
folders on disk and opens files without following links.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat as stat_module
from collections import deque
from collections.abc import Callable, Sequence

from boxwright.core.dataclass import dataclass
from boxwright.errors import BoxwrightError, Code
from boxwright.session import packets
from boxwright.session.base import HostileTreeError
from boxwright.session.packets import Stat
from boxwright.session.treewalk import permissions

_ZEROS = bytes(1 << 20)  # as long as the longest piece that a writer is given
_SPARSE_BLOCK = 4096
_NAME_MAX = 255
_OPEN_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_BAD_PARTS = frozenset((b"", b".", b".."))


class TreeWriteError(BoxwrightError):
    """A file of a transfer that could not be written."""

    code = Code.ENVIRONMENT

    def __init__(self, path: bytes, cause: OSError) -> None:
        super().__init__(f"cannot write {os.fsdecode(path)}", detail=cause.strerror or str(cause))
        if cause.errno in {errno.ENOSPC, errno.EDQUOT}:
            self.__dict__["code"] = Code.DISK_FULL
            self.hint = "free some space, or choose another folder"
        elif cause.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
            self.__dict__["code"] = Code.PERMISSION


@dataclass(frozen=True, slots=True)
class NamedRun:
    """Names that followed each other in an earlier transfer, where each was checked.

    Attributes:
        paths: In their order.
        folders: Those that are folders.
        no_files: Those that no hard link can be another name of.
        parents: The folders that they are in; empty for the root.
    """

    paths: Sequence[bytes]
    folders: frozenset[bytes]
    no_files: frozenset[bytes]
    parents: frozenset[bytes]


class TreeNames:
    """The names of a transfer so far, each checked when it is added."""

    def __init__(self) -> None:
        self.folders: set[bytes] = set()
        self._files: set[bytes] = set()
        self._names: set[bytes] = set()

    def __contains__(self, path: object) -> bool:
        """Return whether the path was named."""
        return path in self._names

    def add(self, stat: Stat, *, known_clean: bool = False) -> None:
        """Check an entry against those before it.

        Args:
            stat: The entry.
            known_clean: The spelling of the path was checked in an earlier transfer.

        Raises:
            HostileTreeError: absolute, unclean, outside, twice, below something that is no
                folder, or a hard link to something that was not named.
        """
        if not known_clean:
            check_spelling(stat.path)
        if stat.is_dir:
            self.add_known(stat.path, is_folder=True)
        elif stat.is_hardlink:
            if stat.linkname not in self._files:
                raise HostileTreeError(stat.path, "it is a hard link to an unknown file")
            self.add_known(stat.path)
        else:
            self.add_known(stat.path, is_file=not stat.is_symlink)

    def add_known(self, path: bytes, *, is_folder: bool = False, is_file: bool = False) -> None:
        """Add an entry whose path and link were checked before; only its place is checked.

        Raises:
            HostileTreeError: twice, or below something that is no folder.
        """
        parent = path.rpartition(b"/")[0]
        if parent and parent not in self.folders:
            raise HostileTreeError(path, "its folder was not named before it")
        if path in self._names:
            raise HostileTreeError(path, "it is named twice")
        if is_folder:
            self.folders.add(path)
        elif is_file:
            self._files.add(path)
        self._names.add(path)

    def add_run(self, run: NamedRun) -> None:
        """Add many entries at once; only their places are checked.

        Raises:
            HostileTreeError: as :meth:`add_known`.
        """
        homeless = run.parents.difference(self.folders, run.folders, (b"",))
        if homeless or not self._names.isdisjoint(run.paths):
            for path in run.paths:  # names the first that is wrong
                self.add_known(path, is_folder=path in run.folders)
        self._names.update(run.paths)
        self.folders |= run.folders
        self._files.update(run.paths)
        self._files -= run.no_files


def check_spelling(path: bytes) -> None:
    """Refuse a path that is not relative and clean, or that no file system can hold.

    Raises:
        HostileTreeError: it is so.
    """
    if b"\0" in path:
        raise HostileTreeError(path, "it holds a zero byte")
    for part in path.split(b"/"):
        if part in _BAD_PARTS:
            raise HostileTreeError(path, "it is absolute, unclean or leads outside")
        if len(part) > _NAME_MAX:
            raise HostileTreeError(path, f"a name is longer than {_NAME_MAX} bytes")


class _OpenFile:
    __slots__ = ("descriptor", "hasher", "holes", "stat")

    def __init__(self, descriptor: int, stat: Stat, header: bytes | None) -> None:
        self.descriptor = descriptor
        self.stat = stat
        self.hasher = None if header is None else hashlib.sha256(header)
        self.holes = False

    def write(self, data: bytes) -> None:
        if self.hasher is not None:
            self.hasher.update(data)
        if not data[0] and len(data) >= _SPARSE_BLOCK and data == _ZEROS[: len(data)]:
            os.lseek(self.descriptor, len(data), os.SEEK_CUR)
            self.holes = True
            return
        written = os.write(self.descriptor, data)
        if written < len(data):
            view = memoryview(data)
            while written < len(data):
                written += os.write(self.descriptor, view[written:])


class TreeWriter:
    """Writes entries below ``root``; everything but ``expect`` and ``plan`` runs in a worker.

    Args:
        root: An existing folder that only we write to meanwhile; may be set until the first
            write.
        keep_owner: Set owner and group as named (needs privileges), instead of our own.
        header: Makes the bytes that a file's content digest begins with; None: no digests.

    Attributes:
        digests: sha256 of header and content of every finished file, by path.
    """

    def __init__(
        self,
        root: bytes,
        *,
        keep_owner: bool,
        header: Callable[[Stat], bytes] | None = None,
    ) -> None:
        self.root = root
        self._keep_owner = keep_owner
        self._header = header
        self._planned: deque[Stat] = deque()
        self._expected: dict[int, Stat] = {}
        self._open: dict[int, _OpenFile] = {}
        self._folders: list[Stat] = []
        self._links: list[Stat] = []
        self.digests: dict[bytes, bytes] = {}
        self.written_files: set[bytes] = set()

    def expect(self, file_id: int, stat: Stat) -> None:
        """Announce a file whose data will follow under this number."""
        self._expected[file_id] = stat

    def plan(self, stat: Stat) -> None:
        """Announce an entry without data; it is made before any data that is written later."""
        self._planned.append(stat)

    def write(self, batch: Sequence[tuple[int, bytes]]) -> None:
        """Make what is planned, then write pieces of files; empty bytes end a file.

        Raises:
            TreeWriteError: the file system refused.
        """
        self.make_planned()
        taken, end = 0, len(batch)
        while taken < end:
            file_id, data = batch[taken]
            taken += 1
            opened = self._open.get(file_id)
            if opened is None:
                stat = self._expected.pop(file_id)
                if not data:
                    self._write_whole(stat, b"")
                    continue
                if taken < end and batch[taken] == (file_id, b"") and len(data) < _SPARSE_BLOCK:
                    self._write_whole(stat, data)
                    taken += 1
                    continue
                opened = self._open[file_id] = self.open(stat)
            if data:
                try:
                    opened.write(data)
                except OSError as exc:
                    raise TreeWriteError(self.absolute(opened.stat.path), exc) from exc
            else:
                del self._open[file_id]
                self.finish_file(opened)

    def absolute(self, path: bytes) -> bytes:
        """Return the path on disk."""
        return self.root + b"/" + path

    def open(self, stat: Stat) -> _OpenFile:
        """Create the file of an entry in place of whatever is there."""
        header = self._header(stat) if self._header is not None else None
        return _OpenFile(self._create(stat), stat, header)

    def _create(self, stat: Stat) -> int:
        path = self.absolute(stat.path)
        try:
            try:
                descriptor = os.open(path, _OPEN_FLAGS, 0o600)
            except FileExistsError:
                remove(path)
                descriptor = os.open(path, _OPEN_FLAGS, 0o600)
        except OSError as exc:
            raise TreeWriteError(path, exc) from exc
        self.written_files.add(stat.path)
        return descriptor

    def _write_whole(self, stat: Stat, data: bytes) -> None:
        """Write a small file whose content is all here."""
        descriptor = self._create(stat)
        try:
            written = 0
            while written < len(data):
                written += os.write(descriptor, data[written:])
            self._set_file_metadata(descriptor, stat)
        except OSError as exc:
            raise TreeWriteError(self.absolute(stat.path), exc) from exc
        finally:
            os.close(descriptor)
        if self._header is not None:
            self.digests[stat.path] = hashlib.sha256(self._header(stat) + data).digest()

    def finish_file(self, opened: _OpenFile) -> None:
        """Set a file's metadata and close it."""
        stat, descriptor = opened.stat, opened.descriptor
        try:
            if opened.holes:
                os.ftruncate(descriptor, os.lseek(descriptor, 0, os.SEEK_CUR))
            self._set_file_metadata(descriptor, stat)
        except OSError as exc:
            raise TreeWriteError(self.absolute(stat.path), exc) from exc
        finally:
            os.close(descriptor)
        if opened.hasher is not None:
            self.digests[stat.path] = opened.hasher.digest()

    def _set_file_metadata(self, descriptor: int, stat: Stat) -> None:
        if self._keep_owner and (stat.uid or stat.gid):
            os.fchown(descriptor, stat.uid, stat.gid)
        if stat.xattrs:
            _set_xattrs(descriptor, stat)
        os.fchmod(descriptor, permissions(stat.mode))
        os.utime(descriptor, ns=(stat.mtime_ns, stat.mtime_ns))

    def make_planned(self) -> None:
        """Make the planned entries in order; hard links and folder times wait for the end."""
        while self._planned:
            stat = self._planned.popleft()
            try:
                self._make(stat)
            except OSError as exc:
                raise TreeWriteError(self.absolute(stat.path), exc) from exc

    def _make(self, stat: Stat) -> None:
        path = self.absolute(stat.path)
        if stat.is_dir:
            self._folders.append(stat)
            try:
                os.mkdir(path, 0o700)
            except FileExistsError:
                if not stat_module.S_ISDIR(os.lstat(path).st_mode):
                    remove(path)
                    os.mkdir(path, 0o700)
        elif stat.is_hardlink:
            self._links.append(stat)
        else:
            remove(path)
            self._make_special(path, stat)
            self._set_metadata(path, stat)

    def _make_special(self, path: bytes, stat: Stat) -> None:
        if stat.is_symlink:
            os.symlink(stat.linkname, path)
        elif stat.mode & packets.MODE_FIFO:
            os.mkfifo(path, 0o600)
        elif stat.mode & packets.MODE_DEVICE:
            kind = (
                stat_module.S_IFCHR
                if stat.mode & packets.MODE_CHAR_DEVICE
                else stat_module.S_IFBLK
            )
            os.mknod(path, kind | 0o600, os.makedev(stat.devmajor, stat.devminor))
        else:
            raise OSError(errno.EINVAL, f"unknown type in mode {stat.mode:#o}")

    def _set_metadata(self, path: bytes, stat: Stat) -> None:
        if self._keep_owner:
            os.chown(path, stat.uid, stat.gid, follow_symlinks=False)
        if stat.xattrs:
            _set_xattrs(path, stat)
        if not stat.is_symlink:
            os.chmod(path, permissions(stat.mode))
        os.utime(path, ns=(stat.mtime_ns, stat.mtime_ns), follow_symlinks=False)

    def close(self, touched_folders: Sequence[Stat] = ()) -> None:
        """Make hard links, then set the metadata of folders, innermost first.

        Args:
            touched_folders: Folders that were not planned but were written into.

        Raises:
            TreeWriteError: the file system refused.
        """
        self.make_planned()
        for stat in self._links:
            path = self.absolute(stat.path)
            try:
                remove(path)
                os.link(self.absolute(stat.linkname), path, follow_symlinks=False)
            except OSError as exc:
                raise TreeWriteError(path, exc) from exc
        for stat in sorted((*self._folders, *touched_folders), key=_path, reverse=True):
            path = self.absolute(stat.path)
            try:
                self._set_metadata(path, stat)
            except OSError as exc:
                raise TreeWriteError(path, exc) from exc

    def abort(self) -> None:
        """Close what is open; what was written stays."""
        for opened in self._open.values():
            os.close(opened.descriptor)
        self._open.clear()


def _path(stat: Stat) -> bytes:
    return stat.path


def _set_xattrs(target: int | bytes, stat: Stat) -> None:
    """Set what can be set: not every file system has, and not every user may, all of them."""
    follow = isinstance(target, int)
    for name, value in stat.xattrs.items():
        try:
            os.setxattr(target, os.fsdecode(name), value, follow_symlinks=follow)
        except OSError:
            continue


def remove(path: bytes) -> None:
    """Remove whatever is at ``path``, a whole folder too; nothing there is fine.

    Symlinks are removed, never followed.
    """
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):
        if not stat_module.S_ISDIR(os.lstat(path).st_mode):
            raise
        _remove_folder(path)


def _remove_folder(root: bytes) -> None:
    """Remove a folder without recursion: hostile trees are deeper than the stack."""
    stack = [root]
    while stack:
        folder = stack[-1]
        below: list[bytes] = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    below.append(entry.path)
                else:
                    os.unlink(entry.path)
        if below:
            stack += below
        else:
            os.rmdir(folder)
            stack.pop()
