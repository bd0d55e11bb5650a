"""Packets between engine and supervisor."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import boxwright
from boxwright.sandbox import protocol
from boxwright.sandbox.userns import IdRange, _mapping

SOURCE = Path(boxwright.__file__).parent.parent


def test_round_trip() -> None:
    message: dict[str, object] = {"op": "kill", "id": "é", "signal": 9}
    assert protocol.decode(protocol.encode(message)) == message


def test_limits() -> None:
    with pytest.raises(ValueError, match="too large"):
        protocol.encode({"x": "y" * protocol.MAX_PACKET_BYTES})
    with pytest.raises(TypeError):
        protocol.decode(b"[]")


def test_supervisor_loads_nothing_heavy() -> None:
    """It is started for every engine, so what it imports is start-up time."""
    code = (
        f"import sys; sys.path.insert(0, {str(SOURCE)!r}); "
        "import boxwright.sandbox.supervisor; print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-SIc", code], stdout=subprocess.PIPE, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert not loaded & {
        "asyncio",
        "subprocess",
        "threading",
        "google",
        "logging",
        "typing_extensions",
    }
    ours = {name for name in loaded if name.startswith("boxwright.")}
    assert {name.split(".")[1] for name in ours} <= {"linux", "sandbox", "_version"}


def test_subordinate_ids_follow_the_user() -> None:
    ranges = [IdRange(100000, 65536), IdRange(500000, 10)]
    assert _mapping(1001, ranges) == [
        *("0", "1001", "1"),
        *("1", "100000", "65536"),
        *("65537", "500000", "10"),
    ]
