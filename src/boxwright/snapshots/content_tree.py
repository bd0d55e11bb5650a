"""The tree of content digests of one snapshot: what is known, no I/O.

Every entry has a digest of its own (of a folder: of its metadata, the *header*); a folder has
besides a digest of all it holds. Digests that are not known yet are ``None``, and a folder
whose entries are not known yet has ``children`` ``None``.

Trees share nodes: ``fork`` is O(1), and a changed fork copies only the folders on the way. A
shared node may still gain digests that follow from what it holds.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterator

FILE = 0
FOLDER = 1
SYMLINK = 2

_EMPTY = hashlib.sha256().digest()
MAX_LINKS = 255


_STAT = struct.Struct(">IIIQ")


def pack_stat(mode: int, uid: int, gid: int, size: int) -> bytes:
    """Return mode bits, owner and size in bytes in the form of ``TreeNode.stat``."""
    return _STAT.pack(mode, uid, gid, size)


def unpack_stat(packed: bytes) -> tuple[int, int, int, int]:
    """Return what :func:`pack_stat` was given."""
    mode, uid, gid, size = _STAT.unpack(packed)
    return mode, uid, gid, size


class TooManyLinksError(Exception):
    """A path runs through more symbolic links than allowed; the caller names the path."""


class TreeNode:
    """One entry.

    Attributes:
        kind: ``FILE`` (anything that is neither of the others), ``FOLDER`` or ``SYMLINK``.
        digest: 32 bytes; of a folder, of its metadata.
        content: 32 bytes; of a folder with everything in it.
        link: The target of a symbolic link.
        children: Of a folder, by name.
        stat: What ``pack_stat`` made where the entry was read from a file; part of the digest
            already, kept so that it can be told.
        owner: The tree that may change it.
    """

    __slots__ = ("children", "content", "digest", "kind", "link", "owner", "stat")

    def __init__(self, kind: int, owner: object, digest: bytes | None = None) -> None:
        self.kind = kind
        self.owner = owner
        self.digest = digest
        self.content: bytes | None = None
        self.link = b""
        self.stat = b""
        self.children: dict[bytes, TreeNode] | None = None

    def copy_for(self, owner: object) -> TreeNode:
        """Return a copy that ``owner`` may change."""
        new = TreeNode(self.kind, owner, self.digest)
        new.link = self.link
        new.stat = self.stat
        new.children = None if self.children is None else dict(self.children)
        return new


class ContentTree:
    """Digests by path. Paths are absolute bytes without a final slash; the root is empty."""

    def __init__(self, root: TreeNode | None = None) -> None:
        self._token = object()
        self.root = root or TreeNode(FOLDER, self._token)
        self.is_dirty = False

    @classmethod
    def of_synced(cls) -> ContentTree:
        """Return an empty tree for files that a client sends.

        A client never sends its root folder, so the root's metadata counts as nothing, and
        what was not sent does not exist.
        """
        tree = cls()
        tree.root.digest = _EMPTY
        tree.root.children = {}
        return tree

    def fork(self) -> ContentTree:
        """Return a tree that starts as this one; neither sees the other's later changes."""
        # From now on neither may change the shared nodes in place.
        self._token = object()
        return ContentTree(self.root)

    # -- look-up ------------------------------------------------------------------------

    def get(self, path: bytes) -> TreeNode | None:
        """Return the entry at exactly this path, links not followed.

        Raises:
            LookupError: a folder on the way is not known yet; the argument is its path.
        """
        node = self.root
        if not path:
            return node
        start = 1
        while True:
            end = path.find(b"/", start)
            if node.kind != FOLDER:
                return None
            if node.children is None:
                raise LookupError(path[: start - 1])
            found = node.children.get(path[start:] if end < 0 else path[start:end])
            if found is None or end < 0:
                return found
            node, start = found, end + 1

    def resolve(self, path: bytes, *, follow_last: bool) -> tuple[bytes, TreeNode | None]:
        """Follow symbolic links as in a chroot; a missing part of a path is taken as written.

        Args:
            path: Absolute and clean, the root empty.
            follow_last: Also resolve a link at the very end.

        Returns:
            The resolved path and what is there.

        Raises:
            LookupError: a folder on the way is not known yet; the argument is its path.
            TooManyLinksError: over 255 links.
        """
        found = self.get(path)
        if found is not None and not (follow_last and found.kind == SYMLINK):
            return path, found
        current, rest, links = b"", path[1:], 0
        node: TreeNode | None = self.root
        while rest:
            part, _, rest = rest.partition(b"/")
            current = join(current, part)
            node = self.get(current)
            if node is None or node.kind != SYMLINK:
                continue
            if not follow_last and not rest:
                break
            links += 1
            if links > MAX_LINKS:
                raise TooManyLinksError
            rest = node.link + b"/" + rest
            current = b"" if node.link.startswith(b"/") else current.rpartition(b"/")[0]
        return current, node

    # -- change -------------------------------------------------------------------------

    def set(self, path: bytes, kind: int, digest: bytes | None, link: bytes = b"") -> None:
        """Put an entry; a folder stays filled, any other kind replaces what was below.

        Args:
            path: Its parents are made as needed.
            kind: ``FILE``, ``FOLDER`` or ``SYMLINK``.
            digest: 32 bytes, of a folder of its metadata; ``None`` if to be read later.
            link: The target of a symbolic link.
        """
        if not path:
            return
        folder, name = self._folder_for(path)
        old = folder.get(name)
        new = TreeNode(kind, self._token, digest)
        new.link = link
        if kind == FOLDER:
            keep = old is not None and old.kind == FOLDER and old.children is not None
            new.children = dict(old.children) if keep and old and old.children else {}
        folder[name] = new
        self.is_dirty = True

    def delete(self, path: bytes) -> None:
        """Remove an entry and all below it, if it is there."""
        if path and self.get(path) is not None:
            folder, name = self._folder_for(path)
            folder.pop(name, None)
            self.is_dirty = True

    def _folder_for(self, path: bytes) -> tuple[dict[bytes, TreeNode], bytes]:
        """Return the children of the parent of ``path``, which may now be changed."""
        node = self.root = self._owned(self.root)
        node.content = None
        *parents, name = path[1:].split(b"/")
        for part in parents:
            children = node.children
            assert children is not None
            found = children.get(part)
            if found is None or found.kind != FOLDER:
                found = TreeNode(FOLDER, self._token)
                found.children = {}
            node = children[part] = self._owned(found)
            node.content = None
        if node.children is None:
            node.children = {}
        return node.children, name

    def _owned(self, node: TreeNode) -> TreeNode:
        return node if node.owner is self._token else node.copy_for(self._token)

    # -- storage ------------------------------------------------------------------------

    def encode(self) -> bytes:
        """Return the compact form that :meth:`decode` reads."""
        out: list[bytes] = []
        stack: list[tuple[bytes, TreeNode]] = [(b"", self.root)]
        while stack:
            name, node = stack.pop()
            flags = node.kind
            if node.digest is not None:
                flags |= 4
            if node.content is not None:
                flags |= 8
            if node.children is not None:
                flags |= 16
            if node.stat:
                flags |= 32
            out.append(b"%c%c%b" % (flags, len(name), name))
            out.append(node.digest or b"")
            out.append(node.content or b"")
            out.append(node.stat)
            if node.kind == SYMLINK:
                out.append(len(node.link).to_bytes(4, "big") + node.link)
            if node.children is not None:
                out.append(len(node.children).to_bytes(4, "big"))
                stack.extend(node.children.items())
        # Digests don't become smaller: the form is zlib's for the sake of its checksum.
        return zlib.compress(b"".join(out), 0)

    @classmethod
    def decode(cls, data: bytes) -> ContentTree:
        """Read :meth:`encode`'s form.

        Raises:
            ValueError: it is damaged.
        """
        try:
            return cls(_Decoder(zlib.decompress(data)).run())
        except (zlib.error, IndexError, AttributeError) as error:
            raise ValueError("damaged content tree") from error


class _Decoder:
    """Reads nodes in the order in which ``encode`` takes them off its stack."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._at = 0

    def run(self) -> TreeNode:
        root, count, _ = self._node()
        # Like the encoder's stack, but of folders with children still to come.
        stack = [(root, count)]
        while stack:
            parent, left = stack.pop()
            if not left:
                continue
            stack.append((parent, left - 1))
            node, count, name = self._node()
            parent.children[name] = node  # type: ignore[index]
            if count:
                stack.append((node, count))
        if self._at != len(self._raw):
            raise ValueError("damaged content tree")
        return root

    def _take(self, count: int) -> bytes:
        piece = self._raw[self._at : self._at + count]
        if len(piece) != count:
            raise ValueError("damaged content tree")
        self._at += count
        return piece

    def _node(self) -> tuple[TreeNode, int, bytes]:
        flags, length = self._raw[self._at], self._raw[self._at + 1]
        self._at += 2
        name = self._take(length)
        node = TreeNode(flags & 3, None)
        if flags & 4:
            node.digest = self._take(32)
        if flags & 8:
            node.content = self._take(32)
        if flags & 32:
            node.stat = self._take(_STAT.size)
        if node.kind == SYMLINK:
            node.link = self._take(int.from_bytes(self._take(4), "big"))
        count = 0
        if flags & 16:
            node.children = {}
            count = int.from_bytes(self._take(4), "big")
        return node, count, name


def walk(path: bytes, node: TreeNode) -> Iterator[tuple[bytes, TreeNode]]:
    """Iterate over ``node`` and all below it, folders before their entries, names in order.

    The caller may fill the folder that it was just given, before it goes on.

    Raises:
        LookupError: a folder's entries are not known; the argument is its path.
    """
    stack = [(path, node)]
    while stack:
        here, node = stack.pop()
        yield here, node
        if node.kind == FOLDER:
            if node.children is None:
                raise LookupError(here)
            names = sorted(node.children, reverse=True)
            stack.extend((here + b"/" + name, node.children[name]) for name in names)


def join(folder: bytes, part: bytes) -> bytes:
    """Return ``folder/part``, lexically clean, never above the root."""
    if part in {b"", b"."}:
        return folder
    if part == b"..":
        return folder.rpartition(b"/")[0]
    return folder + b"/" + part


def clean(path: bytes) -> bytes:
    """Return an absolute clean path, the root as the empty one."""
    current = b""
    for part in path.split(b"/"):
        current = join(current, part)
    return current
