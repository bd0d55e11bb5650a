"""What is measured: contexts, Dockerfiles and outputs. Pure data plus generators of contexts."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

BASE = """FROM scratch AS base
COPY bin /bin
ENV PATH=/bin
"""


def _base(context: Path) -> None:
    (context / "bin").mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "/bin/busybox", context / "bin/busybox")
    for name in ("sh", "true", "cat", "dd", "sleep", "sha256sum"):
        (context / "bin" / name).symlink_to("busybox")


def _tiny(context: Path) -> None:
    _base(context)
    (context / "Dockerfile").write_text(BASE + "ARG NONCE\nRUN echo $NONCE > /out\n")


def _many_runs(context: Path) -> None:
    _base(context)
    (context / "Dockerfile").write_text(BASE + "ARG NONCE\n" + "RUN true\n" * 30)


def _files(count: int, size: int) -> Callable[[Path], None]:
    def make(context: Path) -> None:
        source = random.Random(7)
        for index in range(count):
            folder = context / "data" / f"d{index // 200:03}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"f{index:05}").write_bytes(source.randbytes(size + index % 512))
        (context / "Dockerfile").write_text("FROM scratch\nARG NONCE\nCOPY data /data-$NONCE\n")

    return make


def _large(context: Path) -> None:
    (context / "data").mkdir(parents=True)
    block = os.urandom(1 << 20)
    for index in range(4):
        with (context / "data" / f"f{index}").open("wb") as file:
            for number in range(256):
                file.write(number.to_bytes(4, "big") + block[4:])
    (context / "Dockerfile").write_text("FROM scratch\nARG NONCE\nCOPY data /data-$NONCE\n")


def _layer(context: Path) -> None:
    """About 500 MB in 17,600 files, half of it compressible."""
    source = random.Random(11)
    words = [source.randbytes(8).hex().encode() for _ in range(400)]
    for index in range(17_600):
        folder = context / "data" / f"d{index // 300:03}"
        folder.mkdir(parents=True, exist_ok=True)
        half = source.randbytes(13_000)
        text = b" ".join(source.choices(words, k=900))
        (folder / f"f{index:05}").write_bytes(half + text)
    (context / "Dockerfile").write_text("FROM scratch\nCOPY data /data\n")


@dataclass(frozen=True)
class Scenario:
    """One measurement.

    Attributes:
        name: as printed.
        make: writes the context.
        fresh: whether every run gets a nonce, so that nothing of it is in the cache.
        new_context: whether the context is unknown to the daemon in every run.
        output: buildctl's ``--output``; ``{dest}`` is a file on the same disk.
        mark: the ratio ours / theirs to reach, if one is set.
    """

    name: str
    make: Callable[[Path], None]
    fresh: bool = True
    new_context: bool = False
    output: str = ""
    mark: float | None = None


SCENARIOS = (
    Scenario("tiny build, cold", _tiny),
    Scenario("tiny build, unchanged", _tiny, fresh=False, mark=1.5),
    Scenario("30 x RUN true", _many_runs, mark=0.6),
    Scenario("20,000 small files, cold", _files(20_000, 1024), new_context=True, mark=0.8),
    Scenario("10,000 files, unchanged", _files(10_000, 1024), fresh=False),
    Scenario("1 GiB context, cold", _large, new_context=True),
    Scenario(
        "500 MB layer, gzip export",
        _layer,
        fresh=False,
        output="type=oci,dest={dest},compression=gzip,force-compression=true",
        mark=0.3,
    ),
)
