"""What the worker says of the machine."""

from __future__ import annotations

import pytest

from boxwright.engine.worker import amd64_levels

V2 = "cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3"
V3 = "abm avx avx2 bmi1 bmi2 f16c fma movbe xsave"
V4 = "avx512f avx512bw avx512cd avx512dq avx512vl"


@pytest.mark.parametrize(
    ("flags", "levels"),
    [
        ("", []),
        (V2, ["v2"]),
        (V3, []),
        (f"{V2} {V3}", ["v2", "v3"]),
        (f"{V2} {V4}", ["v2"]),
        (f"fpu {V2} {V3} {V4}", ["v2", "v3", "v4"]),
    ],
)
def test_levels_follow_from_flags(flags: str, levels: list[str]) -> None:
    assert amd64_levels(frozenset(flags.split())) == levels
