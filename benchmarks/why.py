"""What it costs an unchanged build that ``boxwright why`` can explain it.

    python benchmarks/why.py --builds 200

Two daemons run the same builds in turns, one of which keeps no keys. The daemons' CPU time is
compared, as it depends less on the machine's other work than the time on the wall; the client's
process, which pays for a build too, is not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from daemons import Daemon, our_argv, start
from run import filesystem
from scenarios import BASE

from boxwright.client import BuildRequest, connect

# The other daemon: all but the keys.
WITHOUT = """
import sys
from boxwright.cli.main import main
from boxwright.engine.solve import SolveRun
async def nothing(self, bridge): return None
SolveRun._keys = nothing
main(["boxwright", *sys.argv[1:]])
"""
TURN = 20


def write_context(context: Path, files: int) -> None:
    """Write a base, so many files, and three steps over them."""
    (context / "bin").mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "/bin/busybox", context / "bin/busybox")
    (context / "bin/sh").symlink_to("busybox")
    for index in range(files):
        folder = context / "data" / f"d{index // 200:03}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"f{index:05}").write_text(f"file {index}")
    text = BASE + "COPY data /data\nRUN echo a > /a\nRUN echo b > /b\n"
    (context / "Dockerfile").write_text(text)


async def turn(daemon: Daemon, context: Path, builds: int) -> float:
    """Run builds one after the other; return the daemon's CPU seconds for one."""
    before = daemon.cpu_s()
    async with connect(daemon.address) as client:
        for _ in range(builds):
            locals_ = {"context": context, "dockerfile": context}
            await client.build(BuildRequest(frontend="dockerfile.v0", locals=locals_))
    return (daemon.cpu_s() - before) / builds


async def measure(daemons: list[Daemon], context: Path, builds: int, name: str) -> None:
    """Compare in turns; print the medians of all turns."""
    for daemon in daemons:
        await turn(daemon, context, 3)
    costs: dict[str, list[float]] = {daemon.name: [] for daemon in daemons}
    for number in range(max(1, builds // TURN)):
        for daemon in daemons if number % 2 == 0 else daemons[::-1]:
            costs[daemon.name].append(await turn(daemon, context, TURN))
    kept, plain = (statistics.median(costs[daemon.name]) * 1e3 for daemon in daemons)
    print(f"{name:<24}{kept:>10.2f}{plain:>10.2f}{(kept - plain) / plain:>10.1%}  mark 2 %")


def main() -> None:
    """Parse the command line, start both daemons, measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--buildctl", default=shutil.which("buildctl"), help="to wait with")
    parser.add_argument("--builds", type=int, default=200, help="of each kind")
    parser.add_argument("--work", default=None, help="where contexts and state go")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="boxwright-bench-", dir=options.work))
    try:
        print(
            f"# state on {filesystem(str(work))}; {options.builds} builds; {os.cpu_count()} cores"
        )
        print(f"{'CPU ms of one build':<24}{'with':>10}{'without':>10}{'cost':>10}")
        with contextlib.ExitStack() as stack:
            without = [sys.executable, "-c", WITHOUT, *our_argv()[1:]]
            daemons = [
                start(stack, name, argv, work, options.buildctl)
                for name, argv in (("with", our_argv()), ("without", without))
            ]
            for name, files in (("unchanged, 4 steps", 10), ("unchanged, 10,000 files", 10_000)):
                context = work / f"context-{files}"
                write_context(context, files)
                asyncio.run(measure(daemons, context, options.builds, name))
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
