"""What garbage collection would do now, record by record, and why.

Made of what every BuildKit-compatible daemon tells: its rules and its records. So it explains
a stock daemon as well as ours, which tells also what its disk has free and what its blobs take.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from boxwright.core.dataclass import dataclass
from boxwright.engine.usage import Candidates, PrunePolicy, allowed_by
from boxwright.snapshots.usage import SnapshotRecord
from boxwright.wire.pb import control_pb2, worker_pb2


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of one record.

    Attributes:
        record: the record.
        freed_by: number of the rule that removes it, from 1; None: it stays.
        reason: why, in words.
        pinned_by: what holds it: ``build``, ``image or lease``, or ids of records on it.
    """

    record: SnapshotRecord
    freed_by: int | None
    reason: str
    pinned_by: tuple[str, ...] = ()


def record_of(message: control_pb2.UsageRecord) -> SnapshotRecord:
    """Return a record as the daemon sent it; ``Shared`` is what images and leases hold."""
    return SnapshotRecord(
        id=message.ID,
        parents=tuple(message.Parents) or ((message.Parent,) if message.Parent else ()),
        description=message.Description,
        record_type=message.RecordType,
        created_ns=message.CreatedAt.ToNanoseconds(),
        last_used_ns=message.LastUsedAt.ToNanoseconds(),
        usage_count=message.UsageCount,
        size_bytes=message.Size,
        in_use=message.InUse,
        leased=message.Shared,
        mutable=message.Mutable,
    )


def policy_of(message: worker_pb2.GCPolicy) -> PrunePolicy:
    """Return a rule as the daemon sent it."""
    return PrunePolicy(
        all=message.all,
        filters=tuple(message.filters),
        keep_duration_ns=message.keepDuration,
        reserved_space=message.reservedSpace,
        max_used_space=message.maxUsedSpace,
        min_free_space=message.minFreeSpace,
    )


def explain(
    records: Iterable[SnapshotRecord],
    rules: Sequence[PrunePolicy],
    now_ns: int,
    *,
    free_bytes: int | None = None,
    blob_bytes: int = 0,
) -> list[Verdict]:
    """Return what one collection would do with each record, in the order of ``records``.

    Args:
        records: all of them.
        rules: in their order.
        now_ns: since the epoch.
        free_bytes: what the disk has free; None takes ``minFreeSpace`` as satisfied.
        blob_bytes: what counts as used besides the records.

    Raises:
        InvalidInputError: a filter of a rule can't be read.
    """
    everything = list(records)
    left = {record.id: record for record in everything}
    freed: dict[str, Verdict] = {}
    kept: dict[str, str] = {}
    for number, rule in enumerate(rules, 1):
        removed, why = _apply(rule, list(left.values()), now_ns, free_bytes, blob_bytes)
        for record, reason in removed:
            freed[record.id] = Verdict(record, number, f"rule {number}: {reason}")
            del left[record.id]
            if free_bytes is not None:
                free_bytes += record.size_bytes or 0
        kept.update({key: f"rule {number}: {reason}" for key, reason in why.items()})
    children = _children(left.values())
    verdicts = []
    for record in everything:
        if record.id in freed:
            verdicts.append(freed[record.id])
            continue
        pins = _pins(record, children[record.id])
        reason = "held" if pins else kept.get(record.id, "no rule concerns it")
        verdicts.append(Verdict(record, None, reason, pins))
    return verdicts


def _apply(
    rule: PrunePolicy,
    records: list[SnapshotRecord],
    now_ns: int,
    free_bytes: int | None,
    blob_bytes: int,
) -> tuple[list[tuple[SnapshotRecord, str]], dict[str, str]]:
    """Return what a rule removes with reasons, and why it leaves the others it concerns."""
    used = sum(record.size_bytes or 0 for record in records) + blob_bytes
    free = rule.min_free_space if free_bytes is None else free_bytes
    keep = rule.keep_bytes(used, free)
    allows = allowed_by(rule, now_ns)
    candidates = Candidates(records, allows)
    removed: list[tuple[SnapshotRecord, str]] = []
    gone: set[str] = set()
    while not rule.has_target or used > keep:
        record = candidates.take()
        if record is None:
            break
        limit = f"{used} bytes are used, {keep} may be" if rule.has_target else _concerns(rule)
        removed.append((record, limit))
        gone.add(record.id)
        used -= record.size_bytes or 0
        candidates.removed(record)
    why = {
        record.id: f"{used} bytes are used, {keep} may be"
        for record in records
        if record.id not in gone and allows(record)
    }
    return removed, why


def _concerns(rule: PrunePolicy) -> str:
    if rule.keep_duration_ns:
        return f"not used for {rule.keep_duration_ns // 10**9} s"
    return "the rule removes all that it concerns"


def _children(records: Iterable[SnapshotRecord]) -> defaultdict[str, list[str]]:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for record in records:
        for parent in record.parents:
            found[parent].append(record.id)
    return found


def _pins(record: SnapshotRecord, children: Sequence[str]) -> tuple[str, ...]:
    pins = []
    if record.in_use:
        pins.append("build")
    if record.leased:
        pins.append("image or lease")
    return (*pins, *children)
