"""Apply a layer or any archive to a folder, confined to it whatever the archive says.

Invariant: nothing outside the root folder is read or changed. Every name is resolved by the
kernel with ``openat2(RESOLVE_IN_ROOT)`` as a chrooted process would see it, and the last
component is never followed. Semantics are containerd's (``archive.Apply``), which is what
every existing layer was made for: absolute names and ``..`` are clamped to the root,
whatever is in the way is replaced except a folder by a folder, missing parents appear.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from boxwright.core.dataclass import dataclass, field
from boxwright.core.digest import CANONICAL, Digest
from boxwright.errors import BoxwrightError, Code
from boxwright.fsutil import whiteouts as wh
from boxwright.fsutil.compress import ByteStream, open_decompressor
from boxwright.fsutil.pipeline import ReadAhead
from boxwright.fsutil.tar import Entry, EntryType, TarReader
from boxwright.linux.files import openat2_in_root

WhiteoutMode = Literal["overlay", "plain", "keep"]

_DIR_CACHE = 256
_MAX_LINKS = 40
_MAX_NOTES = 100
_MAX_TIME_S = (1 << 33) - 1
_DIRECTORY = os.O_PATH | os.O_DIRECTORY
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NOT_THERE = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP))
_ARCHIVE_FAULTS = frozenset(
    (errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EISDIR, errno.ENOENT, errno.EMLINK)
)


class ApplyError(BoxwrightError):
    """An archive entry that can't be put into the folder because of what the archive says."""

    code = Code.HOSTILE_INPUT

    def __init__(self, name: bytes, problem: str, *, hint: str = "") -> None:
        shown = name[:300].decode("utf-8", "backslashreplace")
        super().__init__(
            "can't unpack an archive entry", detail=f"{shown!r}: {problem}", hint=hint
        )
        self.name = name


@dataclass(frozen=True, slots=True)
class ApplyResult:
    """What one archive put into the folder.

    Attributes:
        bytes: content, holes of sparse files included.
        entries: members of the archive, whiteouts included.
        diff_id: digest of the uncompressed archive, trailing bytes included.
        ignored: up to 100 things that this system could not store (devices in a user
            namespace, extended attributes that the file system lacks), for a log line.
    """

    bytes: int
    entries: int
    diff_id: Digest
    ignored: tuple[str, ...] = field(default=())


def apply_layer(
    stream: ByteStream,
    root: Path,
    *,
    whiteouts: WhiteoutMode = "overlay",
    userxattr: bool = False,
    same_owner: bool = True,
    owner: tuple[int, int] | None = None,
    parents: Sequence[Path] = (),
    algorithm: str = CANONICAL,
) -> ApplyResult:
    """Apply the archive in ``stream`` to the existing folder ``root``; blocking.

    Args:
        stream: a tar archive, plain or compressed with gzip, zstd, bzip2 or xz.
        root: where to; only this folder is touched.
        whiteouts: ``overlay`` makes overlayfs's own marks (character device 0:0, opaque
            attribute), ``plain`` deletes what a whiteout hides, ``keep`` unpacks whiteouts
            as the ordinary files that they look like (ADD of an archive), and never makes the
            missing target of a link.
        userxattr: the opaque mark is ``user.overlay.opaque`` (rootless mounts).
        same_owner: give files the owners of the archive; else everything stays the caller's.
        owner: uid and gid for everything instead of the archive's.
        parents: root folders of the layers below, topmost first; a folder that the archive
            only implies takes its attributes from there.
        algorithm: of the diff id.

    Raises:
        TarFormatError: the archive is malformed; TarLimitError: over a limit.
        CompressedDataError: the compressed data is corrupt.
        ApplyError: an entry contradicts the tree (a file as parent, an unmappable owner).
        WhiteoutError: a whiteout of ``.`` or ``..``.
        OSError: the file system's own trouble (full, read-only, I/O error).
    """
    _, plain = open_decompressor(stream)
    with (
        ReadAhead(plain, algorithm=algorithm) as ahead,
        _Unpacker(
            TarReader(ahead),
            root,
            whiteouts=whiteouts,
            userxattr=userxattr,
            same_owner=same_owner,
            owner=owner,
            parents=parents,
        ) as unpacker,
    ):
        unpacker.run()
        return ApplyResult(
            bytes=unpacker.tar.content_bytes,
            entries=unpacker.tar.entries,
            diff_id=ahead.digest(),
            ignored=tuple(unpacker.ignored),
        )


class _Unpacker:
    """One run over one archive. Holds open folders in a small cache; close() frees them."""

    def __init__(
        self,
        tar: TarReader,
        root: Path,
        *,
        whiteouts: WhiteoutMode,
        userxattr: bool,
        same_owner: bool,
        owner: tuple[int, int] | None,
        parents: Sequence[Path],
    ) -> None:
        self.tar = tar
        self.ignored: list[str] = []
        self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._whiteouts = whiteouts
        self._opaque = wh.overlay_opaque_xattr(userxattr=userxattr)
        self._owner = owner
        self._same_owner = same_owner
        self._me = (os.geteuid(), os.getegid())
        self._parents = parents
        self._dirs: dict[bytes, int] = {}
        self._dir_times: dict[bytes, tuple[int, int]] = {}
        self._written: set[bytes] | None = set() if whiteouts == "plain" else None
        self._hidden: set[bytes] = set()  # whiteouts made by this archive (overlay)
        self._retired: list[int] = []  # folders whose cached path no longer leads to them
        self._late_modes: dict[bytes, int] = {}
        # bits that open(2) alone sets as wanted; 0 also means: don't trust inherited owners
        fresh = not os.listdir(self._root)
        self._exact_mode = _mode_bits_that_stick(self._root) if fresh else 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._forget_dirs()
        os.close(self._root)

    def run(self) -> None:
        entry: Entry | None = None
        try:
            for entry in self.tar:
                self._apply(entry)
            entry = None
            self.tar.drain()
            self._finish_dirs()
        except OSError as error:
            if entry is None or error.errno not in _ARCHIVE_FAULTS:
                raise
            raise ApplyError(entry.name, os.strerror(error.errno)) from error

    # -- one entry -------------------------------------------------------------------

    def _apply(self, entry: Entry) -> None:
        if self._retired:
            self._close_retired()
        path = clamp(entry.name)
        if not path:
            return
        parent, _, base = path.rpartition(b"/")
        if len(base) > 255:
            raise ApplyError(entry.name, os.strerror(errno.ENAMETOOLONG))
        dirfd = self._dirs.get(parent)
        if dirfd is None:
            dirfd = self._dir(parent)
        if base.startswith(wh.PREFIX) and self._whiteouts != "keep":
            self._whiteout(entry, dirfd, parent, base)
            return
        if self._written is not None:
            self._written.add(path)
        kind = entry.type
        if kind == EntryType.FILE:
            self._file(entry, dirfd, base)
        elif kind == EntryType.DIRECTORY:
            self._directory(entry, dirfd, path, base)
        else:
            self._special(entry, dirfd, base)

    def _file(self, entry: Entry, dirfd: int, base: bytes) -> None:
        mode = entry.mode & 0o7777
        try:
            fd = os.open(base, _CREATE, mode & 0o777, dir_fd=dirfd)
        except FileExistsError:
            self._remove(dirfd, base)
            fd = os.open(base, _CREATE, mode & 0o777, dir_fd=dirfd)
        try:
            if entry.size:
                self.tar.extract_to(fd)
            owner = self._owner_of(entry)
            if owner is not None:
                _chown(entry, fd, owner)
            if entry.xattrs:
                self._xattrs(entry, fd)
            if mode & ~self._exact_mode or owner is not None:
                os.fchmod(fd, mode)
            os.utime(fd, ns=_times(entry))
        finally:
            os.close(fd)

    def _directory(self, entry: Entry, dirfd: int, path: bytes, base: bytes) -> None:
        made = True
        try:
            os.mkdir(base, 0o700, dir_fd=dirfd)
        except FileExistsError:
            made = False
            if not stat.S_ISDIR(os.stat(base, dir_fd=dirfd, follow_symlinks=False).st_mode):
                self._remove(dirfd, base)
                os.mkdir(base, 0o700, dir_fd=dirfd)
                if path in self._hidden:
                    # a whiteout of the same archive stood here: lower layers stay hidden
                    self._set_opaque(dirfd, base)
        owner = self._owner_of(entry, fresh=made)
        if owner is not None:
            _chown(entry, base, owner, dirfd)
        if entry.xattrs:
            self._xattrs(entry, _proc_path(dirfd, base))
        mode = entry.mode & 0o7777
        if mode & 0o2000 or "system.posix_acl_default" in entry.xattrs:
            self._exact_mode = 0  # what is made in this folder inherits from it
        if self._me[0] and mode & 0o300 != 0o300:
            self._late_modes[path] = mode  # only root can fill a folder that it can't write
            mode |= 0o300
        os.chmod(base, mode, dir_fd=dirfd)
        self._dir_times[path] = _times(entry)

    def _special(self, entry: Entry, dirfd: int, base: bytes) -> None:
        try:
            made = self._make_special(entry, dirfd, base)
        except FileExistsError:
            self._remove(dirfd, base)
            made = self._make_special(entry, dirfd, base)
        if not made:
            return
        owner = self._owner_of(entry, fresh=entry.type != EntryType.HARD_LINK)
        if owner is not None:
            _chown(entry, base, owner, dirfd)
        if entry.xattrs:
            self._xattrs(entry, _proc_path(dirfd, base))
        if entry.type != EntryType.SYMLINK:
            if entry.type == EntryType.HARD_LINK and stat.S_ISLNK(
                os.stat(base, dir_fd=dirfd, follow_symlinks=False).st_mode
            ):
                return
            os.chmod(base, entry.mode & 0o7777, dir_fd=dirfd)
        os.utime(base, ns=_times(entry), dir_fd=dirfd, follow_symlinks=False)

    def _make_special(self, entry: Entry, dirfd: int, base: bytes) -> bool:
        kind = entry.type
        if kind == EntryType.SYMLINK:
            os.symlink(entry.linkname, base, dir_fd=dirfd)
        elif kind == EntryType.HARD_LINK:
            return self._hard_link(entry, dirfd, base)
        elif kind == EntryType.FIFO:
            os.mkfifo(base, 0o600, dir_fd=dirfd)
        else:
            flag = stat.S_IFCHR if kind == EntryType.CHARACTER else stat.S_IFBLK
            try:
                device = os.makedev(entry.dev_major, entry.dev_minor)
                os.mknod(base, flag | 0o600, device, dir_fd=dirfd)
            except PermissionError:
                self._ignore(entry, "a device can't be made here")
                return False
            except OverflowError:
                raise ApplyError(entry.name, "device number out of range") from None
        return True

    def _hard_link(self, entry: Entry, dirfd: int, base: bytes) -> bool:
        parent, _, name = entry.linkname.rstrip(b"/").rpartition(b"/")
        if name in {b"", b".", b".."}:
            raise ApplyError(entry.name, f"hard link to {entry.linkname[:200]!r}")
        try:
            source = openat2_in_root(self._root, parent.lstrip(b"/") or b".", _DIRECTORY)
        except FileNotFoundError:
            raise ApplyError(
                entry.name, f"hard link to {entry.linkname[:200]!r}, which is not in the archive"
            ) from None
        try:
            here, there = os.fstat(source), os.fstat(dirfd)
            if name == base and (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino):
                return False  # a link to itself: the file is already there
            os.link(name, base, src_dir_fd=source, dst_dir_fd=dirfd, follow_symlinks=False)
        except FileNotFoundError:
            raise ApplyError(
                entry.name, f"hard link to {entry.linkname[:200]!r}, which is not in the archive"
            ) from None
        except PermissionError:
            raise ApplyError(
                entry.name, f"hard link to {entry.linkname[:200]!r}, which is a folder"
            ) from None
        finally:
            os.close(source)
        return True

    # -- whiteouts -------------------------------------------------------------------

    def _whiteout(self, entry: Entry, dirfd: int, parent: bytes, base: bytes) -> None:
        if base == wh.OPAQUE:
            if self._whiteouts == "overlay":
                os.setxattr(_proc_path(dirfd, b"."), self._opaque, wh.OVERLAY_OPAQUE_VALUE)
            else:
                self._clear(dirfd, parent)
            return
        hidden = wh.hidden_name(base)
        path = parent + b"/" + hidden if parent else hidden
        if self._whiteouts == "plain":
            if self._written is not None and path not in self._written:
                self._remove(dirfd, hidden, missing_ok=True)
            return
        try:
            os.mknod(hidden, stat.S_IFCHR, 0, dir_fd=dirfd)
        except FileExistsError:
            # made by this archive: whiteouts hide what is below, never their own layer
            if stat.S_ISDIR(os.stat(hidden, dir_fd=dirfd, follow_symlinks=False).st_mode):
                self._set_opaque(dirfd, hidden)
            return
        self._hidden.add(path)
        owner = self._owner_of(entry)
        if owner is not None:
            _chown(entry, hidden, owner, dirfd)

    def _clear(self, dirfd: int, parent: bytes) -> None:
        """Remove from a folder all that this archive has not put there itself."""
        written = self._written or set()
        prefix = parent + b"/" if parent else b""
        fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=dirfd)
        try:
            names = [os.fsencode(name) for name in os.listdir(fd)]
        finally:
            os.close(fd)
        for name in names:
            path = prefix + name
            if path not in written:
                self._remove(dirfd, name)
            elif stat.S_ISDIR(os.stat(name, dir_fd=dirfd, follow_symlinks=False).st_mode):
                inner = self._open(path)
                try:
                    self._clear(inner, path)
                finally:
                    os.close(inner)

    def _set_opaque(self, dirfd: int, base: bytes) -> None:
        os.setxattr(
            _proc_path(dirfd, base), self._opaque, wh.OVERLAY_OPAQUE_VALUE, follow_symlinks=False
        )

    # -- folders ---------------------------------------------------------------------

    def _dir(self, path: bytes) -> int:
        """Return a cached descriptor of the folder ``path``, making it if it is missing."""
        fd = self._open_or_make(path, 0)
        if len(self._dirs) >= _DIR_CACHE:
            oldest = next(iter(self._dirs))
            os.close(self._dirs.pop(oldest))
        self._dirs[path] = fd
        return fd

    def _open(self, path: bytes) -> int:
        return openat2_in_root(self._root, path.lstrip(b"/") or b".", _DIRECTORY)

    def _open_or_make(self, path: bytes, links: int) -> int:
        try:
            return self._open(path)
        except FileNotFoundError:
            pass
        parent, _, base = path.rstrip(b"/").rpartition(b"/")
        if base in {b"", b".", b".."} or links > _MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        dirfd = self._open_or_make(parent, links)
        try:
            os.mkdir(base, 0o755, dir_fd=dirfd)
        except FileExistsError:
            # a symbolic link whose target is missing: containerd makes the target, ADD does not
            if self._whiteouts == "keep":
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None
            target = os.readlink(base, dir_fd=dirfd)
            if not target.startswith(b"/"):
                target = parent + b"/" + target
            return self._open_or_make(target, links + 1)
        else:
            os.chmod(base, 0o755, dir_fd=dirfd)  # noqa: S103  # as containerd, any umask
            fd = self._open(path)
            self._copy_attributes(fd)
            return fd
        finally:
            os.close(dirfd)

    def _copy_attributes(self, fd: int) -> None:
        """Give an implied folder the attributes that it has in the layers below."""
        root = os.readlink(b"/proc/self/fd/%d" % self._root)
        path = os.readlink(b"/proc/self/fd/%d" % fd)[len(root) :].lstrip(b"/")
        for lower in self._parents:
            base = os.open(lower, _DIRECTORY)
            try:
                below = openat2_in_root(base, path, os.O_PATH | os.O_NOFOLLOW)
            except OSError as error:
                if error.errno in _NOT_THERE:
                    continue
                raise
            finally:
                os.close(base)
            try:
                info = os.fstat(below)
                if not stat.S_ISDIR(info.st_mode):
                    return
                here, there = _proc_path(fd, b"."), _proc_path(below, b".")
                if self._same_owner:
                    os.chown(here, info.st_uid, info.st_gid)
                os.chmod(here, stat.S_IMODE(info.st_mode))
                for name in os.listxattr(there):
                    if not wh.is_overlay_xattr(name):
                        os.setxattr(here, name, os.getxattr(there, name))
                self._dir_times.setdefault(path, (info.st_atime_ns, info.st_mtime_ns))
                return
            finally:
                os.close(below)

    def _finish_dirs(self) -> None:
        """Set what making files in a folder would have changed or needed otherwise."""
        for path, times in self._dir_times.items():
            parent, _, base = path.rpartition(b"/")
            try:
                dirfd = self._open(parent)
            except OSError as error:
                if error.errno in _NOT_THERE:
                    continue  # replaced later in the archive
                raise
            try:
                os.utime(base, ns=times, dir_fd=dirfd, follow_symlinks=False)
                mode = self._late_modes.get(path)
                info = os.stat(base, dir_fd=dirfd, follow_symlinks=False)
                if mode is not None and stat.S_ISDIR(info.st_mode):
                    os.chmod(base, mode, dir_fd=dirfd)
            except FileNotFoundError:
                pass
            finally:
                os.close(dirfd)

    def _forget_dirs(self) -> None:
        self._retired.extend(self._dirs.values())
        self._dirs.clear()
        self._close_retired()

    def _close_retired(self) -> None:
        while self._retired:
            os.close(self._retired.pop())

    def _remove(self, dirfd: int, base: bytes, *, missing_ok: bool = False) -> None:
        """Remove whatever has this name; cached paths may have led through it."""
        try:
            info = os.stat(base, dir_fd=dirfd, follow_symlinks=False)
        except FileNotFoundError:
            if missing_ok:
                return
            raise
        if stat.S_ISDIR(info.st_mode):
            shutil.rmtree(base, dir_fd=dirfd)
        else:
            os.unlink(base, dir_fd=dirfd)
        if stat.S_ISDIR(info.st_mode) or stat.S_ISLNK(info.st_mode):
            self._retired.extend(self._dirs.values())
            self._dirs.clear()

    # -- attributes ------------------------------------------------------------------

    def _owner_of(self, entry: Entry, *, fresh: bool = True) -> tuple[int, int] | None:
        """Return whom to give an entry to; ``fresh`` means that we own it as it was just made."""
        if not self._same_owner:
            return None
        owner = self._owner or (entry.uid, entry.gid)
        return None if fresh and owner == self._me and self._exact_mode else owner

    def _xattrs(self, entry: Entry, target: int | bytes) -> None:
        follow = isinstance(target, int)
        for name, value in entry.xattrs.items():
            if wh.is_overlay_xattr(name):
                self._ignore(entry, f"attribute {name} is overlayfs's own")
                continue
            try:
                os.setxattr(target, name, value, follow_symlinks=follow)
            except OSError as error:
                if error.errno not in {errno.ENOTSUP, errno.EPERM}:
                    raise
                self._ignore(entry, f"attribute {name}: {os.strerror(error.errno)}")

    def _ignore(self, entry: Entry, what: str) -> None:
        if len(self.ignored) < _MAX_NOTES:
            self.ignored.append(f"{entry.name.decode('utf-8', 'backslashreplace')}: {what}")


def clamp(name: bytes) -> bytes:
    """Return ``name`` relative to the root, with ``.``, ``..`` and doubled slashes removed.

    ``..`` at the top stays at the top, as in a chroot; the root itself is empty.
    """
    if b"/." in name or b"//" in name or name[:1] in {b".", b"/"}:
        return os.path.normpath(b"/" + name).lstrip(b"/")
    return name.rstrip(b"/")


def _chown(
    entry: Entry, target: int | bytes, owner: tuple[int, int], dirfd: int | None = None
) -> None:
    try:
        if isinstance(target, int):
            os.fchown(target, *owner)
        else:
            os.chown(target, *owner, dir_fd=dirfd, follow_symlinks=False)
    except (OSError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise ApplyError(
            entry.name,
            f"owner {owner[0]}:{owner[1]} does not exist in this user namespace",
            hint="give the user more subordinate ids in /etc/subuid and /etc/subgid",
        ) from error


def _times(entry: Entry) -> tuple[int, int]:
    seconds, nanoseconds = entry.mtime, entry.mtime_nsec
    if not 0 <= seconds <= _MAX_TIME_S:
        seconds = nanoseconds = 0
    modified = seconds * 1_000_000_000 + nanoseconds
    if entry.atime is not None and seconds < entry.atime <= _MAX_TIME_S:
        return entry.atime * 1_000_000_000, modified
    return modified, modified


def _proc_path(dirfd: int, base: bytes) -> bytes:
    """Name a file under an open folder for calls that take no folder descriptor."""
    return b"/proc/self/fd/%d/%s" % (dirfd, base)


def _mode_bits_that_stick(root: int) -> int:
    """Return the permission bits that open(2) sets here without a chmod after it.

    Zero where the folder hands down an ACL or its group: then nothing is left to open(2).
    """
    if os.fstat(root).st_mode & stat.S_ISGID:
        return 0
    try:
        os.getxattr(b"/proc/self/fd/%d" % root, "system.posix_acl_default")
    except OSError:
        pass
    else:
        return 0
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith("Umask:"):
                return 0o777 & ~int(line.split()[1], 8)
    return 0
