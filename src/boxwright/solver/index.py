"""Which running edges would make the same thing: found by key, so that one can do for both.

Two vertices with different digests may turn out to have one cache key (two clients send the
same context; two stages differ in a comment). The index keeps the keys of all live edges,
linked in the way in which storages link them, and answers with the edge that is already there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from boxwright.core.cacheinfo import CacheInfoLink, root_key
from boxwright.core.dataclass import dataclass, field
from boxwright.solver.cachekey import CacheKey, SelectedKey

if TYPE_CHECKING:
    from boxwright.solver.edge import EdgeNode


_SWEEP_AT = 4096


@dataclass(slots=True)
class _Item:
    node: EdgeNode | None = None
    links: dict[CacheInfoLink, dict[str, None]] = field(default_factory=dict)
    sources: dict[str, None] = field(default_factory=dict)


class EdgeIndex:
    """Live edges by key. Used from the event loop only."""

    def __init__(self) -> None:
        self._items: dict[str, _Item] = {}
        self._of_node: dict[EdgeNode, dict[str, None]] = {}
        self._sequence = 0
        self._sweep_at = _SWEEP_AT

    def __len__(self) -> int:
        """Return the number of keys held."""
        return len(self._items)

    def load_or_store(self, key: CacheKey, node: EdgeNode) -> EdgeNode | None:
        """Return the edge that already stands for ``key``, else make ``node`` stand for it.

        An edge that ignores the cache is never answered for by one that may use it.
        """
        matches = self._matches(key)
        other_id, other = "", None
        for item_id in matches:
            item = self._items.get(item_id)
            if item is not None and item.node is not None and item.node is not node:
                other_id, other = item_id, item.node
        if other is not None and (other.ignores_cache or not node.ignores_cache):
            self._link(other_id, key)
            return other
        item_id = matches[0] if matches else self._new_id()
        self._link(item_id, key).node = node
        self._of_node.setdefault(node, {})[item_id] = None
        return None

    def release(self, node: EdgeNode) -> None:
        """Forget an edge."""
        for item_id in self._of_node.pop(node, {}):
            item = self._items.get(item_id)
            if item is not None and item.node is node:
                item.node = None
        if not self._of_node:
            self._items.clear()
        elif len(self._items) > self._sweep_at:
            self._sweep()

    def _sweep(self) -> None:
        """Drop all keys that lead to no live edge. Keys may lead to each other in circles."""
        useful = {item_id for item_id, item in self._items.items() if item.node is not None}
        pending = list(useful)
        while pending:
            fresh = self._items[pending.pop()].sources.keys() & self._items.keys() - useful
            useful |= fresh
            pending.extend(fresh)
        self._items = {i: item for i, item in self._items.items() if i in useful}
        for item in self._items.values():
            kept = {
                link: {t: None for t in targets if t in useful}
                for link, targets in item.links.items()
            }
            item.links = {link: targets for link, targets in kept.items() if targets}
            item.sources = {i: None for i in item.sources if i in useful}
        self._sweep_at = max(_SWEEP_AT, 2 * len(self._items))

    def _new_id(self) -> str:
        self._sequence += 1
        return f"#{self._sequence}"

    def _link(self, item_id: str, key: CacheKey) -> _Item:
        """Make all keys of all inputs of ``key`` lead to the item."""
        item = self._items.setdefault(item_id, _Item())
        for index, selected in enumerate(key.deps):
            for dep in selected:
                link = _link_of(key, index, dep)
                for source_id in self._ids_of(dep.key):
                    source = self._items.setdefault(source_id, _Item())
                    source.links.setdefault(link, {})[item_id] = None
                    item.sources[source_id] = None
        return item

    def _ids_of(self, key: CacheKey) -> list[str]:
        """Return where a key stands in the index, putting it there if it is new."""
        if not key.index_ids:
            key.index_ids = self._matches(key) or [self._new_id()]
            for item_id in key.index_ids:
                self._link(item_id, key)
        return key.index_ids

    def _matches(self, key: CacheKey) -> list[str]:
        if not key.deps:
            return [root_key(key.digest, key.output)]
        common: dict[str, None] | None = None
        for index, selected in enumerate(key.deps):
            reached: dict[str, None] = {}
            for dep in selected:
                link = _link_of(key, index, dep)
                for source_id in self._ids_of(dep.key):
                    source = self._items.get(source_id)
                    if source is not None:
                        reached.update(source.links.get(link, {}))
            common = reached if common is None else {i: None for i in common if i in reached}
        return list(common or ())


def _link_of(key: CacheKey, index: int, dep: SelectedKey) -> CacheInfoLink:
    return CacheInfoLink(index, key.output, key.digest, dep.selector)
