"""The work of parsing and converting grows with the length of a file, not with its square."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

import pytest

from boxwright.dockerfile import frontend
from boxwright.dockerfile.lint import LintConfig, Linter
from boxwright.dockerfile.parser import parse_dockerfile
from boxwright.testing.frontend import MemoryBridge

FORMS = {
    "instructions": ("FROM scratch\n", "ENV a=b c=$d\n", ""),
    "continuations": ("FROM scratch\nRUN a", " \\\n b", "\n"),
    "comments in continuations": ("FROM scratch\nRUN a \\\n", "# c\n", " b\n"),
    "heredoc": ("FROM scratch\nCOPY <<E /f\n", "line $x\n", "E\n"),
    "heredocs": ("FROM scratch\n", "RUN <<E\nx\nE\n", ""),
    "words": ("FROM scratch\nLABEL", " a=b", "\n"),
    "stages": ("", "FROM scratch\nCMD x\n", ""),
    "one word": ("FROM scratch\nENV a=", "${b:-c}", "\n"),
}


def calls_of(work: Callable[[], object]) -> int:
    """Count the calls of functions, ours and built in, while ``work`` runs."""
    count = 0

    def on_event(frame: object, event: str, arg: object) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    before = sys.getprofile()
    sys.setprofile(on_event)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


def doubled(work: Callable[[int], Callable[[], object]], size: int) -> float:
    """Return how many times more calls are made for an input twice as long."""
    work(size)()  # caches fill
    return calls_of(work(2 * size)) / calls_of(work(size))


@pytest.mark.parametrize("form", FORMS)
def test_parsing(form: str) -> None:
    head, middle, tail = FORMS[form]

    def work(count: int) -> Callable[[], object]:
        data = (head + middle * count + tail).encode()
        return lambda: parse_dockerfile(data, linter=Linter(LintConfig(experimental_all=True)))

    assert doubled(work, 200) < 2.3


@pytest.mark.parametrize("line", ["RUN a {n}", "COPY a b{n}", "ENV a=b{n}", "ARG a{n}=$a0"])
def test_converting(line: str) -> None:
    def work(count: int) -> Callable[[], object]:
        text = "FROM scratch\n" + "".join(line.format(n=n) + "\n" for n in range(count))
        bridge = MemoryBridge(sources={"local://dockerfile": {"Dockerfile": text.encode()}})
        return lambda: asyncio.run(frontend.build(bridge))

    assert doubled(work, 80) < 2.6
