"""Tables and sizes as BuildKit's tools print them."""

from __future__ import annotations

import pytest

from boxwright.cli import units, views
from boxwright.wire.pb import control_pb2


def test_columns_end_at_multiples_of_eight() -> None:
    text = "ID:\tx\nCreated at:\ty\n\nLabels:\n\tshort:\t1\n\tmuch longer than that:\t2\n"
    assert units.tabbed(text) == (
        "ID:\t\tx\nCreated at:\ty\n\nLabels:\n\tshort:\t\t\t1\n\tmuch longer than that:\t2\n"
    )
    assert units.tabbed("") == ""
    assert units.tabbed("seven77\tx\n") == "seven77\tx\n"
    assert units.tabbed("eight888\tx\na\ty\n") == "eight888\tx\na\t\ty\n"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0B"), (999, "999B"), (512_000_000, "512MB"), (54_110_634_803, "54.110634803GB")],
)
def test_exact_sizes(count: int, text: str) -> None:
    assert units.exact_size(count) == text


def test_usage_as_a_table() -> None:
    record = control_pb2.UsageRecord(ID="a" * 25, Size=101_860_000, Shared=True, Mutable=True)
    head, row = views.usage_table([record]).splitlines()
    assert head == "ID" + "\t" * 9 + "RECLAIMABLE\tSIZE\t\tLAST ACCESSED"
    assert row == f"{'a' * 25 + '*':<71}\ttrue       \t101.86MB*\t"
    assert views.usage_table([]) == "ID\tRECLAIMABLE\tSIZE\tLAST ACCESSED\n"
    assert views.usage_table([record], with_head=False) == row + "\n"


def test_times_of_records() -> None:
    record = control_pb2.UsageRecord(ID="x")
    record.CreatedAt.FromNanoseconds(1_795_255_226_681_986_519)
    lines = views.usage_details(record).splitlines()
    assert lines[:2] == ["ID:\t\tx", "Created at:\t2026-11-21 10:00:26.681986519 +0000 UTC"]
