"""The committed protobuf code is what tools/genproto makes of proto/."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def test_generated_code_is_current(tmp_path):
    pytest.importorskip("grpc_tools")
    subprocess.run([sys.executable, ROOT / "tools" / "genproto", tmp_path], check=True)
    made = tmp_path / "boxwright" / "wire" / "pb"
    committed = ROOT / "src" / "boxwright" / "wire" / "pb"
    names = sorted(path.name for path in made.iterdir())
    assert names == sorted(p.name for p in committed.iterdir() if p.suffix in {".py", ".pyi"})
    for name in names:
        assert (made / name).read_bytes() == (committed / name).read_bytes(), name
