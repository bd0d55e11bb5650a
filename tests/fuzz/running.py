"""Running a fuzz target: guided by coverage where Atheris is there, with random inputs else."""

from __future__ import annotations

import importlib
import random
import sys
import time
from collections.abc import Callable, Iterable, Sequence

Check = Callable[[bytes], None]


def joined(words: Sequence[bytes], chooser: random.Random) -> bytes:
    """Return some of the words one after the other."""
    return b"".join(chooser.choices(words, k=chooser.randrange(1, 30)))


def mutated(seeds: Sequence[bytes], chooser: random.Random) -> bytes:
    """Return one of the seeds with some bytes changed, lost, repeated or from another one."""
    data = bytearray(chooser.choice(seeds))
    for _ in range(chooser.randrange(6)):
        at = chooser.randrange(len(data) + 1)
        end = min(len(data), at + chooser.randrange(1, 40))
        match chooser.randrange(5):
            case 0:
                data[at:end] = chooser.randbytes(end - at)
            case 1:
                del data[at:end]
            case 2:
                data[at:at] = data[at:end]
            case 3:
                other = chooser.choice(seeds)
                start = chooser.randrange(len(other) + 1)
                data[at:end] = other[start : start + end - at]
            case _:
                data[at:at] = bytes([chooser.choice((0, 1, 0x7F, 0x80, 0xFF))])
    return bytes(data)


def throw(check: Check, inputs: Iterable[bytes], seconds: float) -> int:
    """Check inputs for a while; return how many."""
    end = time.monotonic() + seconds
    count = 0
    for data in inputs:
        check(data)
        count += 1
        if time.monotonic() > end:
            break
    return count


def main(check: Check, make: Callable[[random.Random], bytes]) -> None:
    """Fuzz with Atheris, or for ten seconds without."""
    try:
        atheris = importlib.import_module("atheris")
    except ImportError:
        chooser = random.Random(0)
        inputs = iter(lambda: make(chooser), None)
        print(f"no atheris: {throw(check, inputs, 10.0)} random inputs checked")
        return
    atheris.instrument_all()
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
