"""Cache managers: the questions that the solver asks about keys, over one storage or several."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from typing import Any

from boxwright.core.cacheinfo import CacheInfoLink, CacheResult, root_key
from boxwright.core.digest import Digest
from boxwright.errors import NotFoundError
from boxwright.solver.cachekey import CacheKey, ExportableKey, SelectedKey
from boxwright.solver.exporter import KeyExporter
from boxwright.solver.types import (
    CacheKeyStorage,
    CacheManager,
    CacheRecord,
    Result,
    ResultStorage,
)

logger = logging.getLogger(__name__)

_RELEASED_AT_ONCE = 100


def new_key_id() -> str:
    """Return a fresh id for a key that has inputs; it means something in one storage only."""
    return secrets.token_hex(16)


class LocalCacheManager:
    """Keys of one storage with the results of one result storage."""

    def __init__(self, manager_id: str, storage: CacheKeyStorage, results: ResultStorage) -> None:
        self._id = manager_id
        self.storage = storage
        self.results = results

    @property
    def id(self) -> str:
        """Tells managers over the same storage apart from others."""
        return self._id

    def release(self, result_ids: Sequence[str]) -> None:
        """Forget results that were removed; one that is left out is noticed when it is found.

        May block; safe from every thread if the storage is.
        """
        for start in range(0, len(result_ids), _RELEASED_AT_ONCE):
            with self.storage.batch():  # short ones: look-ups of builds wait for them
                for result_id in result_ids[start : start + _RELEASED_AT_ONCE]:
                    self.storage.release(result_id)

    def query(
        self, keys: Sequence[SelectedKey], input_index: int, digest: str, output: int
    ) -> list[CacheKey]:
        """Return the keys that ``keys`` of one input lead to; without any, the root key.

        All ``keys`` name the same input, so what one of them leads to, the others are made
        to lead to as well: next time any of them is enough.
        """
        if not keys:
            key_id = root_key(digest, output)
            return [self._known(key_id, digest, output)] if self.storage.exists(key_id) else []
        links = [CacheInfoLink(input_index, output, digest, k.selector) for k in keys]
        reached = [
            set(self.storage.links(self.key_id(k.key), link))
            for k, link in zip(keys, links, strict=True)
        ]
        found = {target: self._known(target, digest, output) for r in reached for target in r}
        for selected, link, targets in zip(keys, links, reached, strict=True):
            for target in found.keys() - targets:
                self.storage.add_link(self.key_id(selected.key), link, target)
        return list(found.values())

    def records(self, key: CacheKey) -> list[CacheRecord]:
        """Return the results that exist for a key, and forget those that don't."""
        records = []
        for result in self.storage.results(self.key_id(key)):
            if self.results.exists(result.id):
                records.append(CacheRecord(result.id, result.created_at, key, self))
            else:
                self.storage.release(result.id)
        return records

    async def load(self, record: CacheRecord) -> Result:
        """Return the result of a record, owned by the caller.

        Raises:
            NotFoundError: the record was released meanwhile.
        """
        return await self.results.load(self.stored(record))

    def stored(self, record: CacheRecord) -> CacheResult:
        """Return the stored form of a record.

        Raises:
            NotFoundError: the record was released meanwhile.
        """
        result = self.storage.load(self.key_id(record.key), record.id)
        if result is None:
            raise NotFoundError("cache record is gone", detail=record.id)
        return result

    async def save(self, key: CacheKey, result: Result, created_at: int) -> ExportableKey:
        """Store a result under a key and make the key findable from its inputs."""
        stored = await self.results.save(result, created_at)
        with self.storage.batch():
            self.storage.add_result(self.key_id(key), stored)
            self._persist(key)
        record = CacheRecord(stored.id, stored.created_at, key, self)
        return ExportableKey(key, KeyExporter(key, record=record))

    def key_id(self, key: CacheKey) -> str:
        """Return the id of the key in this storage, choosing one if it has none."""
        known = key.ids.get(self)
        if known is None:
            known = self._find(key) or new_key_id() if key.deps else key.id
            key.ids[self] = known
        return known

    def _known(self, key_id: str, digest: str, output: int) -> CacheKey:
        key = CacheKey(digest, output, key_id=key_id)
        key.ids[self] = key_id
        return key

    def _find(self, key: CacheKey) -> str | None:
        """Return the key that every input leads to, if there is one."""
        common: set[str] | None = None
        for index, selected in enumerate(key.deps):
            reached: set[str] = set()
            for dep in selected:
                link = CacheInfoLink(index, key.output, key.digest, dep.selector)
                reached.update(self.storage.links(self.key_id(dep.key), link))
            common = reached if common is None else common & reached
            if not common:
                return None
        return min(common) if common else None

    def _persist(self, key: CacheKey) -> None:
        """Store the links from the inputs' keys, theirs first where they are new."""
        pending = [key]
        seen: set[int] = set()
        while pending:
            current = pending.pop()
            if id(current) in seen:
                continue
            seen.add(id(current))
            target = self.key_id(current)
            for index, selected in enumerate(current.deps):
                for dep in selected:
                    link = CacheInfoLink(index, current.output, current.digest, dep.selector)
                    source = self.key_id(dep.key)
                    if not self.storage.has_link(source, link, target):
                        pending.append(dep.key)
                        self.storage.add_link(source, link, target)


class CombinedCacheManager:
    """The main cache with imported ones behind it; hits in those are copied to the main one."""

    def __init__(self, main: LocalCacheManager, others: Sequence[CacheManager]) -> None:
        self._main = main
        self._all: tuple[CacheManager, ...] = (main, *others)
        self._id = Digest.of(",".join(m.id for m in self._all).encode())

    @property
    def id(self) -> str:
        """Tells this combination apart from others."""
        return self._id

    def query(
        self, keys: Sequence[SelectedKey], input_index: int, digest: str, output: int
    ) -> list[CacheKey]:
        """Return what any of the caches knows; the main cache's key where ids are equal."""
        found: dict[str, CacheKey] = {}
        for manager in self._all:
            for key in manager.query(keys, input_index, digest, output):
                found.setdefault(key.id, key)
        return list(found.values())

    def records(self, key: CacheKey) -> list[CacheRecord]:
        """Return the results of a key in the caches that know it."""
        found: dict[str, CacheRecord] = {}
        managers = [m for m in key.ids if isinstance(m, LocalCacheManager)]
        for manager in sorted(managers, key=lambda m: m is not self._main):
            for record in manager.records(key):
                priority = 1 if manager is self._main else 0
                found.setdefault(
                    record.id,
                    CacheRecord(record.id, record.created_at, key, manager, priority),
                )
        return list(found.values())

    async def load(self, record: CacheRecord) -> Result:
        """Load from where the record is, and keep what came from elsewhere in the main cache.

        Intermediate results that came with it are kept too, where the storage delivers them.
        """
        manager = record.manager
        loaded = await _load_with_parents(manager, record)
        try:
            if manager is not self._main:
                for key, stored, result in loaded:
                    await self._main.save(key, result, stored.created_at)
        except BaseException:
            for _, _, result in loaded:
                await result.release()
            raise
        for _, _, result in loaded[1:]:
            await result.release()
        return loaded[0][2]

    async def save(self, key: CacheKey, result: Result, created_at: int) -> ExportableKey:
        """Store in the main cache."""
        return await self._main.save(key, result, created_at)


async def _load_with_parents(
    manager: LocalCacheManager, record: CacheRecord
) -> list[tuple[CacheKey, CacheResult, Result]]:
    """Return the record's result first, then those of its inputs' keys that came with it."""
    stored = manager.stored(record)
    load_all: Any = getattr(manager.results, "load_with_parents", None)
    if load_all is None:
        return [(record.key, stored, await manager.results.load(stored))]
    results: dict[str, Result] = await load_all(stored)
    loaded: list[tuple[CacheKey, CacheResult, Result]] = []
    pending, seen = [record.key], set[str]()
    while pending:
        key = pending.pop(0)
        key_id = manager.key_id(key)
        if key_id in seen:
            continue
        seen.add(key_id)
        stored_here = manager.storage.results(key_id)
        if stored_here and key_id in results:
            loaded.append((key, stored_here[0], results.pop(key_id)))
        pending.extend(dep.key for selected in key.deps for dep in selected)
    for leftover in results.values():
        await leftover.release()
    if not loaded:
        raise NotFoundError("cache record is gone", detail=record.id)
    return loaded
