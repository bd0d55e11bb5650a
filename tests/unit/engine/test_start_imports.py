"""What a start does not load: each of these costs a tenth of a second or more."""

from __future__ import annotations

import subprocess
import sys

import pytest

_START = {
    "boxwright.cli.main": ("asyncio", "click", "google.protobuf"),
    "boxwright.cli.boxwright": ("asyncio", "rich", "google.protobuf"),
    "boxwright.daemon.service": (
        "aiohttp",
        "boxwright.dockerfile.frontend",
        "boxwright.engine.bridge",
        "boxwright.engine.solve",
        "boxwright.exporters.image",
        "cryptography",
        "rich",
    ),
    "boxwright.client.client": ("aiohttp", "cryptography", "rich"),
}


@pytest.mark.parametrize("module", _START)
def test_what_is_slow_to_import_waits_until_it_is_wanted(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)

    loaded = set(done.stdout.decode().split())
    assert loaded.isdisjoint(_START[module])
    assert module in loaded
