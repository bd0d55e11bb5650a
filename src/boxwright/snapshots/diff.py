"""Changes between two trees, in the order in which a layer's archive lists them.

Semantics are those of upstream's differs, so that equal trees give equal archives: entries in
byte order of names, folders before what is in them, a folder without changes of its own is not
listed, a removed folder is one deletion, a whiteout with nothing to hide is left out, and an
opaque folder is compared with what it hides instead of being marked.

Two ways lead there: the upper folder of an overlay lists its changes itself; two whole trees are
compared by size, times, owner, mode and, where times may have been cut to seconds, by content.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from boxwright.core.dataclass import dataclass
from boxwright.snapshots.backend import OPAQUE_XATTRS, is_opaque, is_whiteout
from boxwright.snapshots.linkcopy import LinkCopier
from boxwright.snapshots.refs import LayerTree

Kind = Literal["add", "modify", "delete", "unmodified"]

_SECOND_NS = 1_000_000_000
_CHUNK = 1 << 18


@dataclass(frozen=True, slots=True)
class Change:
    """One change.

    Attributes:
        path: Relative to the root, no leading slash, bytes as the file system has them.
        kind: ``unmodified`` is listed only for files with several links, as a link of it may
            have changed: leave it out unless another link of the same inode is written.
        info: lstat of the new file, ``None`` for a deletion.
        opaque: Always false: what an opaque folder hides is listed as deletions.
    """

    path: bytes
    kind: Kind
    info: os.stat_result | None
    opaque: bool = False


def changes(tree: LayerTree) -> Iterator[Change]:
    """List what a layer changes over the tree below it; blocks, and reads while iterated.

    Args:
        tree: An open layer (``ImmutableRef.layer_tree``).

    Raises:
        OSError: a folder can't be read.
    """
    if tree.lower is None:
        # An image's base layer is unpacked without marks; a comparison may have some.
        yield from _single_walk(os.fsencode(tree.upper))
        return
    yield from _overlay_walk(
        os.fsencode(tree.upper), os.fsencode(tree.lower), os.fsencode(tree.view)
    )


def tree_changes(lower: Path | None, upper: Path | None) -> Iterator[Change]:
    """Compare two whole trees; ``None`` is the empty one.

    Raises:
        OSError: a folder can't be read.
    """
    yield from _double_walk(
        None if lower is None else os.fsencode(lower),
        None if upper is None else os.fsencode(upper),
        b"",
    )


def _listing(folder: bytes) -> list[tuple[bytes, os.stat_result]]:
    with os.scandir(folder) as entries:
        found = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
    found.sort()
    return found


def _lstat(path: bytes) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR}:
            return None
        raise


def _single_walk(root: bytes) -> Iterator[Change]:
    stack = [(b"", iter(_listing(root)))]
    while stack:
        prefix, entries = stack[-1]
        for name, info in entries:
            if is_whiteout(info):
                continue
            path = prefix + name
            yield Change(path, "add", info)
            if stat.S_ISDIR(info.st_mode):
                stack.append((path + b"/", iter(_listing(os.path.join(root, path)))))
                break
        else:
            stack.pop()


def _overlay_walk(upper: bytes, lower: bytes, view: bytes) -> Iterator[Change]:
    # Each level knows whether its folder exists below: if not, everything in it is new.
    stack = [(b"", True, iter(_listing(upper)))]
    while stack:
        prefix, has_lower, entries = stack[-1]
        for name, info in entries:
            path = prefix + name
            below = _lstat(os.path.join(lower, path)) if has_lower else None
            if is_whiteout(info):
                if below is not None:
                    yield Change(path, "delete", None)
                continue
            full = os.path.join(upper, path)
            if below is None:
                yield Change(path, "add", info)
            elif not _same(os.path.join(lower, path), below, full, info):
                yield Change(path, "modify", info)
            if not stat.S_ISDIR(info.st_mode):
                continue
            if below is not None and is_opaque(full):
                hidden = os.path.join(lower, path) if stat.S_ISDIR(below.st_mode) else None
                yield from _double_walk(hidden, os.path.join(view, path), path + b"/")
                continue
            is_folder_below = below is not None and stat.S_ISDIR(below.st_mode)
            stack.append((path + b"/", is_folder_below, iter(_listing(full))))
            break
        else:
            stack.pop()


_Pair = tuple[bytes, os.stat_result | None, os.stat_result | None]


def _paired(lower: bytes | None, upper: bytes | None) -> Iterator[_Pair]:
    left = dict(_listing(lower)) if lower is not None else {}
    right = dict(_listing(upper)) if upper is not None else {}
    for name in sorted(left.keys() | right.keys()):
        yield name, left.get(name), right.get(name)


def _double_walk(lower: bytes | None, upper: bytes | None, start: bytes) -> Iterator[Change]:
    stack = [(start, lower, upper, _paired(lower, upper))]
    while stack:
        prefix, old_folder, new_folder, pairs = stack[-1]
        for name, old, new in pairs:
            path = prefix + name
            if new is None:
                yield Change(path, "delete", None)
                continue
            old_path = os.path.join(old_folder, name) if old_folder is not None and old else None
            new_path = os.path.join(new_folder or b"", name)
            if old is None or old_path is None:
                yield Change(path, "add", new)
            elif not _same(old_path, old, new_path, new):
                yield Change(path, "modify", new)
            elif new.st_nlink > 1 and not stat.S_ISDIR(new.st_mode):
                yield Change(path, "unmodified", new)
            if stat.S_ISDIR(new.st_mode):
                below = old_path if old is not None and stat.S_ISDIR(old.st_mode) else None
                stack.append((path + b"/", below, new_path, _paired(below, new_path)))
                break
        else:
            stack.pop()


def _same(old_path: bytes, old: os.stat_result, new_path: bytes, new: os.stat_result) -> bool:
    """Return whether a file is unchanged, by the rules of containerd's differ."""
    if (old.st_dev, old.st_ino) == (new.st_dev, new.st_ino):
        return True
    if (old.st_mode, old.st_uid, old.st_gid, old.st_rdev) != (
        new.st_mode,
        new.st_uid,
        new.st_gid,
        new.st_rdev,
    ):
        return False
    if _capability(old_path) != _capability(new_path):
        return False
    if stat.S_ISDIR(new.st_mode):
        return True
    if old.st_size != new.st_size or old.st_mtime_ns != new.st_mtime_ns:
        return False
    if new.st_mtime_ns % _SECOND_NS:
        return True
    # Times cut to seconds, as an unpacked archive has them, prove nothing.
    if stat.S_ISLNK(new.st_mode):
        return os.readlink(old_path) == os.readlink(new_path)
    if new.st_size == 0 or not stat.S_ISREG(new.st_mode):
        return True
    return _same_content(old_path, new_path)


def _capability(path: bytes) -> bytes | None:
    try:
        return os.getxattr(path, "security.capability", follow_symlinks=False)
    except OSError as error:
        if error.errno in {errno.ENODATA, errno.ENOTSUP}:
            return None
        raise


def _same_content(old_path: bytes, new_path: bytes) -> bool:
    with open(old_path, "rb", buffering=0) as old, open(new_path, "rb", buffering=0) as new:
        while True:
            left, right = old.read(_CHUNK), new.read(_CHUNK)
            if left != right:
                return False
            if not left:
                return True


def is_pure(tree: LayerTree, upper: Path) -> bool:
    """Return whether a layer's folder holds its changes and nothing else.

    A folder that was only opened for writing, or a file that was changed and changed back, is
    copied into an upper folder too; on another base it would hide what that has there. An opaque
    folder hides whatever is below it.

    Args:
        tree: The layer over what it was made on.
        upper: Its own folder.
    """
    wanted: set[bytes] = set()
    for change in changes(tree):
        if change.kind != "unmodified":
            path = change.path
            while path and path not in wanted:
                wanted.add(path)
                path = os.path.dirname(path)
    count = 0
    pending = [b""]
    root = os.fsencode(upper)
    while pending:
        prefix = pending.pop()
        for name, info in _listing(os.path.join(root, prefix)):
            path = os.path.join(prefix, name)
            count += 1
            if path not in wanted:
                return False
            if stat.S_ISDIR(info.st_mode):
                if is_opaque(os.path.join(root, path)):
                    return False
                pending.append(path)
    return count == len(wanted)


def write_difference(
    lower: Path | None,
    upper: Path | None,
    backing: Sequence[Path],
    target: Path,
    *,
    userxattr: bool,
) -> None:
    """Write what ``upper`` has over ``lower`` into ``target``, as a layer folder.

    See :func:`write_layer`.
    """
    found = tree_changes(lower, upper)
    write_layer(found, lower, upper, backing, target, userxattr=userxattr)


def write_layer(
    found: Iterable[Change],
    lower: Path | None,
    upper: Path | None,
    backing: Sequence[Path],
    target: Path,
    *,
    userxattr: bool,
) -> None:
    """Write changes into ``target``, as a layer folder.

    Args:
        found: The changes of ``upper`` over ``lower``.
        lower: Root of the lower tree.
        upper: Root of the upper tree.
        backing: The layer folders that ``upper`` is a view of, base first: files are linked
            from there, as links don't cross mounts.
        target: An empty folder.
        userxattr: Mark opaque folders by ``user.`` attributes.

    Raises:
        OSError: reading or writing failed.
    """
    copier = LinkCopier()
    out = os.fsencode(target)
    upper_root = os.fsencode(upper) if upper is not None else b""
    layers = [os.fsencode(path) for path in reversed(backing)]
    opaque = OPAQUE_XATTRS[1] if userxattr else OPAQUE_XATTRS[0]
    folders: list[bytes] = []

    def ensure_parents(path: bytes) -> None:
        parent = os.path.dirname(path)
        if parent and not os.path.lexists(os.path.join(out, parent)):
            ensure_parents(parent)
            os.mkdir(os.path.join(out, parent), 0o700)
            folders.append(parent)

    for change in found:
        if change.kind == "unmodified":
            continue
        ensure_parents(change.path)
        destination = os.path.join(out, change.path)
        if change.info is None:
            os.mknod(destination, stat.S_IFCHR, 0)
        elif stat.S_ISDIR(change.info.st_mode):
            os.mkdir(destination, 0o700)
            folders.append(change.path)
            below = _lstat(os.path.join(os.fsencode(lower), change.path)) if lower else None
            if below is not None and not stat.S_ISDIR(below.st_mode):
                os.setxattr(destination, opaque, b"y")
        else:
            copier.copy(_backing_file(layers, upper_root, change), destination)
    for path in reversed(folders):
        copier.copy_attributes(os.path.join(upper_root, path), os.path.join(out, path))


def _backing_file(layers: Sequence[bytes], view: bytes, change: Change) -> bytes:
    """Find the layer file behind a visible one; the uppermost with this path is it."""
    for layer in layers:
        candidate = os.path.join(layer, change.path)
        found = _lstat(candidate)
        if (
            found is not None
            and change.info is not None
            and (found.st_mode, found.st_size, found.st_mtime_ns)
            == (change.info.st_mode, change.info.st_size, change.info.st_mtime_ns)
        ):
            return candidate
    return os.path.join(view, change.path)
