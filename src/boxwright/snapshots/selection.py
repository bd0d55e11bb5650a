"""Which paths of a tree a copy takes, and the digest over exactly these.

Order and form are upstream's: folders stand for their metadata alone, a folder that is not taken
itself comes before the first thing taken in it, and paths are hashed as the user wrote them
even where they run through links.
"""

from __future__ import annotations

import hashlib
import os
import posixpath

from boxwright.core.dataclass import dataclass
from boxwright.fsutil.patterns import ParentMatches, PatternMatcher
from boxwright.snapshots.content_tree import FOLDER, SYMLINK, TreeNode, clean
from boxwright.snapshots.glob import Glob
from boxwright.snapshots.hasher import Hasher, digest_text


@dataclass(frozen=True, slots=True)
class Selection:
    """What of a snapshot is hashed (upstream's ChecksumOpts).

    Attributes:
        follow_links: Resolve a link at the end of the path, or a link that is selected itself.
        wildcard: ``path`` may hold ``*``, ``?`` and ``[…]``.
        include: Patterns of what counts below the path; empty means everything.
        exclude: Patterns of what does not.
        required: Paths below which something must have been selected.
    """

    follow_links: bool = False
    wildcard: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    required: tuple[str, ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether it selects one path with all below it."""
        return not (self.wildcard or self.include or self.exclude)


def selection_digest(hasher: Hasher, path: bytes, selection: Selection) -> bytes:
    """Return the 32 byte digest of what ``selection`` takes at ``path``.

    Raises:
        ChecksumError: a plain or required path is missing.
        PatternError: a pattern is malformed.
    """
    if selection.is_plain:
        return hasher.whole(path, follow_last=selection.follow_links)
    selector = _Selector(hasher, path, selection)
    included = selector.run()
    for item in included:
        if item.follow_links and item.node.kind == SYMLINK:
            item.digest = hasher.whole(item.path, follow_last=True)
    if not included:
        return hashlib.sha256().digest()
    if len(included) == 1 and _base(path) == _base(included[0].path):
        return _digest_of(hasher, included[0])
    prefix = selector.prefix
    result = hashlib.sha256()
    for item in included:
        key = item.path.removeprefix(prefix).replace(b"/", b"\0") or b"\0"
        result.update(key + digest_text(_digest_of(hasher, item)))
    return result.digest()


def selected_entries(
    hasher: Hasher, path: bytes, selection: Selection
) -> list[tuple[bytes, TreeNode]]:
    """Return the entries that :func:`selection_digest` is made of, with their paths in the tree.

    Of a plain selection it is one entry, with all that is in it.

    Raises:
        ChecksumError: a plain or required path is missing.
        UnreadError: some of it was not read yet.
    """
    if not selection.is_plain:
        return [
            (each.path_in_tree, each.node) for each in _Selector(hasher, path, selection).run()
        ]
    where, node = hasher.resolve(clean(path), follow_last=selection.follow_links)
    if node is None:
        raise hasher.fail(os.fsdecode(path))
    return [(where, node)]


@dataclass(slots=True)
class _Included:
    path: bytes
    path_in_tree: bytes
    node: TreeNode
    follow_links: bool
    include_info: ParentMatches = ()
    exclude_info: ParentMatches = ()
    is_included: bool = False
    digest: bytes | None = None


def _digest_of(hasher: Hasher, item: _Included) -> bytes:
    return item.digest or hasher.own_digest(item.path_in_tree, item.node)


class _Selector:
    """Lists what a wildcard and patterns select, in the order in which upstream hashes it."""

    def __init__(self, hasher: Hasher, path: bytes, selection: Selection) -> None:
        self._hasher = hasher
        self._selection = selection
        self._skips_own_header = path.endswith(b"/")
        self._path = clean(path)
        self._include = PatternMatcher(selection.include) if selection.include else None
        self._exclude = PatternMatcher(selection.exclude) if selection.exclude else None
        self._glob = Glob(self._path) if selection.wildcard and self._path else None
        self._last_matched = b""
        self._parents: list[_Included] = []
        self._found: list[_Included] = []
        self.prefix = b""

    def run(self) -> list[_Included]:
        """Return the selected entries; folders stand for their metadata alone.

        Raises:
            ChecksumError: a required path is missing.
        """
        where, node = self._start()
        if node is not None:
            self._walk(where, node)
        for required in self._selection.required:
            raw = os.fsencode(required)
            if not any(item.path.startswith(raw) for item in self._found):
                raise self._hasher.fail(required)
        return self._found

    def _start(self) -> tuple[bytes, TreeNode | None]:
        """Resolve the part of the path before any wildcard."""
        if self._glob is None:
            self.prefix = self._path
            return self._hasher.resolve(self._path, follow_last=False)
        fixed, has_rest = self._glob.fixed_part
        if not fixed:
            return b"", self._hasher.root
        self.prefix = fixed
        return self._hasher.resolve(fixed, follow_last=has_rest)

    def _walk(self, where: bytes, start: TreeNode) -> None:
        # Paths are matched as the user wrote them: resolved prefix out, written prefix in.
        stack = [(where, self.prefix, start)]
        while stack:
            here, shown, node = stack.pop()
            if not self._visit(here, shown, node) or node.kind != FOLDER:
                continue
            if node.children is None:
                self._hasher.scan(here)
            children = node.children or {}
            for name in sorted(children, reverse=True):
                tail = b"/" + name
                stack.append((here + tail, shown + tail, children[name]))

    def _visit(self, here: bytes, shown: bytes, node: TreeNode) -> bool:
        """Take an entry or not; return whether to look at what is below it."""
        while self._parents and not shown.startswith(self._parents[-1].path + b"/"):
            self._parents.pop()
        parent = self._parents[-1] if self._parents else None
        if node.kind == FOLDER and shown == self._path and self._skips_own_header:
            if self._glob is not None and self._glob.matches(shown):
                self._last_matched = shown
            return True
        item = _Included(shown, here, node, self._selection.follow_links and parent is None)
        base = self._path
        if self._glob is not None:
            base = self._last_matched
            if not base or not shown.startswith(base + b"/"):
                if not self._glob.matches(shown):
                    return self._glob.may_match_below(shown)
                base = self._last_matched = shown
        elif self._selection.wildcard:
            base = b""
        candidate = os.fsdecode((shown + b"/").removeprefix(base + b"/").removesuffix(b"/"))
        taken = self._is_taken(candidate, item, parent)
        if taken:
            for above in self._parents:
                if not above.is_included:
                    above.is_included = True
                    self._found.append(above)
            item.is_included = True
            self._found.append(item)
        if node.kind == FOLDER:
            self._parents.append(item)
        return taken or self._may_take_below(candidate)

    def _is_taken(self, candidate: str, item: _Included, parent: _Included | None) -> bool:
        if self._include is not None:
            known = parent.include_info if parent is not None else ()
            matched, item.include_info = self._include.match_below(candidate, known)
            if not matched:
                return False
        if self._exclude is not None:
            known = parent.exclude_info if parent is not None else ()
            matched, item.exclude_info = self._exclude.match_below(candidate, known)
            if matched:
                return False
        return True

    def _may_take_below(self, candidate: str) -> bool:
        """Return whether a folder that is not taken itself may hold something that is."""
        if not candidate:
            return True
        if self._include is not None and not self._include.matches(candidate):
            return self._include.can_include_below(candidate)
        return self._exclude is None or self._exclude.can_take_back_below(candidate)


def _base(path: bytes) -> bytes:
    """Return the last part of a path as Go's ``path.Base``: of nothing a dot."""
    if not path:
        return b"."
    stripped = path.rstrip(b"/")
    return posixpath.basename(stripped) if stripped else b"/"
