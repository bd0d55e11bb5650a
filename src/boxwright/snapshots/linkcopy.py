"""Copying out of sealed snapshots, by hard link where that can't be noticed.

A link shares owner, mode, times and attributes with its source for ever, so it is taken only
when none of them is to change, from a sealed tree that the store owns (never from a user's
tree, a cache mount or a context that is still written to), and at most once per source inode
in one target tree and what is below it: a second link would turn two independent copies into
hard links of each other, for the layer's archive and for programs that run in the tree. Where a
link is impossible the content is shared by reflink, or copied inside the kernel.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from boxwright.core.dataclass import dataclass
from boxwright.linux.files import copy_content

_NO_LINK = frozenset({errno.EMLINK, errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP})
_NO_XATTR = frozenset({errno.ENOTSUP, errno.EPERM, errno.ENODATA})
_OVERLAY_XATTRS = ("trusted.overlay.", "user.overlay.")


@dataclass(frozen=True, slots=True)
class Attributes:
    """What a copy has other than its source; ``None`` keeps the source's.

    Attributes:
        owner: uid and gid.
        mode: permission bits with setuid, setgid and sticky.
        mtime_ns: modification time in nanoseconds since the epoch.
    """

    owner: tuple[int, int] | None = None
    mode: int | None = None
    mtime_ns: int | None = None

    def equal_to(self, info: os.stat_result) -> bool:
        """Return whether a file with ``info`` has all of these already."""
        return (
            (self.owner is None or self.owner == (info.st_uid, info.st_gid))
            and (self.mode is None or self.mode == stat.S_IMODE(info.st_mode))
            and (self.mtime_ns is None or self.mtime_ns == info.st_mtime_ns)
        )


@dataclass(frozen=True, slots=True)
class FolderPair:
    """A folder of a sealed snapshot and the folder that its entries are copied to, both open.

    Attributes:
        source: Path of the first.
        target: Path of the second.
        source_fd: Descriptor of the first.
        target_fd: Descriptor of the second.
        layer: As in :meth:`LinkCopier.copy`.
    """

    source: str
    target: str
    source_fd: int
    target_fd: int
    layer: int | None


AnyPath = str | bytes | os.PathLike[str]

KEEP = Attributes()
IsTaken = Callable[[os.stat_result, int | None], bool]


class LinkCopier:
    """Copies into one target tree; remembers what it has linked there. Blocks; one thread.

    Args:
        sealed: Whether the sources are committed snapshots of the same store.
        preserve_links: Make hard links of one source hard links again in the target.
    """

    def __init__(self, *, sealed: bool = True, preserve_links: bool = True) -> None:
        self._sealed = sealed
        self._preserve = preserve_links
        self._made: dict[tuple[int, int, int | None], bytes] = {}
        self._linked: set[tuple[int, int]] = set()
        self.taken: IsTaken | None = None
        """Tells what is below the target already, by status and layer of the source."""
        self.linked = 0
        self.copied_bytes = 0

    def begin_copy(self) -> None:
        """Start another copy instruction into the same tree.

        Hard links inside one source are kept inside one copy only; links taken before still
        count as taken.
        """
        self._made.clear()

    def copy(
        self,
        source: AnyPath,
        target: AnyPath,
        want: Attributes = KEEP,
        info: os.stat_result | None = None,
        *,
        layer: int | None = None,
    ) -> None:
        """Make ``target``, which must not exist, a copy of the non-folder ``source``.

        Args:
            source: Where from.
            target: Where to.
            want: What is to differ.
            info: Status of ``source`` itself, if the caller has asked already.
            layer: Which of the layers below the source it lies in. Two layers may share an
                inode because both were copied by link from one place; that makes no hard link.

        Raises:
            OSError: reading or writing failed.
        """
        here, there = os.fsencode(source), os.fsencode(target)
        if info is None:
            info = os.lstat(here)
        key = (info.st_dev, info.st_ino)
        if info.st_nlink > 1 and self._preserve:
            first = self._made.setdefault((*key, layer), there)
            if first is not there and self._link(first, there):
                return
        if (
            self._sealed
            and key not in self._linked
            and want.equal_to(info)
            and not (self.taken is not None and self.taken(info, layer))
            and self._link(here, there)
        ):
            self._linked.add(key)
            self.linked += 1
            return
        self._copy(here, there, info, want)

    def copy_file(
        self, name: str, info: os.stat_result, folders: FolderPair, want: Attributes
    ) -> None:
        """Copy a regular file of one folder to another; as :meth:`copy`, at less cost.

        Args:
            name: Of the file, in both.
            info: Its status.
            folders: Where from and where to.
            want: What is to differ.

        Raises:
            OSError: reading or writing failed.
        """
        key = (info.st_dev, info.st_ino)
        has_twin = info.st_nlink > 1 and self._preserve and (*key, folders.layer) in self._made
        if (
            has_twin
            or key in self._linked
            or not (self._sealed and want.equal_to(info))
            or (self.taken is not None and self.taken(info, folders.layer))
        ):
            here, there = f"{folders.source}/{name}", f"{folders.target}/{name}"
            self.copy(here, there, want, info, layer=folders.layer)
            return
        try:
            os.link(
                name,
                name,
                src_dir_fd=folders.source_fd,
                dst_dir_fd=folders.target_fd,
                follow_symlinks=False,
            )
        except OSError as error:
            here, there = f"{folders.source}/{name}", f"{folders.target}/{name}"
            if error.errno not in _NO_LINK:
                raise OSError(error.errno, error.strerror, here, None, there) from error
            self.copy(here, there, want, info, layer=folders.layer)
            return
        self._linked.add(key)
        self.linked += 1
        if info.st_nlink > 1 and self._preserve:
            there = f"{folders.target}/{name}"
            self._made[(*key, folders.layer)] = os.fsencode(there)

    def copy_tree(
        self,
        source: AnyPath,
        target: AnyPath,
        want: Attributes = KEEP,
        *,
        folder_want: Attributes | None = None,
    ) -> None:
        """Copy a folder and all in it to ``target``, which may exist as a folder.

        Args:
            source: A folder of a sealed snapshot, without whiteouts.
            target: Where to.
            want: Attributes of everything but folders.
            folder_want: Attributes of folders, ``want`` if not given.

        Raises:
            OSError: reading or writing failed.
        """
        folder_want = folder_want or want
        pending = [(os.fsencode(source), os.fsencode(target))]
        done = []
        while pending:
            here, there = pending.pop()
            try:
                os.mkdir(there, 0o700)
            except FileExistsError:
                if not stat.S_ISDIR(os.lstat(there).st_mode):
                    raise
            done.append((here, there))
            with os.scandir(here) as entries:
                for entry in entries:
                    new = os.path.join(there, entry.name)
                    if entry.is_dir(follow_symlinks=False):
                        pending.append((entry.path, new))
                    else:
                        self.copy(entry.path, new, want)
        for here, there in reversed(done):
            self.copy_attributes(here, there, folder_want)

    def _link(self, source: bytes, target: bytes) -> bool:
        try:
            os.link(source, target, follow_symlinks=False)
        except OSError as error:
            if error.errno in _NO_LINK:
                return False
            raise
        return True

    def _copy(self, source: bytes, target: bytes, info: os.stat_result, want: Attributes) -> None:
        mode = info.st_mode
        if stat.S_ISREG(mode):
            self._copy_file(source, target, info.st_size)
        elif stat.S_ISLNK(mode):
            os.symlink(os.readlink(source), target)
        elif stat.S_ISSOCK(mode):
            return  # has no meaning in an image; containerd leaves it out too
        else:
            os.mknod(target, stat.S_IFMT(mode) | 0o600, info.st_rdev)
        _set_attributes(source, target, info, want)

    def _copy_file(self, source: bytes, target: bytes, size: int) -> None:
        source_fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            target_fd = os.open(target, flags, 0o600)
            try:
                copy_content(source_fd, target_fd, size)
            finally:
                os.close(target_fd)
        finally:
            os.close(source_fd)
        self.copied_bytes += size

    def copy_attributes(
        self,
        source: AnyPath,
        target: AnyPath,
        want: Attributes = KEEP,
    ) -> None:
        """Give ``target`` (a folder) owner, mode, attributes and times of ``source``.

        Raises:
            OSError: the system refused.
        """
        _set_attributes(os.fsencode(source), os.fsencode(target), os.lstat(source), want)


def _set_attributes(source: bytes, target: bytes, info: os.stat_result, want: Attributes) -> None:
    uid, gid = want.owner or (info.st_uid, info.st_gid)
    is_link = stat.S_ISLNK(info.st_mode)
    os.chown(target, uid, gid, follow_symlinks=False)
    try:
        names = os.listxattr(source, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_XATTR:
            raise
        names = []
    for name in names:
        if not name.startswith(_OVERLAY_XATTRS):
            _copy_xattr(source, target, name)
    if not is_link:
        mode = stat.S_IMODE(info.st_mode) if want.mode is None else want.mode
        os.chmod(target, mode)  # after chown, which clears setuid
    mtime = info.st_mtime_ns if want.mtime_ns is None else want.mtime_ns
    os.utime(target, ns=(mtime, mtime), follow_symlinks=False)


def _copy_xattr(source: bytes, target: bytes, name: str) -> None:
    try:
        value = os.getxattr(source, name, follow_symlinks=False)
        os.setxattr(target, name, value, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_XATTR:
            raise
