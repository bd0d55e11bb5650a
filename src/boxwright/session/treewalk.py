"""Walk a folder of the user as the file transfer protocol wants it.

The order is the protocol's: a folder, then its entries sorted by the bytes of their names,
each with everything below it. Patterns decide what is named; a folder that is not itself
wanted is named once something below it is. Hard links are found among what is named only, so
that their target is always part of the transfer.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat as stat_module
from collections.abc import Callable, Iterator
from typing import NamedTuple

from boxwright.core.dataclass import dataclass, field
from boxwright.fsutil.patterns import ParentMatches, PatternMatcher
from boxwright.session import packets
from boxwright.session.base import ContextReadError, SyncRequest
from boxwright.session.followpaths import follow_paths
from boxwright.session.packets import Stat

_GO_TYPES = {
    stat_module.S_IFREG: 0,
    stat_module.S_IFDIR: packets.MODE_DIR,
    stat_module.S_IFLNK: packets.MODE_SYMLINK,
    stat_module.S_IFIFO: packets.MODE_FIFO,
    stat_module.S_IFBLK: packets.MODE_DEVICE,
    stat_module.S_IFCHR: packets.MODE_DEVICE | packets.MODE_CHAR_DEVICE,
    stat_module.S_IFSOCK: 0,  # tar knows no sockets: they travel as empty files
}
_VANISHED = frozenset((errno.ENOENT, errno.ENOTDIR))


def go_mode(mode: int) -> int:
    """Turn the kernel's ``st_mode`` into Go's file mode bits."""
    result = mode & 0o777 | _GO_TYPES.get(stat_module.S_IFMT(mode), packets.MODE_IRREGULAR)
    if mode & 0o7000:
        if mode & stat_module.S_ISUID:
            result |= packets.MODE_SETUID
        if mode & stat_module.S_ISGID:
            result |= packets.MODE_SETGID
        if mode & stat_module.S_ISVTX:
            result |= packets.MODE_STICKY
    return result


def permissions(mode: int) -> int:
    """Turn Go's file mode bits into the kernel's permission bits (with setuid and so on)."""
    result = mode & 0o777
    if mode & packets.MODE_SETUID:
        result |= stat_module.S_ISUID
    if mode & packets.MODE_SETGID:
        result |= stat_module.S_ISGID
    if mode & packets.MODE_STICKY:
        result |= stat_module.S_ISVTX
    return result


class WalkedEntry(NamedTuple):
    """An entry of the walk: what the protocol says of it, and what the kernel said.

    Where the caller knew the entry (see :attr:`TreeWalk.known`), ``stat`` holds its path and
    mode only.
    """

    stat: Stat
    os_stat: os.stat_result
    known: bool = False


Known = Callable[[bytes, os.stat_result], bool]


@dataclass(slots=True)
class _Folder:
    """A folder on the way down; ``entry`` is kept until it is known whether it is named."""

    path: bytes
    include: ParentMatches = ()
    exclude: ParentMatches = ()
    entry: os.DirEntry[bytes] | None = None


@dataclass(slots=True)
class TreeWalk:
    """A walk over one shared folder.

    Args:
        root: The folder; it may itself be reached over symlinks.
        request: Patterns; ``follow`` paths are resolved over symlinks inside the folder and
            added to the include patterns.
        reset_owner: Report owner and group 0, as every client does with a context.
        known: Asked for entries that are no hard links: true skips reading link targets and
            attributes.
        mtime_ns: Report this modification time for everything.
        layer_of: Says which layer of the tree shows a path; only names of one layer can be
            hard links of each other.
        is_split: The folders at the top are roots of their own: absolute link targets are
            reported below them, as BuildKit does.

    Raises:
        ContextReadError: the folder can't be read.
        PatternError: a pattern is malformed.
    """

    root: bytes
    request: SyncRequest = field(default_factory=SyncRequest)
    reset_owner: bool = True
    known: Known | None = None
    mtime_ns: int | None = None
    layer_of: Callable[[bytes], int] | None = None
    is_split: bool = False
    _include: PatternMatcher | None = None
    _exclude: PatternMatcher | None = None
    _seen: dict[int, dict[tuple[int, int], bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root = os.path.realpath(self.root)
        include = list(self.request.include)
        if self.request.follow:
            include = _merge(include, follow_paths(self.root, self.request.follow))
        self._include = PatternMatcher(include) if include else None
        self._exclude = PatternMatcher(self.request.exclude) if self.request.exclude else None

    def __iter__(self) -> Iterator[WalkedEntry]:
        """Yield the entries in order; those that vanish meanwhile are left out."""
        self._seen.clear()
        if self._include is None and self._exclude is None:
            yield from self._walk_all()
        else:
            yield from self._walk_filtered()

    def _list(self, folder: bytes, *, wanted: bool = True) -> list[os.DirEntry[bytes]]:
        try:
            with os.scandir(self._absolute(folder)) as entries:
                return sorted(entries, key=_entry_name)
        except OSError as exc:
            if folder and exc.errno in _VANISHED:
                return []
            if exc.errno == errno.EACCES and not wanted:
                return []
            raise ContextReadError(os.fsdecode(self._absolute(folder)), exc) from exc

    def _absolute(self, path: bytes) -> bytes:
        return self.root + b"/" + path if path else self.root

    def _walk_all(self) -> Iterator[WalkedEntry]:
        stack = [(b"", iter(self._list(b"")))]
        while stack:
            prefix, entries = stack[-1]
            entry = next(entries, None)
            if entry is None:
                stack.pop()
                continue
            path = prefix + entry.name
            walked = self._stat(entry, path)
            if walked is None:
                continue
            yield walked
            if walked.stat.mode & packets.MODE_DIR:
                stack.append((path + b"/", iter(self._list(path))))

    def _walk_filtered(self) -> Iterator[WalkedEntry]:
        parents = [_Folder(b"")]
        stack = [iter(self._list(b""))]
        while stack:
            parent = parents[-1]
            entry = next(stack[-1], None)
            if entry is None:
                stack.pop()
                parents.pop()
                continue
            path = parent.path + b"/" + entry.name if parent.path else entry.name
            is_dir = entry.is_dir(follow_symlinks=False)
            folder = _Folder(path)
            wanted, descend = self._match(path, folder, parent, is_dir=is_dir)
            if wanted:
                yield from self._pending(parents)
                walked = self._stat(entry, path)
                if walked is None:
                    continue
                yield walked
            elif is_dir:
                folder.entry = entry
            if is_dir and descend:
                parents.append(folder)
                stack.append(iter(self._list(path, wanted=wanted)))

    def _match(
        self, path: bytes, folder: _Folder, parent: _Folder, *, is_dir: bool
    ) -> tuple[bool, bool]:
        """Return whether an entry is named, and whether a folder must be looked into."""
        text = os.fsdecode(path)
        wanted = descend = True
        if self._include is not None:
            included, folder.include = self._include.match_below(text, parent.include)
            if not included:
                wanted = False
                descend = is_dir and self._include.can_include_below(text)
        if self._exclude is not None and descend:
            excluded, folder.exclude = self._exclude.match_below(text, parent.exclude)
            if excluded:
                wanted = False
                descend = is_dir and self._exclude.can_take_back_below(text)
        return wanted, descend

    def _pending(self, parents: list[_Folder]) -> Iterator[WalkedEntry]:
        """Name the folders above that no pattern named but that now hold something."""
        for folder in parents:
            if folder.entry is not None:
                walked = self._stat(folder.entry, folder.path)
                folder.entry = None
                if walked is not None:
                    yield walked

    def _stat(self, entry: os.DirEntry[bytes], path: bytes) -> WalkedEntry | None:
        try:
            found = entry.stat(follow_symlinks=False)
            if (
                self.known is not None
                and (found.st_nlink == 1 or stat_module.S_ISDIR(found.st_mode))
                and self.known(path, found)
            ):
                return WalkedEntry(Stat(path, go_mode(found.st_mode)), found, known=True)
            link = os.readlink(entry.path) if entry.is_symlink() else b""
            xattrs = read_xattrs(entry.path)
        except OSError as exc:
            if exc.errno in _VANISHED:
                return None
            raise ContextReadError(os.fsdecode(entry.path), exc) from exc
        if self.is_split and link.startswith(b"/"):
            link = below_root(path.partition(b"/")[0], link)
        layer = 0
        if self.layer_of is not None and found.st_nlink > 1:
            layer = self.layer_of(path)
        seen = self._seen.setdefault(layer, {})
        stat = make_stat(path, found, link, xattrs, seen)
        if self.reset_owner and (stat.uid or stat.gid):
            stat = stat._replace(uid=0, gid=0)
        if self.mtime_ns is not None:
            stat = stat._replace(mtime_ns=self.mtime_ns)
        return WalkedEntry(stat, found)


def below_root(folder: bytes, target: bytes) -> bytes:
    """Return an absolute link target as it is where its root is ``folder``."""
    return posixpath.normpath(b"/" + folder + b"/" + target)


def make_stat(
    path: bytes,
    found: os.stat_result,
    link: bytes,
    xattrs: dict[bytes, bytes] | None,
    seen: dict[tuple[int, int], bytes],
) -> Stat:
    """Build the protocol's stat of an entry; ``seen`` maps inodes to their first path."""
    mode = go_mode(found.st_mode)
    size = found.st_size
    major = minor = 0
    if mode & packets.MODE_DIR:
        size = 0
    else:
        if mode & packets.MODE_DEVICE:
            major, minor = os.major(found.st_rdev), os.minor(found.st_rdev)
        elif stat_module.S_ISSOCK(found.st_mode):
            size = 0
        if found.st_nlink > 1 and not mode & packets.MODE_SYMLINK:
            first = seen.setdefault((found.st_dev, found.st_ino), path)
            if first != path:
                link = first
    extra = {"xattrs": xattrs} if xattrs else {}
    return Stat(
        path,
        mode,
        found.st_uid,
        found.st_gid,
        size,
        found.st_mtime_ns,
        link,
        major,
        minor,
        **extra,
    )


def read_xattrs(path: bytes) -> dict[bytes, bytes] | None:
    """Return the extended attributes of an entry itself; None where it has none."""
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as exc:
        if exc.errno in {errno.ENOTSUP, errno.EPERM, errno.EACCES}:
            return None
        raise
    found: dict[bytes, bytes] = {}
    for name in names:
        if name.startswith("com.apple."):
            continue
        try:
            found[os.fsencode(name)] = os.getxattr(path, name, follow_symlinks=False)
        except OSError:
            continue  # gone, or not for us to read
    return found or None


def _entry_name(entry: os.DirEntry[bytes]) -> bytes:
    return entry.name


def _merge(include: list[str], followed: list[str] | None) -> list[str]:
    """Join include patterns and resolved paths; no patterns at all if the root is among them."""
    if followed is None:
        return include
    out: list[str] = []
    last = ""
    for path in include + followed:
        if path == ".":
            return []
        if last and path.startswith(f"{last}/"):
            continue
        out.append(path)
        last = path
    return out
