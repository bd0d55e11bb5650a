"""What is measured: contexts, Dockerfiles and outputs. Pure data plus generators of contexts.

A generator takes the folder and a seed. Contents depend on the seed alone, so that both daemons
get the same bytes, and bytes that neither has seen before when the seed is a new one.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Make = Callable[[Path, int], None]

BASE = """FROM scratch AS base
COPY bin /bin
ENV PATH=/bin
"""
_COPY_DATA = "FROM scratch\nCOPY data /data\n"
_COPY_FROM = "FROM scratch AS a\nCOPY data /data\nFROM scratch\nARG NONCE\n"
_COPY_FROM += "COPY --from=a /data /data-$NONCE\n"


def _base(context: Path) -> None:
    (context / "bin").mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "/bin/busybox", context / "bin/busybox")
    for name in ("sh", "true", "cat", "dd", "sleep", "sha256sum"):
        (context / "bin" / name).symlink_to("busybox")


def _tiny(context: Path, _seed: int) -> None:
    _base(context)
    (context / "Dockerfile").write_text(BASE + "ARG NONCE\nRUN echo $NONCE > /out\n")


def _many_runs(context: Path, _seed: int) -> None:
    _base(context)
    (context / "Dockerfile").write_text(BASE + "ARG NONCE\n" + "RUN true\n" * 30)


def _ten_layers(context: Path, _seed: int) -> None:
    """Ten steps that write 50 MB each, half of it as compressible as programs are."""
    _base(context)
    size = (context / "bin/busybox").stat().st_size
    programs = " ".join(["/bin/busybox"] * max(1, 25_000_000 // size))
    steps = "".join(
        f"RUN dd if=/dev/urandom of=/r{n} bs=1M count=25 && cat {programs} > /t{n}\n"
        for n in range(10)
    )
    (context / "Dockerfile").write_text(BASE + "ARG NONCE\n" + steps)


def _team(context: Path, _seed: int) -> None:
    _base(context)
    steps = "".join(f"RUN echo $NONCE {number} > /{number}\n" for number in range(3))
    (context / "Dockerfile").write_text(BASE + "ARG NONCE\n" + steps)


def _files(count: int, size: int, dockerfile: str = _COPY_DATA) -> Make:
    """Return a generator of ``count`` files of ``size`` to ``size + 511`` bytes."""

    def make(context: Path, seed: int) -> None:
        source = random.Random(seed)
        for index in range(count):
            folder = context / "data" / f"d{index // 200:03}"
            if index % 200 == 0:
                folder.mkdir(parents=True, exist_ok=True)
            (folder / f"f{index:05}").write_bytes(source.randbytes(size + index % 512))
        (context / "Dockerfile").write_text(dockerfile)

    return make


def _large(context: Path, seed: int) -> None:
    """1 GiB in four files."""
    (context / "data").mkdir(parents=True)
    source = random.Random(seed)
    block = source.randbytes(1 << 20)
    for index in range(4):
        with (context / "data" / f"f{index}").open("wb") as file:
            for number in range(256):
                file.write(source.randbytes(8) + number.to_bytes(4, "big") + block[12:])
    (context / "Dockerfile").write_text(_COPY_DATA)


def _layer(context: Path, seed: int) -> None:
    """About 500 MB in 17,600 files, half of it compressible."""
    source = random.Random(seed)
    words = [source.randbytes(8).hex().encode() for _ in range(400)]
    for index in range(17_600):
        folder = context / "data" / f"d{index // 300:03}"
        folder.mkdir(parents=True, exist_ok=True)
        half = source.randbytes(13_000)
        text = b" ".join(source.choices(words, k=900))
        (folder / f"f{index:05}").write_bytes(half + text)
    (context / "Dockerfile").write_text(_COPY_DATA)


def _change_one(context: Path, seed: int) -> None:
    path = context / "data/d001/f00201"
    path.write_bytes(random.Random(seed).randbytes(1100))


def many_records(count: int, nonce: str) -> bytes:
    """Return a definition of so many small file operations, in chains of twenty, merged."""
    from boxwright import llb

    states = []
    for first in range(0, count, 20):
        state = llb.scratch()
        for number in range(first, min(first + 20, count)):
            state = state.file(llb.mkfile(f"/f{number}", f"{nonce} {number}".encode()))
        states.append(state)
    while len(states) > 1:
        states = [llb.merge(states[at : at + 25]) for at in range(0, len(states), 25)]
    return states[0].marshal().SerializeToString()


@dataclass(frozen=True)
class Scenario:
    """One measurement.

    Attributes:
        name: as printed.
        make: writes the context.
        fresh: whether every run gets a nonce, so that its steps are not in the cache.
        new_context: whether the contents are unknown to the daemon in every run.
        only_output: whether the steps have run before, and their layers are made by none.
        change: what happens to the context before each pair of runs.
        after_other: whether another project is built, not timed, before each run.
        output: buildctl's ``--output``; ``{dest}`` is a file on the same disk, ``{registry}`` a
            registry's address and ``{nonce}`` differs in every run.
        clients: how many build at the same time.
        mark: the ratio ours / theirs to reach, if one is set.
    """

    name: str
    make: Make
    fresh: bool = False
    new_context: bool = False
    only_output: bool = False
    change: Make | None = None
    after_other: bool = False
    output: str = ""
    clients: int = 1
    mark: float | None = None


_TO_FILE = "type=oci,dest={dest},force-compression=true,compression="

SCENARIOS = (
    Scenario("tiny build, cold", _tiny, fresh=True),
    Scenario("tiny build, unchanged", _tiny, mark=1.5),
    Scenario("30 x RUN true", _many_runs, fresh=True, mark=0.6),
    Scenario("8 clients, COPY and 3 RUN each", _team, fresh=True, clients=8),
    Scenario("20,000 small files, cold", _files(20_000, 1024), new_context=True, mark=0.8),
    Scenario("10,000 files, unchanged", _files(10_000, 1024), mark=0.6),
    Scenario(
        "10,000 files, after another project",
        _files(10_000, 1024),
        after_other=True,
        mark=0.4,
    ),
    Scenario(
        "1 of 10,000 files changed, image",
        _files(10_000, 1024),
        change=_change_one,
        output="type=image,name=bench.invalid/changed",
        mark=0.5,
    ),
    Scenario("COPY --from, 20,000 files", _files(20_000, 1024, _COPY_FROM), fresh=True),
    Scenario("1 GiB context, cold", _large, new_context=True),
    Scenario(
        "500 MB layer, gzip export",
        _layer,
        new_context=True,
        only_output=True,
        output=_TO_FILE + "gzip",
        mark=0.12,
    ),
    Scenario(
        "500 MB layer, gzip of equal size",
        _layer,
        new_context=True,
        only_output=True,
        output=_TO_FILE + "gzip,compression-level=6",
        mark=0.35,
    ),
    Scenario(
        "500 MB layer, zstd export",
        _layer,
        new_context=True,
        only_output=True,
        output=_TO_FILE + "zstd",
        mark=0.6,
    ),
    Scenario(
        "500 MB layer, uncompressed",
        _layer,
        new_context=True,
        only_output=True,
        output=_TO_FILE + "uncompressed",
        mark=0.6,
    ),
    Scenario(
        "ten steps of 50 MB, gzip export",
        _ten_layers,
        fresh=True,
        output="type=oci,dest={dest}",
        mark=0.5,
    ),
    Scenario(
        "120 MB layer, made and pushed",
        _files(400, 300_000),
        new_context=True,
        output="type=image,name={registry}/bench:{nonce},push=true,registry.insecure=true",
    ),
)
