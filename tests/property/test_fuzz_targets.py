"""A steady part of what the fuzz targets try: the same inputs in every run."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "fuzz"))

import fuzz_definition
import fuzz_tree_stream

TARGETS = {"definition": (fuzz_definition, 1500), "tree stream": (fuzz_tree_stream, 150)}


@pytest.mark.parametrize("name", list(TARGETS))
def test_only_typed_errors_come_out(name: str) -> None:
    target, count = TARGETS[name]
    chooser = random.Random(7)
    for seed in target.seeds():
        target.check(seed)
    for _ in range(count):
        target.check(target.make(chooser))
