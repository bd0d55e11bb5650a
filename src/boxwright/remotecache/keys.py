"""An imported graph as the solver's key storage. Read-only: writes are dropped."""

from __future__ import annotations

import secrets
from contextlib import AbstractContextManager, nullcontext

from boxwright.core.cacheinfo import CacheInfoLink, CacheResult, root_key
from boxwright.core.dataclass import dataclass, field
from boxwright.core.digest import Digest
from boxwright.remotecache.chains import CacheChains, Item, Link
from boxwright.solver.types import Remote


@dataclass(slots=True)
class Entry:
    """A record under the id that the solver sees."""

    item: Item
    links: dict[Link, list[str]] = field(default_factory=dict)
    backlinks: list[tuple[str, Link]] = field(default_factory=list)
    results: dict[str, int] = field(default_factory=dict)
    """Number of the result in ``item.results`` by id."""


class ImportedKeys:
    """A :class:`~boxwright.solver.types.CacheKeyStorage` over one imported graph.

    Roots are known by their digest, the same everywhere. Other records get ids that no other
    storage has: two imports that know the same key must both be asked for its results.
    """

    def __init__(self, chains: CacheChains) -> None:
        self.entries: dict[str, Entry] = {}
        self._ids: dict[Item, str] = {}
        self._by_result: dict[str, dict[str, None]] = {}
        prefix = secrets.token_hex(12)
        for number, item in enumerate(chains.items()):
            key_id = f"{prefix}-{number}" if item.parents else item.digest
            self._ids[item] = key_id
            entry = self.entries[key_id] = Entry(item)
            self._link(entry, key_id)
            for index, result in enumerate(item.results):
                result_id = remote_id(result.remote)
                entry.results.setdefault(result_id, index)
                self._by_result.setdefault(result_id, {})[key_id] = None

    def _link(self, entry: Entry, key_id: str) -> None:
        for index, group in enumerate(entry.item.parents):
            for parent in group:
                source_id = self._ids.get(parent.item)
                if source_id is not None:
                    link = Link(parent.selector, index, entry.item.digest)
                    self.entries[source_id].links.setdefault(link, []).append(key_id)
                    entry.backlinks.append((source_id, link))

    def id_of(self, item: Item) -> str:
        """Return the id of a record."""
        return self._ids[item]

    def batch(self) -> AbstractContextManager[object]:
        """Nothing is written."""
        return nullcontext()

    def exists(self, key_id: str) -> bool:
        """Return whether there is such a record."""
        return key_id in self.entries

    def ids(self) -> list[str]:
        """Return the ids of all records."""
        return list(self.entries)

    def results(self, key_id: str) -> list[CacheResult]:
        """Return the results of a record; none if there is no such record."""
        entry = self.entries.get(key_id)
        if entry is None:
            return []
        return [
            CacheResult(result_id, entry.item.results[number].created_at)
            for result_id, number in entry.results.items()
        ]

    def load(self, key_id: str, result_id: str) -> CacheResult | None:
        """Return one result of a record."""
        return next((r for r in self.results(key_id) if r.id == result_id), None)

    def add_result(self, key_id: str, result: CacheResult) -> None:
        """Do nothing."""

    def release(self, result_id: str) -> None:
        """Do nothing."""

    def result_ids(self) -> list[str]:
        """Return the ids of all results."""
        return list(self._by_result)

    def ids_by_result(self, result_id: str) -> list[str]:
        """Return the records that have this result."""
        return list(self._by_result.get(result_id, ()))

    def remote(self, result_id: str) -> Remote | None:
        """Return the layers of a result."""
        for key_id in self._by_result.get(result_id, ()):
            entry = self.entries[key_id]
            return entry.item.results[entry.results[result_id]].remote
        return None

    def add_link(self, key_id: str, link: CacheInfoLink, target: str) -> None:
        """Do nothing."""

    def links(self, key_id: str, link: CacheInfoLink) -> list[str]:
        """Return where a record leads under exactly this condition."""
        entry = self.entries.get(key_id)
        return list(entry.links.get(_stored(link), ())) if entry is not None else []

    def has_link(self, key_id: str, link: CacheInfoLink, target: str) -> bool:
        """Return whether one record leads to the other."""
        return target in self.links(key_id, link)

    def backlinks(self, key_id: str) -> list[tuple[str, CacheInfoLink]]:
        """Return the records that lead here, with root keys as digests."""
        entry = self.entries.get(key_id)
        return [
            (source, CacheInfoLink(link.input, 0, link.digest, link.selector))
            for source, link in (entry.backlinks if entry is not None else ())
        ]


def _stored(link: CacheInfoLink) -> Link:
    return Link(link.selector, link.input, root_key(link.digest, link.output))


def remote_id(remote: Remote) -> str:
    """Return a name for a stack of layers: equal stacks have equal names."""
    return Digest.of("".join(d.digest for d in remote.descriptors).encode())
