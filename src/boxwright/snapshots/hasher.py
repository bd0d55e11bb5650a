"""Computing content digests: a tree of known digests, and where it says nothing, the files."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from boxwright.errors import BoxwrightError, Code
from boxwright.snapshots.content_tree import (
    FILE,
    FOLDER,
    SYMLINK,
    ContentTree,
    TooManyLinksError,
    TreeNode,
    clean,
    pack_stat,
)
from boxwright.snapshots.tarsum import header, is_hashed_xattr

_CHUNK = 1 << 20
_SMALL = 64 << 10

R = TypeVar("R")


class ChecksumError(BoxwrightError):
    """A path whose content digest can't be computed.

    Args:
        ref_id: The snapshot.
        path: The path asked for, as the user wrote it.
        reason: ``not found``, ``too many links`` …
    """

    code = Code.SOURCE_NOT_FOUND

    def __init__(self, ref_id: str, path: str, reason: str = "not found") -> None:
        # The wording is upstream's: front ends and users look for it.
        super().__init__(
            f'failed to calculate checksum of ref {ref_id}: "{path}": {reason}',
            hint="check the path, and that .dockerignore does not exclude it"
            if reason == "not found"
            else "",
        )
        self.ref_id = ref_id
        self.path = path
        self.reason = reason


class EmptyTreeError(ChecksumError):
    """A path in a tree that has none; there is no snapshot to name."""

    def __init__(self, path: str) -> None:
        super().__init__("scratch", path)
        self.brief = f"lstat {path}: no such file or directory"


class UnreadError(Exception):
    """Something has to be read, and nothing is mounted."""


class Hasher:
    """One computation over a tree; fills in what it reads. Blocks."""

    def __init__(self, ref_id: str, tree: ContentTree, root: Path | None) -> None:
        self._ref_id = ref_id
        self._tree = tree
        self._root = None if root is None else os.fsencode(root)

    # -- reading ------------------------------------------------------------------------

    def retrying(self, look_up: Callable[[], R]) -> R:
        """Repeat a look-up, reading each folder that it misses."""
        while True:
            try:
                return look_up()
            except LookupError as error:
                self.scan(error.args[0])

    def scan(self, path: bytes) -> None:
        """Read the names in one folder."""
        node = self._tree.get(path)
        assert node is not None
        if self._root is None:
            raise UnreadError
        children: dict[bytes, TreeNode] = {}
        with os.scandir(self._root + path or b"/") as entries:
            for entry in entries:
                if entry.is_symlink():
                    child = TreeNode(SYMLINK, node.owner)
                    child.link = os.readlink(entry.path)
                elif entry.is_dir(follow_symlinks=False):
                    child = TreeNode(FOLDER, node.owner)
                else:
                    child = TreeNode(FILE, node.owner)
                children[entry.name] = child
        node.children = children
        self._tree.is_dirty = True

    def own_digest(self, path: bytes, node: TreeNode) -> bytes:
        """Return the digest of one entry; of a folder, of its metadata."""
        if node.digest is None:
            if self._root is None:
                raise UnreadError
            node.digest, node.stat = _hash_entry((self._root + path) or b"/")
            self._tree.is_dirty = True
        return node.digest

    def _whole_digest(self, path: bytes, node: TreeNode) -> bytes:
        """Return the digest of an entry with everything in it; iterative, trees may be deep."""
        if node.kind != FOLDER:
            return self.own_digest(path, node)
        if node.content is not None:
            return node.content
        top = node
        stack = [(path, top)]
        while stack:
            here, folder = stack[-1]
            if folder.children is None:
                self.scan(here)
            children = folder.children or {}
            pending = [
                (here + b"/" + name, child)
                for name, child in children.items()
                if child.kind == FOLDER and child.content is None
            ]
            if pending:
                stack.extend(pending)
                continue
            stack.pop()
            if folder.content is None:
                folder.content = self._combine(here, folder, children)
                self._tree.is_dirty = True
        assert top.content is not None
        return top.content

    def _combine(self, path: bytes, folder: TreeNode, children: dict[bytes, TreeNode]) -> bytes:
        parts = [b"\0", digest_text(self.own_digest(path, folder))]
        for name in sorted(children):
            child = children[name]
            digest = child.content if child.kind == FOLDER else child.digest
            if digest is None:
                digest = self.own_digest(path + b"/" + name, child)
            parts += (b"\0", name, digest_text(digest))
        return hashlib.sha256(b"".join(parts)).digest()

    @property
    def root(self) -> TreeNode:
        """The tree's root."""
        return self._tree.root

    def fail(self, path: str) -> ChecksumError:
        """Return the error for a missing path."""
        return ChecksumError(self._ref_id, path)

    def resolve(self, path: bytes, *, follow_last: bool) -> tuple[bytes, TreeNode | None]:
        """Follow links, reading the folders on the way; see :meth:`ContentTree.resolve`."""
        try:
            return self.retrying(lambda: self._tree.resolve(path, follow_last=follow_last))
        except TooManyLinksError as error:
            raise ChecksumError(self._ref_id, os.fsdecode(path), "too many links") from error

    def whole(self, path: bytes, *, follow_last: bool) -> bytes:
        """Return the digest of a path with all below it.

        Raises:
            ChecksumError: the path does not exist.
        """
        path = clean(path)
        where, node = self.resolve(path, follow_last=follow_last)
        if node is None:
            raise ChecksumError(self._ref_id, os.fsdecode(path) or "/")
        return self._whole_digest(where, node)


def hash_file(path: bytes) -> bytes:
    """Return the 32 byte digest of one entry: its metadata, and of a regular file its content.

    Numbers of devices count as zero, as upstream's scanner has it (they do count where a client
    sent them).

    Raises:
        OSError: it can't be read.
    """
    return _hash_entry(path)[0]


def _hash_entry(path: bytes) -> tuple[bytes, bytes]:
    """Return the digest of an entry, and the part of its metadata that users know."""
    info = os.lstat(path)
    mode = info.st_mode
    kind = stat.S_IFMT(mode)
    link = os.readlink(path) if kind == stat.S_IFLNK else b""
    names = os.listxattr(path, follow_symlinks=False)
    xattrs = _read_xattrs(path, names) if names else None
    digest = hashlib.sha256(
        header(
            mode,
            info.st_uid,
            info.st_gid,
            info.st_size,
            linkname=link,
            xattrs=xattrs,
        )
    )
    if kind == stat.S_IFREG and info.st_size:
        _feed(digest, path, info.st_size)
    return digest.digest(), pack_stat(mode, info.st_uid, info.st_gid, info.st_size)


def _feed(digest: hashlib._Hash, path: bytes, size: int) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if size <= _SMALL:
            while data := os.read(fd, _SMALL):
                digest.update(data)
                if len(data) < _SMALL:
                    break
            return
        buffer = memoryview(bytearray(min(size, _CHUNK)))
        with open(fd, "rb", buffering=0, closefd=False) as file:
            while count := file.readinto(buffer):
                digest.update(buffer[:count])
    finally:
        os.close(fd)


def _read_xattrs(path: bytes, names: list[str]) -> dict[str, bytes]:
    found = {}
    for name in names:
        if is_hashed_xattr(name):
            try:
                found[name] = os.getxattr(path, name, follow_symlinks=False)
            except OSError:
                continue  # as upstream: unreadable ones don't count
    return found


def digest_text(digest: bytes) -> bytes:
    """Return the text form under which a digest enters another one."""
    return b"sha256:" + digest.hex().encode()
