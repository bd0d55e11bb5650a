"""What the state folder holds and what may go: ``du``, ``prune`` and garbage collection.

The policy keys are BuildKit's: ``reservedSpace`` is a floor that pruning leaves alone,
``maxUsedSpace`` a ceiling, ``minFreeSpace`` what the disk should keep free. Records go in the
order of a blend of age and rarity of use; one that a build, a lease or another record needs
is never touched.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import heapq
import itertools
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

from boxwright.core.clock import Clock
from boxwright.core.dataclass import dataclass, replace
from boxwright.core.workers import to_worker
from boxwright.engine.filters import Matcher, compile_filters
from boxwright.engine.status import timestamp
from boxwright.errors import BoxwrightError, named
from boxwright.snapshots.deletion import delete_many
from boxwright.snapshots.manager import SnapshotManager
from boxwright.snapshots.usage import CACHE_MOUNT_TYPE, SnapshotRecord
from boxwright.store.store import Store
from boxwright.wire.pb import control_pb2

_log = logging.getLogger(__name__)

# Layers that a finished build exported must be able to go when room is needed now.
_PRESSED_GRACE_NS = 30 * 10**9
_LARGE_BLOB = 1 << 20
_BATCH = 64  # in one go, on the event loop

_INTERNAL_TYPES = frozenset({"internal", "frontend"})


@dataclass(frozen=True)
class PrunePolicy:
    """One rule; sizes in bytes, 0 for none; the duration in nanoseconds."""

    all: bool = False
    filters: tuple[str, ...] = ()
    keep_duration_ns: int = 0
    reserved_space: int = 0
    max_used_space: int = 0
    min_free_space: int = 0

    @property
    def has_target(self) -> bool:
        """Whether the rule stops at a size instead of removing all it may."""
        return bool(self.reserved_space or self.max_used_space or self.min_free_space)

    def keep_bytes(self, used: int, free: int) -> int:
        """Return down to which total the rule removes records."""
        if not self.has_target:
            return 0
        keep = self.max_used_space
        excess = self.min_free_space - free
        if self.min_free_space and excess > 0:
            keep = used - excess if keep == 0 else min(keep, used - excess)
        elif self.min_free_space and keep == 0:
            keep = used
        return max(keep, self.reserved_space)


def to_message(record: SnapshotRecord) -> control_pb2.UsageRecord:
    """Return a record as ``du`` and ``prune`` send it."""
    message = control_pb2.UsageRecord(
        ID=record.id,
        Mutable=record.mutable,
        InUse=record.in_use,
        Size=record.size_bytes or 0,
        UsageCount=record.usage_count,
        Description=record.description,
        RecordType=record.record_type,
        Shared=record.leased,
        Parents=record.parents,
    )
    message.CreatedAt.CopyFrom(timestamp(record.created_ns))
    if record.last_used_ns:
        message.LastUsedAt.CopyFrom(timestamp(record.last_used_ns))
    return message


def field_of(record: SnapshotRecord, path: tuple[str, ...]) -> str | None:
    """Return a record's field for a filter, under BuildKit's names; None if it is not there.

    What is true or false is there or not: the value is empty.
    """
    there: dict[str, bool] = {
        "inuse": record.in_use,
        "mutable": record.mutable,
        "immutable": not record.mutable,
        "shared": record.shared,
        "private": not record.shared,
    }
    match path[0]:
        case "id":
            return record.id or None
        case "parents":
            return ";".join(record.parents) or None
        case "description":
            return record.description or None
        case "type":
            return record.record_type or None
    return "" if there.get(path[0]) else None


class _Ready:
    """Records that may go, long unused and rarely used ones first (BuildKit's order).

    A record's rank is its place among all times of last use, and among all counts of uses, each
    divided by their number; the least sum is first. Ranks change with what is in here: they are
    found when one is taken. A count has few records that could be first: its oldest one.
    """

    def __init__(self, records: Iterable[SnapshotRecord] = ()) -> None:
        self._by_count: dict[int, list[tuple[int, int, SnapshotRecord]]] = {}
        self._times: list[int] = []
        self._at_time: Counter[int] = Counter()
        self._number = itertools.count()
        for record in records:
            self._at_time[record.last_used_ns] += 1
            self._push(record)
        self._times = sorted(self._at_time)

    def add(self, record: SnapshotRecord) -> None:
        """Add one."""
        time = record.last_used_ns
        self._at_time[time] += 1
        if self._at_time[time] == 1:
            bisect.insort(self._times, time)
        self._push(record)

    def _push(self, record: SnapshotRecord) -> None:
        # Of equal ones the first is taken first; records themselves are not compared.
        entry = (record.last_used_ns, next(self._number), record)
        heapq.heappush(self._by_count.setdefault(record.usage_count, []), entry)

    def take(self) -> SnapshotRecord | None:
        """Remove and return the first."""
        best: tuple[float, int, int] | None = None
        for place, count in enumerate(sorted(self._by_count), 1):
            time, number, _ = self._by_count[count][0]
            rank = (bisect.bisect_left(self._times, time) + 1) / len(self._times)
            rank += place / len(self._by_count)
            if best is None or (rank, number) < best[:2]:
                best = (rank, number, count)
        if best is None:
            return None
        _, _, record = heapq.heappop(self._by_count[best[2]])
        if not self._by_count[best[2]]:
            del self._by_count[best[2]]
        self._at_time[record.last_used_ns] -= 1
        if not self._at_time[record.last_used_ns]:
            del self._at_time[record.last_used_ns]
            del self._times[bisect.bisect_left(self._times, record.last_used_ns)]
        return record


class Candidates:
    """What a rule may remove, one record at a time, in BuildKit's order.

    A record that others are built on comes after them, and is then ranked among those that are
    left: the newest leaf stays as long as there is an older one.
    """

    def __init__(
        self, records: Sequence[SnapshotRecord], allows: Callable[[SnapshotRecord], bool]
    ) -> None:
        self._records = {record.id: record for record in records}
        self._allows = allows
        self._children: Counter[str] = Counter()
        for record in records:
            self._children.update(record.parents)
        self._ready = _Ready(r for r in records if not r.shared and self._may_go(r))

    def _may_go(self, record: SnapshotRecord) -> bool:
        held = record.in_use or record.leased or self._children[record.id]
        return not held and self._allows(record)

    def take(self) -> SnapshotRecord | None:
        """Return the next record; None if nothing may go."""
        return self._ready.take()

    def take_all(self) -> list[SnapshotRecord]:
        """Return every record that may go now: for a rule that stops at no size."""
        return list(iter(self._ready.take, None))

    def removed(self, *records: SnapshotRecord) -> None:
        """Say that records are gone: what they were built on may be next."""
        for parent_id in (each for record in records for each in record.parents):
            self._children[parent_id] -= 1
            parent = self._records.get(parent_id)
            if parent is not None and self._may_go(parent):
                self._ready.add(parent)


def _compiled(verb: str, filters: Sequence[str]) -> Matcher:
    with named(f"failed to parse {verb} filters [{' '.join(filters)}]"):
        return compile_filters(filters)


def allowed_by(policy: PrunePolicy, now_ns: int) -> Callable[[SnapshotRecord], bool]:
    """Return whether a rule concerns a record, whatever its limits are.

    Raises:
        InvalidInputError: a filter of the rule can't be read.
    """
    matches = _compiled("prune", policy.filters)
    oldest = now_ns - policy.keep_duration_ns

    def allows(record: SnapshotRecord) -> bool:
        if not policy.all and record.record_type in _INTERNAL_TYPES:
            return False
        if policy.keep_duration_ns and record.last_used_ns >= oldest:
            return False
        return matches(lambda path: field_of(record, path))

    return allows


class Usage:
    """Disk usage and pruning of one engine; one pruning at a time.

    Args:
        store: of the engine.
        snapshots: of the engine.
        clock: of the engine.
        is_idle: whether no build runs.
        on_removed: told the ids of records that are gone, in a worker.
    """

    def __init__(
        self,
        store: Store,
        snapshots: SnapshotManager,
        clock: Clock,
        *,
        is_idle: Callable[[], bool],
        on_removed: Callable[[Sequence[str]], None] = lambda _ids: None,
    ) -> None:
        self._on_removed = on_removed
        self._store = store
        self._snapshots = snapshots
        self._is_idle = is_idle
        self._clock = clock
        self._lock = asyncio.Lock()

    async def disk_usage(
        self, request: control_pb2.DiskUsageRequest
    ) -> control_pb2.DiskUsageResponse:
        """Return every record that passes the filters."""
        matches = _compiled("diskusage", request.filter)
        records = await self._snapshots.usage()

        def answer() -> control_pb2.DiskUsageResponse:
            response = control_pb2.DiskUsageResponse()
            for record in records:
                if matches(lambda path, r=record: field_of(r, path)):  # type: ignore[misc]
                    response.record.append(to_message(record))
            return response

        return await to_worker(answer)

    async def total_bytes(self) -> int:
        """Return what snapshots and blobs take together."""
        trees = await self._snapshots.used_bytes()
        return trees + await to_worker(self._store.blobs.total_bytes)

    async def evict(self, wanted: int, rules: Sequence[PrunePolicy]) -> None:
        """Remove records, as the rules allow, until about ``wanted`` bytes are free.

        Ceilings do not count here, only what a rule concerns and spares. A cap is harder than a
        floor: when all above the floors is gone and it is not enough, they give way too.
        """
        async with self._lock:
            wanted -= await self._collect_blobs(is_pressed=True)
            if wanted <= 0:
                return
            used = await self.total_bytes()
            target = max(used - wanted, 0)
            for floors in (True, False):
                for rule in rules:
                    keep = max(target, rule.reserved_space if floors else 0)
                    async for record in self._remove(rule, used, keep):
                        used -= record.size_bytes or 0
                        _log.info("removed %s for room", record.id)
            await self._collect_blobs(is_pressed=True)

    async def _remove(
        self, rule: PrunePolicy, used: int, keep: int | None
    ) -> AsyncIterator[SnapshotRecord]:
        """Remove what a rule concerns while more than ``keep`` bytes are used; None: all."""
        if keep is not None and used <= keep:
            return
        allows = allowed_by(rule, self._clock.now_ns())
        records = await self._snapshots.list_records()
        candidates = await to_worker(Candidates, records, allows)
        while keep is None and (ready := candidates.take_all()):
            for start in range(0, len(ready), _BATCH):
                gone = await self._delete(ready[start : start + _BATCH])
                candidates.removed(*gone)
                for each in gone:
                    yield each
        while keep is not None and used > keep:
            record = candidates.take()
            if record is None:
                return
            try:
                size = await self._snapshots.delete(record.id)
            except BoxwrightError:
                continue  # a build has begun to use it
            used -= size
            candidates.removed(record)
            await to_worker(self._on_removed, (record.id,))
            yield replace(record, size_bytes=size)

    async def _delete(self, records: Sequence[SnapshotRecord]) -> list[SnapshotRecord]:
        """Remove those that nobody has begun to use; return them with their sizes."""
        trees = [record.id for record in records if record.record_type != CACHE_MOUNT_TYPE]
        sizes = await delete_many(self._snapshots, trees)
        for record in records:
            if record.record_type == CACHE_MOUNT_TYPE:
                with contextlib.suppress(BoxwrightError):
                    sizes[record.id] = await self._snapshots.delete(record.id)
        await to_worker(self._on_removed, list(sizes))
        return [
            replace(record, size_bytes=sizes[record.id])
            for record in records
            if record.id in sizes
        ]

    async def _collect_blobs(self, *, is_pressed: bool = False) -> int:
        """Remove blobs that nothing needs; return the bytes."""
        # A blob that a running build has just fetched may not be rooted yet: the grace
        # period of the store's own collection is only left out when nothing runs.
        if self._is_idle():
            collected = await to_worker(self._store.gc, grace_ns=0)
        else:
            collected = await to_worker(self._store.gc)
            if is_pressed:
                large = await to_worker(
                    self._store.gc, grace_ns=_PRESSED_GRACE_NS, min_bytes=_LARGE_BLOB
                )
                return collected.size_bytes + large.size_bytes
        return collected.size_bytes

    async def prune(self, policy: PrunePolicy) -> AsyncIterator[SnapshotRecord]:
        """Remove what the policy lets go and yield it; then drop blobs that nothing needs."""
        async with self._lock:
            async for record in self._prune(policy):
                yield record
            await self._collect_blobs()

    async def collect(self, rules: Sequence[PrunePolicy]) -> AsyncIterator[SnapshotRecord]:
        """Do what all rules say, one after the other, and yield what is removed."""
        async with self._lock:
            await self._collect_blobs()
            for rule in rules:
                count = 0
                async for record in self._prune(rule):
                    count += 1
                    yield record
                if count:  # their blobs don't count for the next rule
                    await self._collect_blobs()

    async def _prune(self, policy: PrunePolicy) -> AsyncIterator[SnapshotRecord]:
        used = await self.total_bytes() if policy.has_target else 0
        free = await to_worker(self._store.available_bytes)
        keep = policy.keep_bytes(used, free) if policy.has_target else None
        async for record in self._remove(policy, used, keep):
            yield record
