"""What is known about one output of one vertex, and how knowledge about its inputs adds to it.

An edge climbs through four levels. Its consumers read it directly; nothing is sent. This
module only *knows*; what should be done to know more is decided in
:mod:`boxwright.solver.plan`, and done by :mod:`boxwright.solver.scheduler`.
"""

from __future__ import annotations

import enum
import logging
from typing import TYPE_CHECKING

from boxwright.core.dataclass import dataclass, field
from boxwright.solver.cachekey import CacheKey, ExportableKey, SelectedKey, select
from boxwright.solver.exporter import KeyExporter
from boxwright.solver.types import (
    CachedResult,
    CacheManager,
    CacheMap,
    CacheMapDep,
    CacheRecord,
)

if TYPE_CHECKING:
    from boxwright.solver.active import ActiveVertex
    from boxwright.solver.work import Work

logger = logging.getLogger(__name__)

_NO_DEP = CacheMapDep()


class Level(enum.IntEnum):
    """How much is known about an edge."""

    UNKNOWN = 0
    FAST = 1
    """Every key is known that needs neither a result nor its content."""
    SLOW = 2
    """Every key is known that can be had without running the op itself."""
    COMPLETE = 3
    """The result is there."""


@dataclass(slots=True, eq=False)
class InputState:
    """One input of an edge, and what its keys have led to.

    ``candidates`` are keys of the *consumer* that this input's keys lead to in the cache; a
    candidate of all inputs is a key of the consumer.
    """

    index: int
    consumer: EdgeNode
    first: EdgeNode
    candidates: dict[str, CacheKey] = field(default_factory=dict)
    demand: Level = Level.UNKNOWN
    slow_done: bool = False
    slow_key: ExportableKey | None = None
    slow_found: bool = False
    probed_node: EdgeNode | None = None
    probed: int = 0
    was_complete: bool = False

    @property
    def node(self) -> EdgeNode:
        """The edge that stands for the input now: others may have taken its place."""
        self.first = self.first.resolved()
        return self.first

    @property
    def dep(self) -> CacheMapDep:
        """How this input enters the consumer's key, once the cache map is known."""
        cache_map = self.consumer.cache_map
        if cache_map is None or self.index >= len(cache_map.deps):
            return _NO_DEP
        return cache_map.deps[self.index]

    @property
    def slow_open(self) -> bool:
        """Whether a content key is still to come although cheaper keys are all known."""
        return self.dep.compute is not None and self._pending()

    @property
    def work_open(self) -> bool:
        """Whether something must still be done to the input's result."""
        return (self.dep.compute or self.dep.preprocess) is not None and self._pending()

    def _pending(self) -> bool:
        level = self.node.level
        return level == Level.SLOW or (level == Level.COMPLETE and not self.slow_done)

    def selected_keys(self) -> list[SelectedKey]:
        """Return all keys that name this input in the consumer's key."""
        node, selector = self.node, self.dep.selector
        keys = node.result.cache_keys if node.result else node.keys
        selected = select(list(keys), selector)
        if self.slow_key is not None and node.result:
            selected.append(SelectedKey(self.slow_key.key, self.slow_key.exporter))
        return selected


@dataclass(slots=True, eq=False)
class EdgeNode:
    """One output of an active vertex. Identity matters: one node per output being solved."""

    active: ActiveVertex
    index: int
    level: Level = Level.UNKNOWN
    keys: list[ExportableKey] = field(default_factory=list)
    result: CachedResult | None = None
    error: BaseException | None = None
    cache_map: CacheMap | None = None
    cache_maps_seen: list[str] = field(default_factory=list)
    cache_map_done: bool = False
    inputs: list[InputState] = field(default_factory=list)
    records: dict[str, CacheRecord] = field(default_factory=dict)
    failed_records: set[str] = field(default_factory=set)
    known_ids: set[str] = field(default_factory=set)
    hopeless: bool = False
    """No key can be found any more before the op has run."""
    forced: bool = False
    index_stale: bool = False
    """Keys changed since the edge was last looked up among the live ones."""
    demands: dict[object, Level] = field(default_factory=dict)
    consumers: dict[EdgeNode, None] = field(default_factory=dict)
    forward: EdgeNode | None = None
    extra_keys: list[tuple[int, SelectedKey]] = field(default_factory=list)
    """Keys of inputs of edges that were merged into this one; for the cache export."""
    work: dict[str, Work] = field(default_factory=dict)
    closed: bool = False

    @property
    def ignores_cache(self) -> bool:
        """Whether the vertex must run even if a result is known."""
        return self.active.vertex.options.ignore_cache

    @property
    def cache(self) -> CacheManager:
        """The caches that this vertex may use."""
        return self.active.cache

    @property
    def demand(self) -> Level:
        """The most that anyone wants to know."""
        return max(self.demands.values(), default=Level.UNKNOWN)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do here."""
        settled = self.result is not None or self.error is not None
        return settled or self.forward is not None or self.closed

    def resolved(self) -> EdgeNode:
        """Return the edge that took this one's place, or this one."""
        node = self
        while node.forward is not None:
            node = node.forward
        return node

    # -- facts arriving from work ---------------------------------------------------------

    def add_cache_map(self, cache_map: CacheMap, *, done: bool) -> None:
        """Take in the op's cache map, or one more of an op without inputs."""
        self.cache_map = cache_map
        self.cache_maps_seen.append(cache_map.digest)
        self.cache_map_done = done or bool(self.inputs)
        self.index_stale = True
        self._find_root_keys()

    def _find_root_keys(self) -> None:
        if self.inputs or self.ignores_cache:
            return
        for digest in self.cache_maps_seen:
            for key in self._query([], 0, digest):
                if key.id not in self.known_ids:
                    self.known_ids.add(key.id)
                    self._add_key(key)

    def refresh(self) -> bool:
        """Look once more before the op runs; return whether there is a record now.

        Keys are looked up when they become known. What was saved since then (by a step that
        this one could not be merged with, or by another process) would be missed.
        """
        if not self.ignores_cache:
            self._find_root_keys()
            for inp in self.inputs:
                # Only keys that the input advertises: those of a run that had to ignore the
                # cache must not lead to results of earlier runs.
                keys = select(inp.node.keys, inp.dep.selector)
                if inp.slow_key is not None:
                    keys.append(SelectedKey(inp.slow_key.key, inp.slow_key.exporter))
                self._probe(inp, keys)
            self._combine()
        return bool(self.records)

    def add_slow_key(self, inp: InputState, digest: str) -> None:
        """Take in the digest of an input's content; empty if only preprocessing was wanted."""
        inp.slow_done = True
        self.index_stale = True
        assert self.cache_map is not None
        if not digest or inp.dep.compute is None:
            return
        key = CacheKey(digest, -1)
        exporter = KeyExporter(key)
        inp.slow_key = ExportableKey(key, exporter)
        slow = SelectedKey(key, exporter)
        result = inp.node.result
        definition = select(list(result.cache_keys) if result else [], inp.dep.selector)
        inp.slow_found = self._probe(inp, [slow])
        if not inp.node.ignores_cache:
            # From now on the definition keys lead to what the content key leads to, too. Those
            # of a vertex that had to run lead to an earlier run's, which had other content.
            self._query([*definition, slow], inp.index, self.cache_map.digest)

    def complete(self, result: CachedResult, *, from_cache: bool) -> None:
        """Take in the result.

        The keys of a run are new knowledge for consumers. Those of a load are known already,
        and those of a vertex that had to run must not lead to results of earlier runs.
        """
        self.result = result
        self.level = Level.COMPLETE
        if not from_cache and not self.ignores_cache:
            self.keys.extend(result.cache_keys)

    # -- knowledge from inputs ------------------------------------------------------------

    def observe(self) -> bool:
        """Draw all conclusions from the inputs; return whether keys or level changed."""
        if self.finished:
            return False
        before = (self.level, len(self.keys))
        if self.cache_map is not None:
            for inp in self.inputs:
                self._observe_input(inp)
            self._combine()
        self._derive_level()
        return before != (self.level, len(self.keys))

    def _observe_input(self, inp: InputState) -> None:
        node = inp.node
        if inp.probed_node is not node:
            inp.probed_node, inp.probed = node, 0
        fresh = node.keys[inp.probed :]
        if fresh:
            inp.probed = len(node.keys)
            self.index_stale = True
            self._probe(inp, select(fresh, inp.dep.selector))
        if node.level == Level.COMPLETE and not inp.was_complete:
            inp.was_complete = True
            self.index_stale = True
        if inp.candidates:
            return
        if self.ignores_cache:
            self.hopeless = True
        elif inp.dep.compute is None:
            self.hopeless |= node.level >= Level.SLOW
        else:
            self.hopeless |= inp.slow_done and not inp.slow_found

    def _probe(self, inp: InputState, keys: list[SelectedKey]) -> bool:
        """Look up what keys of an input lead to; return whether a candidate is new."""
        if self.ignores_cache or not keys:
            return False
        assert self.cache_map is not None
        found = self._query(keys, inp.index, self.cache_map.digest)
        fresh = [key for key in found if key.id not in inp.candidates]
        inp.candidates.update((key.id, key) for key in fresh)
        return bool(fresh)

    def _query(self, keys: list[SelectedKey], input_index: int, digest: str) -> list[CacheKey]:
        """Ask the caches; one that can't answer knows nothing, and that is no failed build."""
        try:
            return self.cache.query(keys, input_index, digest, self.index)
        except Exception:
            logger.warning("cache look-up failed for %s", self.active.vertex.name, exc_info=True)
            return []

    def _records_of(self, key: CacheKey) -> list[CacheRecord]:
        try:
            return self.cache.records(key)
        except Exception:
            logger.warning("cache look-up failed for %s", self.active.vertex.name, exc_info=True)
            return []

    def _combine(self) -> None:
        """Candidates of all inputs are keys of this edge."""
        if not self.inputs:
            return
        first, *others = self.inputs
        for key_id, key in list(first.candidates.items()):
            if key_id in self.known_ids or not all(key_id in o.candidates for o in others):
                continue
            self.known_ids.add(key_id)
            merged = key.clone()
            merged.deps = [inp.selected_keys() for inp in self.inputs]
            self._add_key(merged)

    def _add_key(self, key: CacheKey) -> None:
        key.vertex = self.active.vertex.digest
        records = self._records_of(key)
        for record in records:
            if record.id not in self.failed_records:
                self.records[record.id] = record
        override = self.active.vertex.options.export_cache
        exporter = KeyExporter(key, records=records, override=override)
        self.keys.append(ExportableKey(key, exporter))

    def _derive_level(self) -> None:
        if self.cache_map is None:
            return
        if not self.inputs:
            # Without a key there may be another cache map with one.
            known = self.cache_map_done or bool(self.keys)
            self.level = Level.SLOW if known else Level.UNKNOWN
            return
        low, high = Level.UNKNOWN, Level.SLOW
        for inp in self.inputs:
            level = inp.node.level
            if not inp.candidates and not inp.work_open:
                low = max(low, min(level, Level.SLOW))
            high = min(high, Level.FAST if inp.slow_open else level)
        self.level = max(self.level, low, high)
        if self.hopeless or (self.records and self._exhausted()):
            self.level = max(self.level, Level.SLOW)

    def _exhausted(self) -> bool:
        """Whether no key beyond the known ones can come from the inputs that are settled."""
        if not all(inp.node.level >= Level.SLOW or inp.candidates for inp in self.inputs):
            return False
        rest: set[str] | None = None
        for inp in self.inputs:
            if inp.slow_open:
                continue
            mine = inp.candidates.keys() - self.known_ids
            rest = mine if rest is None else rest & mine
            if not rest:
                return True
        return False

    # -- keys of this edge ----------------------------------------------------------------

    def index_key(self) -> CacheKey | None:
        """Return the key to look this edge up by among the live ones, if there is one yet."""
        if self.cache_map is None:
            return None
        deps = []
        for inp in self.inputs:
            node = inp.node
            if not node.keys and node.result is None:
                return None
            keys = list(node.keys)
            if node.result is not None:
                keys.extend(k for k in node.result.cache_keys if k not in keys)
            selected = select(keys, inp.dep.selector)
            if node.result is not None and inp.slow_key is not None:
                selected.append(SelectedKey(inp.slow_key.key, inp.slow_key.exporter))
            deps.append(selected)
        vertex = self.active.vertex.digest
        return CacheKey(self.cache_map.digest, self.index, vertex=vertex, deps=deps)

    def commit_keys(self) -> list[CacheKey]:
        """Return the keys to save a new result under; all inputs are complete."""
        assert self.cache_map is not None
        vertex = self.active.vertex.digest
        if not self.inputs:
            return [CacheKey(d, self.index, vertex=vertex) for d in self.cache_maps_seen]
        deps = [inp.selected_keys() for inp in self.inputs]
        return [CacheKey(self.cache_map.digest, self.index, vertex=vertex, deps=deps)]
