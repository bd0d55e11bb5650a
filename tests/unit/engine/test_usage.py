"""Pruning arithmetic and order: pure, so every rule can be looked at."""

from __future__ import annotations

import pytest

from boxwright.config.schema import GcPolicyConfig, OciWorkerConfig
from boxwright.engine.settings import gc_policies
from boxwright.engine.usage import PrunePolicy, deletion_order, field_of, to_message
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
    order = [r.id for r in deletion_order(records)]
    assert order[0] == "old-rare"
    assert order[-1] == "new-often"
    assert deletion_order([]) == []


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
        (OciWorkerConfig(gc_keep_storage="30GB"), (30, 100, 201)),
    ],
)
def test_a_limit_of_the_configuration_stands_alone(
    worker: OciWorkerConfig, limits: tuple[int, int, int]
) -> None:
    _, *rules = gc_policies(worker, 1000 * GIB)
    for rule in rules:
        found = (rule.reserved_space, rule.max_used_space, rule.min_free_space)
        assert found == tuple(size * 10**9 for size in limits)


def test_configured_policies() -> None:
    rule = GcPolicyConfig(all=True, keep_duration="1h", keep_bytes="5GB", max_used_space="10%")
    (policy,) = gc_policies(OciWorkerConfig(gc_policy=(rule,)), 1000)
    assert policy == PrunePolicy(
        all=True, keep_duration_ns=3600 * 10**9, reserved_space=5 * 10**9, max_used_space=100
    )
