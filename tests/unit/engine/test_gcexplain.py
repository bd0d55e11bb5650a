"""Garbage collection explained: the same decisions as a collection makes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxwright.config.schema import GcPolicyConfig, OciWorkerConfig
from boxwright.engine.gcexplain import explain, policy_of, record_of
from boxwright.engine.settings import OnlyFloorError, gc_policies
from boxwright.engine.usage import Candidates, PrunePolicy, allowed_by
from boxwright.snapshots.usage import SnapshotRecord
from boxwright.wire.pb import control_pb2, worker_pb2


def record(
    name: str,
    used: int = 0,
    *,
    parents: tuple[str, ...] = (),
    size: int = 10,
    kind: str = "regular",
    count: int = 1,
    in_use: bool = False,
    leased: bool = False,
) -> SnapshotRecord:
    return SnapshotRecord(
        name, parents, "", kind, 0, used, count, size, in_use=in_use, leased=leased
    )


def freed(records: list[SnapshotRecord], rule: PrunePolicy, *, now: int = 100) -> list[str]:
    return [v.record.id for v in explain(records, [rule], now) if v.freed_by]


def test_the_newest_leaf_outlives_an_older_parent() -> None:
    records = [
        record("old", 1),
        record("old-child", 2, parents=("old",)),
        record("new", 9),
    ]
    assert freed(records, PrunePolicy(all=True, max_used_space=10)) == ["old", "old-child"]


def test_what_is_held_stays_and_says_by_whom() -> None:
    records = [
        record("base"),
        record("used", parents=("base",), in_use=True),
        record("tagged", leased=True),
    ]
    verdicts = {v.record.id: v for v in explain(records, [PrunePolicy(all=True)], 100)}
    assert not any(v.freed_by for v in verdicts.values())
    assert verdicts["base"].pinned_by == ("used",)
    assert verdicts["used"].pinned_by == ("build",)
    assert verdicts["tagged"].pinned_by == ("image or lease",)


def test_rules_apply_in_their_order() -> None:
    rules = [
        PrunePolicy(filters=("type==source.local",), keep_duration_ns=50),
        PrunePolicy(max_used_space=20),
        PrunePolicy(all=True, max_used_space=1000),
    ]
    records = [
        record("context", 10, kind="source.local"),
        record("fresh-context", 90, kind="source.local"),
        record("a", 20),
        record("b", 30),
        record("internal", 5, kind="internal"),
    ]
    verdicts = {v.record.id: v for v in explain(records, rules, 100)}
    assert {k: v.freed_by for k, v in verdicts.items()} == {
        "context": 1,
        "fresh-context": None,
        "a": 2,
        "b": 2,
        "internal": None,
    }
    assert verdicts["fresh-context"].reason.startswith("rule 3")
    assert "40 bytes are used, 20 may be" in verdicts["a"].reason


def test_free_space_counts_when_it_is_known() -> None:
    rule = PrunePolicy(all=True, min_free_space=50)
    records = [record("a", 1), record("b", 2)]
    assert freed(records, rule) == []
    verdicts = explain(records, [rule], 100, free_bytes=45)
    assert [v.record.id for v in verdicts if v.freed_by] == ["a"]


def test_blobs_are_used_space_too() -> None:
    rule = PrunePolicy(all=True, max_used_space=25)
    records = [record("a", 1), record("b", 2)]
    assert freed(records, rule) == []
    verdicts = explain(records, [rule], 100, blob_bytes=10)
    assert [v.reason for v in verdicts if v.freed_by] == ["rule 1: 30 bytes are used, 25 may be"]


@given(
    st.lists(
        st.tuples(
            st.integers(0, 50), st.integers(0, 5), st.integers(0, 9), st.booleans(), st.booleans()
        ),
        max_size=20,
    ),
    st.integers(1, 150),
)
def test_a_collection_ends_at_its_limit_and_never_takes_a_parent_first(
    items: list[tuple[int, int, int, bool, bool]], limit: int
) -> None:
    records: list[SnapshotRecord] = []
    for number, (used, count, back, in_use, on_top) in enumerate(items):
        parents = (records[-1 - back % len(records)].id,) if on_top and records else ()
        records.append(record(f"r{number}", used, parents=parents, count=count, in_use=in_use))
    rule = PrunePolicy(all=True, max_used_space=limit)
    candidates = Candidates(records, allowed_by(rule, 100))
    left = {r.id: r for r in records}
    total = 10 * len(left)
    while total > limit and (item := candidates.take()) is not None:
        assert not item.in_use
        assert not any(item.id in r.parents for r in left.values())
        del left[item.id]
        candidates.removed(item)
        total -= 10
    if total > limit:  # all that is left is held, by itself or by what stands on it
        for r in left.values():
            assert r.in_use or any(r.id in other.parents for other in left.values())
    gone = {v.record.id for v in explain(records, [rule], 100) if v.freed_by}
    assert gone == {r.id for r in records} - set(left)


def test_messages_of_the_wire() -> None:
    message = control_pb2.UsageRecord(
        ID="x", Size=7, InUse=True, Shared=True, Parents=["p"], RecordType="regular"
    )
    message.LastUsedAt.FromNanoseconds(5)
    made = record_of(message)
    assert (made.id, made.size_bytes, made.last_used_ns) == ("x", 7, 5)
    assert (made.in_use, made.leased, made.parents) == (True, True, ("p",))
    rule = worker_pb2.GCPolicy(all=True, keepDuration=3, filters=["a"], maxUsedSpace=9)
    assert policy_of(rule) == PrunePolicy(
        all=True, filters=("a",), keep_duration_ns=3, max_used_space=9
    )


@pytest.mark.parametrize(
    "rules",
    [
        (GcPolicyConfig(reserved_space="10GB"),),
        (GcPolicyConfig(all=True, keep_bytes=1000), GcPolicyConfig(reserved_space="1GB")),
    ],
)
def test_a_policy_of_floors_alone_is_refused(rules: tuple[GcPolicyConfig, ...]) -> None:
    with pytest.raises(OnlyFloorError) as caught:
        gc_policies(OciWorkerConfig(gc_policy=rules), 1 << 40)
    assert "maxUsedSpace" in caught.value.hint


@pytest.mark.parametrize(
    "rule",
    [
        GcPolicyConfig(reserved_space="10GB", max_used_space="20GB"),
        GcPolicyConfig(reserved_space="10GB", min_free_space="10%"),
        GcPolicyConfig(keep_bytes="10GB", keep_duration="48h"),
        GcPolicyConfig(all=True),
    ],
)
def test_a_policy_with_a_limit_is_taken(rule: GcPolicyConfig) -> None:
    assert len(gc_policies(OciWorkerConfig(gc_policy=(rule,)), 1 << 40)) == 1
