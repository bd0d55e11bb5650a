"""Pruning arithmetic and order: pure, so every rule can be looked at."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxwright.config.schema import GcPolicyConfig, OciWorkerConfig
from boxwright.core.clock import SystemClock
from boxwright.engine.engine import Engine
from boxwright.engine.settings import gc_policies
from boxwright.engine.usage import Candidates, PrunePolicy, Usage, field_of, to_message
from boxwright.snapshots.usage import SnapshotRecord

GIB = 1 << 30


def record(name: str, *, used_ns: int = 1, count: int = 1) -> SnapshotRecord:
    return SnapshotRecord(name, (), name, "regular", 1, used_ns, count, 10, in_use=False)


@pytest.mark.parametrize(
    ("policy", "used", "free", "keep"),
    [
        (PrunePolicy(), 100, 0, 0),
        (PrunePolicy(max_used_space=60), 100, 0, 60),
        (PrunePolicy(reserved_space=80, max_used_space=60), 100, 0, 80),
        (PrunePolicy(min_free_space=30), 100, 10, 80),
        (PrunePolicy(min_free_space=30), 100, 50, 100),
        (PrunePolicy(max_used_space=90, min_free_space=30), 100, 10, 80),
        (PrunePolicy(max_used_space=70, min_free_space=30), 100, 10, 70),
        (PrunePolicy(reserved_space=95, min_free_space=30), 100, 10, 95),
    ],
)
def test_keep_bytes(policy: PrunePolicy, used: int, free: int, keep: int) -> None:
    assert policy.keep_bytes(used, free) == keep


def test_rarely_and_long_ago_used_go_first() -> None:
    records = [
        record("new-often", used_ns=30, count=9),
        record("old-rare", used_ns=10, count=1),
        record("old-often", used_ns=10, count=9),
        record("new-rare", used_ns=30, count=1),
    ]
    order = [r.id for r in Candidates(records, lambda _: True).take_all()]
    assert order[0] == "old-rare"
    assert order[-1] == "new-often"
    assert Candidates([], lambda _: True).take() is None


def rank(records: Sequence[SnapshotRecord]) -> dict[str, float]:
    """Return each record's place among times and counts, as BuildKit computes it."""
    times = sorted({each.last_used_ns for each in records})
    counts = sorted({each.usage_count for each in records})
    return {
        each.id: (times.index(each.last_used_ns) + 1) / len(times)
        + (counts.index(each.usage_count) + 1) / len(counts)
        for each in records
    }


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 4), st.booleans()), max_size=25),
    st.randoms(use_true_random=False),
)
def test_every_record_is_the_first_of_those_that_are_left(
    facts: list[tuple[int, int, bool]], chance: Random
) -> None:
    records: list[SnapshotRecord] = []
    for number, (used_ns, count, has_parent) in enumerate(facts):
        made = record(f"r{number}", used_ns=used_ns, count=count)
        if has_parent and records:
            made = replace(made, parents=(chance.choice(records).id,))
        records.append(made)
    with_children = {parent for each in records for parent in each.parents}
    shown = [replace(each, shared=each.id in with_children) for each in records]
    candidates = Candidates(shown, lambda _: True)
    left = {each.id: each for each in records}
    while (taken := candidates.take()) is not None:
        leaves = [
            each
            for each in left.values()
            if not any(each.id in other.parents for other in left.values())
        ]
        ranks = rank(leaves)
        assert ranks[taken.id] == min(ranks.values())
        del left[taken.id]
        candidates.removed(taken)
    assert not left


def test_fields_and_message() -> None:
    made = record("x")
    assert field_of(made, ("type",)) == "regular"
    assert field_of(made, ("inuse",)) is None
    assert field_of(made, ("immutable",)) == field_of(made, ("private",)) == ""
    message = to_message(made)
    assert (message.ID, message.Size, message.InUse) == ("x", 10, False)


def test_default_policies_have_a_ceiling() -> None:
    policies = gc_policies(OciWorkerConfig(), 100 * GIB)
    assert len(policies) == 4
    assert policies[0].max_used_space == 512 * 10**6
    for policy in policies[1:]:  # of 100 GiB: 10, 80 and 20 %, rounded as BuildKit does
        assert policy.reserved_space == 10 * 10**9
        assert policy.max_used_space == 81 * 10**9
        assert policy.min_free_space == 21 * 10**9
    *_, large = gc_policies(OciWorkerConfig(), 1000 * GIB)
    assert (large.reserved_space, large.max_used_space) == (10 * 10**9, 100 * 10**9)
    assert policies[-1].all


@pytest.mark.parametrize(
    ("worker", "limits"),
    [
        (OciWorkerConfig(min_free_space="50GB"), (0, 0, 50)),
        (OciWorkerConfig(max_used_space="500GB"), (0, 500, 0)),
        (OciWorkerConfig(max_used_space="500GB", reserved_space="30GB"), (30, 500, 0)),
        (OciWorkerConfig(reserved_space="30GB"), (30, 0, 0)),
        (OciWorkerConfig(gc_keep_storage="30GB"), (30, 0, 0)),
        (OciWorkerConfig(gc_keep_storage="30GB", min_free_space="50GB"), (0, 0, 50)),
    ],
)
def test_a_limit_of_the_configuration_stands_alone(
    worker: OciWorkerConfig, limits: tuple[int, int, int]
) -> None:
    _, *rules = gc_policies(worker, 1000 * GIB)
    for rule in rules:
        found = (rule.reserved_space, rule.max_used_space, rule.min_free_space)
        assert found == tuple(size * GIB for size in limits)


def test_what_is_reserved_is_the_ceiling_where_no_other_is() -> None:
    *_, found = gc_policies(OciWorkerConfig(reserved_space=2000), 1 << 40)
    assert found.reserved_space == found.keep_bytes(5000, 0) == 2000


def test_configured_policies() -> None:
    rule = GcPolicyConfig(all=True, keep_duration="1h", keep_bytes="5GB", max_used_space="10%")
    (policy,) = gc_policies(OciWorkerConfig(gc_policy=(rule,)), 1000 * GIB)
    assert policy == PrunePolicy(
        all=True, keep_duration_ns=3600 * 10**9, reserved_space=5 * GIB, max_used_space=101 * 10**9
    )


class SlowUsage:
    """Collections that take a time, on a clock that only they and waiting move on."""

    def __init__(self, took_s: float) -> None:
        self.took_s = took_s
        self.now_s = 1000.0
        self.waits: list[float] = []

    async def collect(self, _rules: object) -> AsyncIterator[SnapshotRecord]:
        self.now_s += self.took_s
        yield record("gone")

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now_s += seconds


@pytest.mark.parametrize(
    ("took_s", "idle_s", "wait_s"),
    [
        (0.01, 0, 1),
        (2, 0, 40),
        (2, 15, 25),
        (2, 3600, 1),  # it has rested long since
        (300, 0, 60),  # there was much to remove
    ],
)
def test_a_collection_rests_after_the_last_one(
    monkeypatch: pytest.MonkeyPatch, took_s: float, idle_s: float, wait_s: float
) -> None:
    usage = SlowUsage(took_s)
    engine = Engine.__new__(Engine)
    engine.usage = usage  # type: ignore[assignment]
    engine._policies, engine._gc_rests_until_s = [], 0.0
    clock = SimpleNamespace(monotonic=lambda: usage.now_s)
    monkeypatch.setattr("boxwright.engine.engine.time", clock)
    monkeypatch.setattr("boxwright.engine.engine.asyncio", SimpleNamespace(sleep=usage.sleep))

    async def main() -> None:
        await engine._collect()
        usage.now_s += idle_s
        await engine._collect()

    asyncio.run(main())
    assert usage.waits == [1, pytest.approx(wait_s)]


@pytest.mark.parametrize(
    ("removed", "steps"),
    [
        ((0, 0), ["blobs", "rule", "rule"]),
        ((2, 0), ["blobs", "rule", "blobs", "rule"]),
        ((0, 1), ["blobs", "rule", "rule", "blobs"]),
    ],
)
def test_blobs_of_what_a_rule_removed_go_before_the_next_rule(
    monkeypatch: pytest.MonkeyPatch, removed: tuple[int, ...], steps: list[str]
) -> None:
    """They would count as used space, and more would be removed than must be."""
    usage = Usage(Any, Any, SystemClock(), is_idle=lambda: True)  # type: ignore[arg-type]
    done, numbers = [], iter(removed)

    async def prune(_policy: PrunePolicy) -> AsyncIterator[SnapshotRecord]:
        done.append("rule")
        for number in range(next(numbers)):
            yield record(f"r{number}")

    async def collect_blobs() -> int:
        done.append("blobs")
        return 0

    monkeypatch.setattr(usage, "_prune", prune)
    monkeypatch.setattr(usage, "_collect_blobs", collect_blobs)

    async def main() -> None:
        gone = [each async for each in usage.collect([PrunePolicy()] * len(removed))]
        assert len(gone) == sum(removed)

    asyncio.run(main())
    assert done == steps
