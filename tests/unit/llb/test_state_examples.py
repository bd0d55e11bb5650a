"""The programs under ``examples/llb`` print definitions that can be read back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from boxwright.llb import from_definition
from boxwright.wire.pb import ops_pb2 as pb

EXAMPLES = sorted((Path(__file__).parents[3] / "examples/llb").glob("*.py"))


def test_there_are_examples() -> None:
    assert {path.stem for path in EXAMPLES} == {"hello", "parallel", "service"}


@pytest.mark.parametrize("program", EXAMPLES, ids=lambda path: path.stem)
def test_the_definition_is_complete(program: Path) -> None:
    made = subprocess.run([sys.executable, program], capture_output=True, check=True)
    definition = pb.Definition.FromString(made.stdout)
    assert from_definition(definition).marshal() == definition
