"""Copying a path of one tree into another, as COPY and ADD mean it (fsutil's ``copy`` package).

Both roots are given as folders; every path in them is resolved without leaving them, and nothing
below a resolved path is followed. The target tree belongs to us alone while we write.

**Direct writing.** What does not exist in the target yet needs no overlay: it is put straight into
the folder that receives the changes, by hard link from the source layer where that can't be
noticed. That must not happen while the overlay is mounted, so a copy has two phases:
:meth:`TreeCopier.run` on the mounted tree does what touches existing files and queues the rest,
:meth:`TreeCopier.finish` works off the queue after the unmount.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterable
from contextlib import ExitStack

from boxwright.core.dataclass import dataclass, field
from boxwright.executor import rootpath
from boxwright.fsutil.patterns import ParentMatches, PatternMatcher
from boxwright.ops.errors import FileOpError, from_os_error, inside
from boxwright.ops.filemode import ModeChange
from boxwright.ops.layerview import LayerView, is_whiteout
from boxwright.snapshots.linkcopy import Attributes, FolderPair, LinkCopier

_DEFAULT_DIR_MODE = 0o755


@dataclass(frozen=True, slots=True)
class CopyOptions:
    """How copies differ from their sources (pb.FileActionCopy).

    Attributes:
        owner: uid and gid; the source's if ``None``.
        mode: permission bits; the source's if ``None``.
        mode_change: a symbolic mode, used instead of ``mode``.
        mtime_ns: one time for everything; the source's if ``None``.
        include: only what one of these patterns matches; empty for everything.
        exclude: not what one of these patterns matches.
        dir_contents: copy what is in a source folder, not the folder.
        follow_links: resolve the source if it is itself a link.
        always_replace: a file may replace a folder and the other way round.
    """

    owner: tuple[int, int] | None = None
    mode: int | None = None
    mode_change: ModeChange | None = None
    mtime_ns: int | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    dir_contents: bool = False
    follow_links: bool = False
    always_replace: bool = False


@dataclass(slots=True)
class _Folder:
    """A source folder whose copy waits until something in it is wanted."""

    source: str
    target: str
    is_made: bool


@dataclass(frozen=True, slots=True)
class _Matches:
    """What the patterns said about a folder, for its children."""

    include: ParentMatches = ()
    exclude: ParentMatches = ()


@dataclass(slots=True)
class TreeCopier:
    """One copy instruction. Blocks; belongs to one thread at a time.

    Attributes:
        source: The source tree.
        target: Root of the mounted target tree.
        upper: The folder that receives the target's changes, if it may be written directly
            after the unmount; ``None`` if ``target`` is that folder itself.
        options: How copies differ.
        linker: Knows what was linked into the target before.
        may_meet: Whether sources of this instruction may have the same target: each must then
            see what the one before it has written, so nothing is queued.
    """

    source: LayerView
    target: str
    upper: str | None
    options: CopyOptions
    linker: LinkCopier
    may_meet: bool = False
    _queue: list[Callable[[], None]] = field(default_factory=list)
    _waiting: list[_Folder] = field(default_factory=list)
    _include: PatternMatcher | None = None
    _exclude: PatternMatcher | None = None
    _fixed: Attributes | None = None

    def __post_init__(self) -> None:
        if self.options.include:
            self._include = PatternMatcher(self.options.include)
        if self.options.exclude:
            self._exclude = PatternMatcher(self.options.exclude)
        if self.options.mode_change is None:
            mode = self.options.mode
            self._fixed = Attributes(self.options.owner, mode, self.options.mtime_ns)

    @property
    def has_queued(self) -> bool:
        """Whether :meth:`finish` has something to do."""
        return bool(self._queue)

    def run(self, source_path: str, target_path: str) -> None:
        """Copy ``source_path`` to ``target_path``, both inside their roots.

        Raises:
            FileOpError: the trees do not allow it.
            OSError: a path of this machine failed.
        """
        self.linker.begin_copy()
        target_fd = rootpath.open_root(self.target)
        source_fd = rootpath.open_root(self.source.view)
        try:
            made = self._make_parents(target_fd, target_path)
            target = _resolve(target_fd, target_path)
            follow = self.options.follow_links
            source = _resolve(source_fd, source_path, follow_last=follow)
            target, more = self._enter_target(target_fd, source, source_path, target)
            self._copy(source, "", target, overwrite=False, matches=_Matches())
            self._restore_times((*made, *more))
        finally:
            os.close(source_fd)
            os.close(target_fd)

    def finish(self) -> None:
        """Work off what was queued; the target is no longer mounted.

        Raises:
            OSError: writing failed.
        """
        queue, self._queue = self._queue, []
        for write in queue:
            write()

    def _make_parents(self, target_fd: int, target_path: str) -> list[str]:
        folder, name = os.path.split(target_path)
        wanted = folder if name not in ("", ".") else target_path
        return self._make_dirs(target_fd, _resolve(target_fd, wanted))

    def _make_dirs(self, target_fd: int, relative: str) -> list[str]:
        mode = _DEFAULT_DIR_MODE if self.options.mode is None else self.options.mode
        return make_dirs(
            target_fd,
            relative,
            mode=mode & 0o777,
            owner=self.options.owner,
            mtime_ns=self.options.mtime_ns,
        )

    def _enter_target(
        self, target_fd: int, source: str, source_path: str, target: str
    ) -> tuple[str, list[str]]:
        """Decide between "to this name" and "into this folder", and make what is missing."""
        try:
            info = os.lstat(self._source_path(source))
        except OSError as exc:
            raise from_os_error("lstat", "/" + source, exc) from exc
        is_dir = stat.S_ISDIR(info.st_mode)
        existing = _stat_or_none(f"{self.target}/{target}")
        contents = self.options.dir_contents
        into = existing is not None and (
            not contents if is_dir else stat.S_ISDIR(existing.st_mode)
        )
        if into:
            name = os.path.basename(source_path.rstrip("/")) or os.path.basename(source)
            target = _join(target, "" if name in (".", "/") else name)
        parent = os.path.dirname(target)
        if contents and is_dir and existing is None:
            parent = target
        return target, self._make_dirs(target_fd, parent)

    def _restore_times(self, made: Iterable[str]) -> None:
        mtime = self.options.mtime_ns
        if mtime is None:
            return
        for relative in reversed(list(made)):
            self._queue_or_do(relative, lambda path: _set_mtime(path, mtime))

    def _source_path(self, relative: str) -> str:
        return f"{self.source.view}/{relative}" if relative else self.source.view

    def _copy(
        self, source: str, inner: str, target: str, *, overwrite: bool, matches: _Matches
    ) -> None:
        """Copy one entry over whatever may be there; ``inner`` is its path below the source."""
        wanted, excluded, below = self._match(inner, matches)
        if not wanted and self._include is None and not self._can_take_back():
            return
        source_path = self._source_path(source)
        info = os.lstat(source_path)
        is_dir = stat.S_ISDIR(info.st_mode)
        if not wanted and not is_dir:
            return
        target_path = _join(self.target, target)
        existing = _lstat_or_none(target_path)
        if wanted:
            if existing is not None and self._must_replace(info, existing):
                _remove(target_path, existing)
                existing = None
            self._make_waiting()
        if is_dir:
            self._copy_folder(source, inner, target, existing, overwrite, wanted, excluded, below)
            return
        if existing is not None:
            if stat.S_ISDIR(existing.st_mode):
                raise FileOpError(f"cannot replace to directory /{target} with file")
            os.unlink(target_path)
        elif self._can_queue(target):
            path = self.source.own_path(source, is_dir=False) or source_path
            self._queue_file(path, target)
            return
        own = self.source.own_path(source, is_dir=False) if self.upper is None else None
        if own is not None:  # known by its layer's numbers: an overlay shows another device
            source_path, info = own, os.lstat(own)
        self._copy_file(source_path, target_path, info)

    def _match(self, inner: str, above: _Matches) -> tuple[bool, bool, _Matches]:
        """Return whether the entry is wanted, whether a pattern excludes it, and what follows."""
        if not inner:
            return True, False, above
        wanted, excluded = True, False
        include: ParentMatches = ()
        exclude: ParentMatches = ()
        if self._include is not None:
            wanted, include = self._include.match_below(inner, above.include)
        if self._exclude is not None:
            excluded, exclude = self._exclude.match_below(inner, above.exclude)
        return wanted and not excluded, excluded, _Matches(include, exclude)

    def _can_take_back(self) -> bool:
        return self._exclude is not None and self._exclude.has_exclusions

    def _must_replace(self, source: os.stat_result, target: os.stat_result) -> bool:
        both_dirs = stat.S_ISDIR(source.st_mode) and stat.S_ISDIR(target.st_mode)
        return self.options.always_replace and not both_dirs

    def _copy_folder(
        self,
        source: str,
        inner: str,
        target: str,
        existing: os.stat_result | None,
        overwrite: bool,  # noqa: FBT001
        wanted: bool,  # noqa: FBT001
        excluded: bool,  # noqa: FBT001
        matches: _Matches,
    ) -> None:
        if wanted and existing is None and self._is_simple:
            if self.upper is None:
                self._copy_fresh(source, inner, _join(self.target, target), matches, own=None)
                return
            if self._can_queue(target):
                self._queue_fresh(source, inner, target, matches)
                return
        source_path, target_path = self._source_path(source), _join(self.target, target)
        created = self._make_folder(source_path, target_path, overwrite) if wanted else False
        folder = _Folder(source_path, target_path, wanted)
        self._waiting.append(folder)
        if not excluded or self._can_take_back():
            for name in sorted(os.listdir(source_path), key=os.fsencode):
                self._copy(
                    _join(source, name),
                    f"{inner}/{name}" if inner else name,
                    _join(target, name),
                    overwrite=True,
                    matches=matches,
                )
        self._waiting.pop()
        if wanted and (created or overwrite):
            self._queue_or_do(target, lambda path: self._copy_attributes(source_path, path))
        elif wanted and existing is not None:
            mtime = self.options.mtime_ns
            mtime = os.lstat(source_path).st_mtime_ns if mtime is None else mtime
            self._queue_or_do(target, lambda path: _set_mtime(path, mtime))

    @property
    def _is_simple(self) -> bool:
        """Whether a wanted folder has only wanted things in it, or plainly excluded ones."""
        return self._include is None and not self._can_take_back()

    def _make_folder(self, source: str, target: str, overwrite: bool) -> bool:  # noqa: FBT001
        mode = stat.S_IMODE(os.stat(source).st_mode)
        existing = _lstat_or_none(target)
        if existing is None:
            os.mkdir(target, mode)
            return True
        if not stat.S_ISDIR(existing.st_mode):
            raise FileOpError(f"cannot copy to non-directory: {inside(self.target, target)}")
        if overwrite:
            os.chmod(target, mode)
        return False

    def _make_waiting(self) -> None:
        """Make the folders above a wanted entry that no pattern asked for by themselves."""
        for folder in self._waiting:
            if not folder.is_made:
                if self._make_folder(folder.source, folder.target, overwrite=True):
                    self._copy_attributes(folder.source, folder.target)
                folder.is_made = True

    def _wanted_attributes(self, info: os.stat_result) -> Attributes:
        if self._fixed is not None:
            return self._fixed
        assert self.options.mode_change is not None
        is_dir = stat.S_ISDIR(info.st_mode)
        mode = self.options.mode_change.apply(info.st_mode, is_dir=is_dir)
        return Attributes(self.options.owner, mode, self.options.mtime_ns)

    def _copy_attributes(self, source: str, target: str) -> None:
        wanted = self._wanted_attributes(os.lstat(source))
        self.linker.copy_attributes(source, target, wanted)

    def _copy_file(self, source: str, target: str, info: os.stat_result) -> None:
        if stat.S_ISLNK(info.st_mode):
            wanted = Attributes(self.options.owner, None, self.options.mtime_ns)
        else:
            wanted = self._wanted_attributes(info)
        self.linker.copy(source, target, wanted, info, layer=self.source.layer_of(source))

    # -- direct writing ------------------------------------------------------------------

    def _can_queue(self, target: str) -> bool:
        """Return whether ``target``, which the tree does not have, may be written directly.

        It must have left no trace in the upper folder (a whiteout would have to become an opaque
        folder), and its parent must be there: touching a parent brings it up.
        """
        if self.upper is None or self.may_meet or not target:
            return False
        if os.path.lexists(_join(self.upper, target)):
            return False
        self._bring_up(os.path.dirname(target))
        return True

    def _bring_up(self, folder: str) -> None:
        assert self.upper is not None
        if not os.path.isdir(_join(self.upper, folder)):
            path = _join(self.target, folder)
            times = os.stat(path)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    def _queue_or_do(self, target: str, write: Callable[[str], None]) -> None:
        """Do the last touch of a folder: now, or behind what was queued for inside it."""
        if self.upper is None or not self._queue:
            write(_join(self.target, target))
            return
        self._bring_up(target)
        path = _join(self.upper, target)
        self._queue.append(lambda: write(path))

    def _queue_file(self, source: str, target: str) -> None:
        assert self.upper is not None
        path = _join(self.upper, target)
        self._queue.append(lambda: self._copy_file(source, path, os.lstat(source)))

    def _queue_fresh(self, source: str, inner: str, target: str, matches: _Matches) -> None:
        assert self.upper is not None
        path = _join(self.upper, target)
        self._queue.append(lambda: self._copy_fresh(source, inner, path, matches, own=None))

    def _copy_fresh(
        self, source: str, inner: str, target: str, matches: _Matches, *, own: str | None
    ) -> None:
        """Copy a folder to where nothing is; ``own`` is its place in the one layer that has it."""
        own = own or self.source.own_path(source, is_dir=True)
        folder = own or self._source_path(source)
        os.mkdir(target, 0o700)
        with os.scandir(folder) as found:
            entries = list(found)
        # Trees may be deeper than the number of files that we may have open: none is open below.
        below: list[tuple[os.DirEntry[str], str, _Matches]] = []
        with ExitStack() as stack:
            folders = self._folder_pair(stack, own, target) if own else None
            for entry in entries:
                path, within = "", matches
                if self._exclude is not None:
                    path = f"{inner}/{entry.name}" if inner else entry.name
                    wanted, _, within = self._match(path, matches)
                    if not wanted:
                        continue
                if entry.is_dir(follow_symlinks=False):
                    below.append((entry, path, within))
                else:
                    self._copy_fresh_file(entry, source, target, folders)
        for entry, path, within in below:
            child, place = _join(source, entry.name), _join(target, entry.name)
            self._copy_fresh(child, path, place, within, own=entry.path if own else None)
        self._copy_attributes(folder, target)

    def _copy_fresh_file(
        self, entry: os.DirEntry[str], source: str, target: str, folders: FolderPair | None
    ) -> None:
        info = entry.stat(follow_symlinks=False)
        if folders is None:
            path = self.source.own_path(_join(source, entry.name), is_dir=False)
            if path is not None:
                info = os.lstat(path)
            self._copy_file(path or entry.path, _join(target, entry.name), info)
        elif self._fixed is not None and stat.S_ISREG(info.st_mode):
            self.linker.copy_file(entry.name, info, folders, self._fixed)
        elif not is_whiteout(info):
            self._copy_file(entry.path, _join(target, entry.name), info)

    def _folder_pair(self, stack: ExitStack, source: str, target: str) -> FolderPair:
        """Open two folders until the end of ``stack``."""
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        source_fd = os.open(source, flags)
        stack.callback(os.close, source_fd)
        target_fd = os.open(target, flags)
        stack.callback(os.close, target_fd)
        return FolderPair(source, target, source_fd, target_fd, self.source.layer_of(source))


def make_dirs(
    root_fd: int,
    relative: str,
    *,
    mode: int,
    owner: tuple[int, int] | None,
    mtime_ns: int | None,
) -> list[str]:
    """Make a resolved folder with all its parents; return those that were made, outermost first.

    Each gets its time before the next is made in it, so only the last keeps it: BuildKit's
    images show that. A copy sets the times of all once more (``_restore_times``).

    Raises:
        FileOpError: something on the way is not a folder.
    """
    made: list[str] = []
    place = ""
    for part in relative.split("/") if relative else ():
        place = _join(place, part)
        try:
            os.mkdir(place, mode, dir_fd=root_fd)
        except FileExistsError:
            info = os.stat(place, dir_fd=root_fd, follow_symlinks=False)
            if not stat.S_ISDIR(info.st_mode):
                raise FileOpError(f"mkdir /{place}: not a directory", path=place) from None
            continue
        os.chmod(place, mode, dir_fd=root_fd)
        if owner is not None:
            os.chown(place, *owner, dir_fd=root_fd, follow_symlinks=False)
        if mtime_ns is not None:
            os.utime(place, ns=(mtime_ns, mtime_ns), dir_fd=root_fd, follow_symlinks=False)
        made.append(place)
    return made


def _resolve(root_fd: int, path: str, *, follow_last: bool = True) -> str:
    try:
        return os.fsdecode(rootpath.resolve(root_fd, os.fsencode(path), follow_last=follow_last))
    except OSError as exc:
        raise from_os_error("lstat", path, exc) from exc


def _join(folder: str, name: str) -> str:
    if not folder:
        return name
    return f"{folder}/{name}" if name else folder


def _lstat_or_none(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


def _stat_or_none(path: str) -> os.stat_result | None:
    """Return the status of a resolved path, which is no link."""
    return _lstat_or_none(path)


def _remove(path: str, info: os.stat_result) -> None:
    if stat.S_ISDIR(info.st_mode):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def _set_mtime(path: str, mtime_ns: int) -> None:
    os.utime(path, ns=(mtime_ns, mtime_ns), follow_symlinks=False)
