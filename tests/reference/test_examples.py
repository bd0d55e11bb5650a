"""The Python examples drive upstream's daemon as they drive ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples/python"

pytestmark = [pytest.mark.reference, pytest.mark.root]


@pytest.mark.parametrize("name", ["graph.py", "failure.py"])
def test_examples(name: str, daemon_address: str) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), daemon_address],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if name == "graph.py":
        assert "read out of the result: hello from a graph" in done.stdout
    else:
        assert "Traceback" not in done.stderr
