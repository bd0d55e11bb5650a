"""Making layer folders: unpacking blobs and rewriting stacks that overlayfs can't show as is.

Everything here blocks and runs in a worker. A tree is made under a temporary name in its
record's folder and renamed when it is whole; a crash leaves the temporary one, which the next
open removes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from boxwright.core.digest import CANONICAL, Digest
from boxwright.fsutil.unpack import apply_layer
from boxwright.snapshots.backend import OPAQUE_XATTRS, is_opaque, is_whiteout
from boxwright.snapshots.errors import LayerMismatchError, LayerMissingError
from boxwright.snapshots.linkcopy import IsTaken, LinkCopier
from boxwright.store import BlobNotFoundError, Store, disk_errors, trace
from boxwright.store.trash import remove_tree


def make_root(path: Path, like: Path | None) -> None:
    """Make the root folder of a layer with owner and mode of the root below it.

    Raises:
        DiskFullError: no space left.
    """
    with disk_errors(path):
        path.mkdir(parents=True)
        path.parent.chmod(0o700)
        if like is None:
            path.chmod(0o755)
            return
        info = like.stat()
        os.chown(path, info.st_uid, info.st_gid)
        path.chmod(stat.S_IMODE(info.st_mode))


def unpack_blob(
    store: Store,
    blob: Digest,
    diff_id: Digest | None,
    folder: Path,
    below: Sequence[Path],
    *,
    userxattr: bool,
) -> Digest:
    """Unpack a layer blob into ``folder/fs`` and return its diff id.

    Args:
        store: Where the blob lies.
        blob: The compressed layer.
        diff_id: The digest that its uncompressed form must have, if known.
        folder: The record's folder.
        below: The layers below, base first.
        userxattr: Mark opaque folders by ``user.`` attributes.

    Raises:
        LayerMissingError: the blob is not in the store.
        LayerMismatchError: the content is not that of ``diff_id``.
        DiskFullError: no space left.
    """
    staged, target = folder / "fs.new", folder / "fs"
    remove_tree(staged)
    make_root(staged, below[-1] if below else None)
    try:
        try:
            stream = store.blobs.open(blob)
        except BlobNotFoundError as error:
            raise LayerMissingError(blob) from error
        with stream, disk_errors(target):
            applied = apply_layer(
                stream,
                staged,
                whiteouts="overlay" if below else "plain",
                userxattr=userxattr,
                parents=list(reversed(below)),
                algorithm=diff_id.algorithm if diff_id else CANONICAL,
            )
        if diff_id is not None and applied.diff_id != diff_id:
            raise LayerMismatchError(diff_id, applied.diff_id)
    except BaseException:
        remove_tree(staged)
        raise
    trace.point("snapshot-unpacked")
    remove_tree(target)  # of a crash between the rename and the row
    staged.rename(target)
    trace.point("snapshot-renamed")
    return applied.diff_id


def has_marks(layer: Path) -> bool:
    """Return whether a layer folder holds any whiteout or opaque folder."""
    pending = [str(layer)]
    while pending:
        folder = pending.pop()
        if is_opaque(folder):
            return True
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                elif not entry.is_file(follow_symlinks=False) and is_whiteout(
                    entry.stat(follow_symlinks=False)
                ):
                    return True
    return False


def flatten(
    layers: Sequence[Path],
    below: Path | None,
    folder: Path,
    *,
    userxattr: bool,
    taken: IsTaken | None = None,
) -> None:
    """Rewrite ``layers`` as one layer over the tree ``below``, in ``folder/view``.

    Whiteouts and opaque marks stay only where ``below`` has something to hide; files are
    hard-linked where that is safe.

    Args:
        layers: Layer folders.
        below: The tree.
        folder: Of the snapshot.
        userxattr: Whether marks are attributes of users.
        taken: Tells which files are below already.

    Raises:
        DiskFullError: no space left.
    """
    staged, target = folder / "view.new", folder / "view"
    remove_tree(staged)
    with disk_errors(target):
        folder.mkdir(mode=0o700, exist_ok=True)
        make_root(staged, layers[-1] if layers else below)
        opaque = OPAQUE_XATTRS[1] if userxattr else OPAQUE_XATTRS[0]
        copier = LinkCopier()
        copier.taken = taken
        for place, layer in enumerate(layers):
            _Flattener(layer, below, staged, opaque, copier, place).run()
    remove_tree(target)
    staged.rename(target)


def copy_stack(layers: Sequence[Path], target: Path, *, link: bool) -> None:
    """Put the tree that ``layers`` stand for, base first, into the empty folder ``target``.

    Args:
        layers: Layer folders.
        target: Where to.
        link: Hard-link files: the copy will only be read.

    Raises:
        DiskFullError: no space left.
    """
    with disk_errors(target):
        for layer in layers:
            _Flattener(layer, None, target, OPAQUE_XATTRS[0], LinkCopier(sealed=link)).run()


class _Flattener:
    """Applies one layer folder to the tree that is being made."""

    def __init__(
        self,
        layer: Path,
        below: Path | None,
        target: Path,
        opaque: str,
        copier: LinkCopier,
        place: int = 0,
    ) -> None:
        self._layer = layer
        self._below = below
        self._target = target
        self._opaque = opaque
        self._copier = copier
        self._place = place

    def run(self) -> None:
        pending = [""]
        folders = []
        while pending:
            relative = pending.pop()
            folders.append(relative)
            with os.scandir(self._layer / relative) as entries:
                listing = sorted(entries, key=lambda entry: entry.name)
            for entry in listing:
                path = os.path.join(relative, entry.name)
                info = entry.stat(follow_symlinks=False)
                if is_whiteout(info):
                    self._hide(path)
                elif stat.S_ISDIR(info.st_mode):
                    self._folder(path)
                    pending.append(path)
                else:
                    self._replace(path)
                    here, there = self._layer / path, self._target / path
                    self._copier.copy(here, there, info=info, layer=self._place)
        for relative in reversed(folders):
            self._copier.copy_attributes(self._layer / relative, self._target / relative)

    def _visible_below(self, path: str) -> bool:
        """Return whether the lower tree would show through at ``path``."""
        if self._below is None or not os.path.lexists(self._below / path):
            return False
        parent = os.path.dirname(path)
        while True:
            if is_opaque(self._target / parent):
                return False
            if not parent:
                return True
            parent = os.path.dirname(parent)

    def _replace(self, path: str) -> None:
        target = self._target / path
        if target.is_dir() and not target.is_symlink():
            remove_tree(target)
        elif os.path.lexists(target):
            target.unlink()

    def _hide(self, path: str) -> None:
        self._replace(path)
        if self._visible_below(path):
            os.mknod(self._target / path, stat.S_IFCHR, 0)

    def _folder(self, path: str) -> None:
        source, target = self._layer / path, self._target / path
        hides = is_opaque(source)
        if os.path.lexists(target) and (hides or not target.is_dir() or target.is_symlink()):
            # What was here, a whiteout or any file, hid the folders below: so must this.
            hides = hides or target.is_symlink() or not target.is_dir()
            self._replace(path)
        if target.exists() and not hides:
            return
        target.mkdir(mode=0o700)
        if hides and self._visible_below(path):
            os.setxattr(target, self._opaque, b"y")
