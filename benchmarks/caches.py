"""Remote caches in a registry: export of all steps and import, ours / theirs, interleaved.

    python benchmarks/caches.py --buildctl /path/buildctl --buildkitd /path/buildkitd

Needs docker-registry. The build has run when its cache is exported, so what is measured is an
unchanged build and the export; at last a build and its export together. Wall time is the
client's, from start to exit; medians.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
import time
import uuid
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from daemons import Daemon, registry, start_both
from figures import Figures, build
from run import filesystem, run

STAGES = 4
STEPS = 5
STEP_BYTES = 6_000_000
_SETTLE_S = 2.0
"""A daemon may remove files when it has answered a pruning already: an empty one has none."""


def write_context(context: Path) -> None:
    """Write four stages of five steps, each of which writes 6 MB, half of it compressible."""
    (context / "bin").mkdir(parents=True)
    busybox = Path(shutil.which("busybox") or "/bin/busybox")
    shutil.copy(busybox, context / "bin/busybox")
    for name in ("sh", "cat", "dd", "cp"):
        (context / "bin" / name).symlink_to("busybox")
    copies = max(1, STEP_BYTES // 2 // busybox.stat().st_size)
    programs = " ".join(["/bin/busybox"] * copies)
    lines = ["FROM scratch AS base", "COPY bin /bin", "ENV PATH=/bin"]
    for stage in range(STAGES):
        lines += [f"FROM base AS s{stage}", "ARG NONCE"]
        for step in range(STEPS):
            random = f"dd if=/dev/urandom of=/r{step} bs={STEP_BYTES // 2} count=1"
            lines.append(f"RUN {random} && cat {programs} > /p{stage}{step}")
    lines.append("FROM base")
    lines += [f"COPY --from=s{stage} /r0 /r{stage}" for stage in range(STAGES)]
    (context / "Dockerfile").write_text("\n".join(lines) + "\n")


def measure(options: argparse.Namespace, daemons: list[Daemon], host: str, context: Path) -> None:
    """Export, export again, prune, import, interleaved; print all ratios."""
    kinds = ("export", "again", "import", "import-image", "whole")
    figures = {kind: Figures() for kind in kinds}
    for number in range(options.runs):
        for daemon in daemons if number % 2 == 0 else daemons[::-1]:
            nonce = ("--opt", f"build-arg:NONCE={uuid.uuid4().hex}")
            cache = f"type=registry,ref={host}/{daemon.name}:{uuid.uuid4().hex}"
            insecure = "registry.insecure=true"
            build(options, daemon, context, *nonce)
            export = ("--export-cache", f"{cache},mode=max,{insecure}")
            for kind in ("export", "again"):
                export_it = partial(build, options, daemon, context, *nonce, *export)
                figures[kind].add(daemon, export_it)
            image = f"type=image,name={host}/image:{uuid.uuid4().hex},push=true,{insecure}"
            for kind, more in (("import", ()), ("import-image", ("--output", image))):
                run([options.buildctl, "--addr", daemon.address, "prune", "--all"])
                time.sleep(_SETTLE_S)
                source = ("--import-cache", f"{cache},{insecure}")
                import_it = partial(build, options, daemon, context, *nonce, *source, *more)
                figures[kind].add(daemon, import_it)
            whole = ("--opt", f"build-arg:NONCE={uuid.uuid4().hex}", *export)
            figures["whole"].add(daemon, partial(build, options, daemon, context, *whole))
    megabytes = STAGES * STEPS * STEP_BYTES // 10**6
    figures["export"].report(f"cache export, max, {megabytes} MB", 0.5)
    figures["again"].report("the same cache again", 1.0)
    figures["import"].report("cache import, empty daemon", 0.8)
    figures["import-image"].report("the same, image pushed", 0.8)
    figures["whole"].report("new build with its cache export", 1.0)


def main() -> None:
    """Parse the command line, start what must run, measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--buildctl", default=shutil.which("buildctl"), help="stock client")
    parser.add_argument("--buildkitd", required=True, help="stock daemon to compare with")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--work", default=None, help="where contexts and state go")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="boxwright-bench-", dir=options.work))
    try:
        print(f"# state on {filesystem(str(work))}; {options.runs} runs; {os.cpu_count()} cores")
        print(f"{'seconds':<38}{'ours':>9}{'theirs':>9}{'ratio':>8}")
        write_context(work / "context")
        with contextlib.ExitStack() as stack:
            daemons = start_both(stack, work, options.buildctl, options.buildkitd)
            host = stack.enter_context(registry(work))
            measure(options, daemons, host, work / "context")
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
