"""Cache metadata and results in memory: for tests, and for engines that keep nothing."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from boxwright.core.cacheinfo import CacheInfoLink, CacheResult, root_key
from boxwright.core.dataclass import dataclass, field
from boxwright.errors import NotFoundError
from boxwright.solver.types import Remote, Result


@dataclass(slots=True)
class _Key:
    results: dict[str, CacheResult] = field(default_factory=dict)
    links: dict[CacheInfoLink, dict[str, None]] = field(default_factory=dict)
    parents: dict[str, None] = field(default_factory=dict)


class MemoryCacheStorage:
    """A :class:`~boxwright.solver.types.CacheKeyStorage` in dictionaries."""

    def __init__(self) -> None:
        self._keys: dict[str, _Key] = {}
        self._by_result: dict[str, dict[str, None]] = {}

    def batch(self) -> AbstractContextManager[object]:
        """Writes to memory need no transaction."""
        return nullcontext()

    def exists(self, key_id: str) -> bool:
        """Return whether the key has a result or leads to another key."""
        key = self._keys.get(key_id)
        return key is not None and bool(key.links or key.results)

    def ids(self) -> list[str]:
        """Return the ids of all keys."""
        return list(self._keys)

    def results(self, key_id: str) -> list[CacheResult]:
        """Return the results of a key; none if there is no such key."""
        key = self._keys.get(key_id)
        return list(key.results.values()) if key else []

    def load(self, key_id: str, result_id: str) -> CacheResult | None:
        """Return one result of a key."""
        key = self._keys.get(key_id)
        return key.results.get(result_id) if key else None

    def add_result(self, key_id: str, result: CacheResult) -> None:
        """Store a result under a key, replacing one with the same id."""
        self._keys.setdefault(key_id, _Key()).results[result.id] = result
        self._by_result.setdefault(result.id, {})[key_id] = None

    def release(self, result_id: str) -> None:
        """Forget a result under all keys, and every key that then leads nowhere."""
        for key_id in self._by_result.pop(result_id, {}):
            key = self._keys.get(key_id)
            if key is not None:
                key.results.pop(result_id, None)
                self._drop_empty(key_id)

    def _drop_empty(self, start: str) -> None:
        pending = [start]
        while pending:
            key_id = pending.pop()
            key = self._keys.get(key_id)
            if key is None or key.results or key.links:
                continue
            del self._keys[key_id]
            for parent_id in key.parents:
                parent = self._keys.get(parent_id)
                if parent is None:
                    continue
                for link in [li for li, targets in parent.links.items() if key_id in targets]:
                    del parent.links[link][key_id]
                    if not parent.links[link]:
                        del parent.links[link]
                pending.append(parent_id)

    def result_ids(self) -> list[str]:
        """Return the ids of all results."""
        return list(self._by_result)

    def ids_by_result(self, result_id: str) -> list[str]:
        """Return the keys that have this result."""
        return list(self._by_result.get(result_id, ()))

    def add_link(self, key_id: str, link: CacheInfoLink, target: str) -> None:
        """Make ``key_id`` lead to ``target`` under the condition ``link``."""
        self._keys.setdefault(key_id, _Key()).links.setdefault(link, {})[target] = None
        self._keys.setdefault(target, _Key()).parents[key_id] = None

    def links(self, key_id: str, link: CacheInfoLink) -> list[str]:
        """Return where the key leads under exactly this condition."""
        key = self._keys.get(key_id)
        return list(key.links.get(link, ())) if key else []

    def has_link(self, key_id: str, link: CacheInfoLink, target: str) -> bool:
        """Return whether the link is stored."""
        key = self._keys.get(key_id)
        return key is not None and target in key.links.get(link, ())

    def backlinks(self, key_id: str) -> list[tuple[str, CacheInfoLink]]:
        """Return the keys that lead here, with ``link.digest`` already a root key."""
        found: list[tuple[str, CacheInfoLink]] = []
        key = self._keys.get(key_id)
        for parent_id in key.parents if key else ():
            parent = self._keys.get(parent_id)
            for link, targets in parent.links.items() if parent else ():
                if key_id in targets:
                    digest = root_key(link.digest, link.output)
                    found.append((parent_id, CacheInfoLink(link.input, 0, digest, link.selector)))
        return found


class MemoryResultStorage:
    """A :class:`~boxwright.solver.types.ResultStorage` that holds on to the results."""

    def __init__(self) -> None:
        self._results: dict[str, Result] = {}

    async def save(self, result: Result, created_at: int) -> CacheResult:
        """Keep a clone of the result."""
        if result.id not in self._results:
            self._results[result.id] = result.clone()
        return CacheResult(result.id, created_at)

    async def load(self, record: CacheResult) -> Result:
        """Return a clone of the result.

        Raises:
            NotFoundError: it was never saved, or dropped.
        """
        result = self._results.get(record.id)
        if result is None:
            raise NotFoundError("cached result is gone", detail=record.id)
        return result.clone()

    def exists(self, result_id: str) -> bool:
        """Return whether the result is held."""
        return result_id in self._results

    async def load_remotes(self, record: CacheResult, ctx: object) -> list[Remote]:
        """Results in memory have no blobs."""
        return []

    async def drop(self, result_id: str) -> None:
        """Let go of a result, as pruning does."""
        result = self._results.pop(result_id, None)
        if result is not None:
            await result.release()

    async def close(self) -> None:
        """Let go of everything."""
        for result_id in list(self._results):
            await self.drop(result_id)
