"""Ratios ours / theirs, in one run, with one stock client.

    python benchmarks/run.py --buildctl /path/buildctl --buildkitd /path/buildkitd
    python benchmarks/run.py --buildctl /path/buildctl --against unix:///run/buildkit/buildkitd.sock

Runs are interleaved (ours, theirs, ours, …) and medians are compared: the machines this runs
on drift. Wall time is the client's, from start to exit.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from daemons import Daemon, our_argv, registry, start, their_argv, wait_until_it_answers
from scenarios import SCENARIOS, Scenario, many_records


def build(
    options: argparse.Namespace,
    daemon: Daemon,
    context: Path,
    scenario: Scenario,
    *,
    has_output: bool = True,
) -> float:
    """Run the builds of one measurement at once; return their wall time in seconds."""
    commands = []
    for number in range(scenario.clients):
        nonce = uuid.uuid4().hex
        argv = [options.buildctl, "--addr", daemon.address, "build", "--progress", "plain"]
        argv += ["--frontend", "dockerfile.v0"]
        argv += ["--local", f"context={context}", "--local", f"dockerfile={context}"]
        if scenario.fresh:
            argv += ["--opt", f"build-arg:NONCE={nonce}"]
        if scenario.output and has_output:
            dest = Path(options.work) / f"out-{number}.tar"
            output = scenario.output.format(dest=dest, registry=options.registry, nonce=nonce)
            argv += ["--output", output]
        commands.append(argv)
    return run(*commands)


def run(*commands: list[str]) -> float:
    """Run commands at the same time that must all succeed; return the wall time in seconds."""
    began = time.perf_counter()
    processes = [
        subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for argv in commands
    ]
    errors = [process.communicate()[1] for process in processes]
    took = time.perf_counter() - began
    for argv, process, stderr in zip(commands, processes, errors, strict=True):
        if process.returncode:
            sys.stderr.write(stderr.decode(errors="replace")[-3000:])
            raise SystemExit(f"error: {' '.join(argv)} ended with status {process.returncode}")
    return took


def prune(options: argparse.Namespace, daemon: Daemon) -> None:
    """Let a daemon forget everything."""
    run([options.buildctl, "--addr", daemon.address, "prune", "--all"])


def measure(options: argparse.Namespace, daemons: list[Daemon], scenario: Scenario) -> dict:
    """Measure one scenario on all daemons, interleaved."""
    times: dict[str, list[float]] = {d.name: [] for d in daemons}
    cpu: dict[str, list[float]] = {d.name: [] for d in daemons}
    sizes: dict[str, int] = {}
    dest = Path(options.work) / "out-0.tar"
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        # The same path in every run: a client sends it along as what its folder was before.
        context, other = Path(folder) / "context", Path(folder) / "other"
        if scenario.after_other:
            scenario.make(other, 2)
        if not scenario.new_context:
            scenario.make(context, 1)
            for daemon in daemons:
                build(options, daemon, context, scenario)
        for number in range(options.runs):
            seed = random.SystemRandom().getrandbits(62)
            if scenario.new_context:
                shutil.rmtree(context, ignore_errors=True)
                scenario.make(context, seed)
            if scenario.change:
                scenario.change(context, seed)
            for daemon in daemons if number % 2 == 0 else daemons[::-1]:
                if scenario.after_other:
                    build(options, daemon, other, scenario)
                if scenario.new_context:
                    # buildctl names all folders by one key: the last one would be the base.
                    prune(options, daemon)
                if scenario.only_output:
                    build(options, daemon, context, scenario, has_output=False)
                before = daemon.cpu_s()
                times[daemon.name].append(build(options, daemon, context, scenario))
                cpu[daemon.name].append(daemon.cpu_s() - before)
                if dest.exists():
                    sizes[daemon.name] = dest.stat().st_size
                    dest.unlink()
    for daemon in daemons:
        prune(options, daemon)
    return {"times": times, "cpu": cpu, "sizes": sizes}


def embedded(options: argparse.Namespace, daemons: list[Daemon]) -> None:
    """Compare ``boxwright build`` without a daemon with buildctl + daemon."""
    program = str(Path(sys.executable).with_name("boxwright"))
    scenario = SCENARIOS[1]
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        context = Path(folder) / "context"
        scenario.make(context, 1)
        argv = [program, "--root", f"{folder}/state", "build", "--progress", "plain"]
        argv += ["-o", f"type=oci,dest={folder}/o.tar", str(context)]
        run(argv)
        ours = statistics.median(run(argv) for _ in range(options.runs))
        for daemon in daemons:
            theirs = statistics.median(
                build(options, daemon, context, scenario) for _ in range(options.runs)
            )
            print(
                f"{'embedded, unchanged, vs ' + daemon.name:<38}"
                f"{ours:>9.3f}{theirs:>9.3f}{ours / theirs:>8.2f}"
            )


def pruning(options: argparse.Namespace, daemons: list[Daemon]) -> None:
    """Compare how long forgetting many records takes; each is one small file operation."""
    definition = Path(options.work) / "records.pb"
    times = {}
    for daemon in daemons:
        definition.write_bytes(many_records(options.records, daemon.name))
        with definition.open("rb") as file:
            subprocess.run(
                [options.buildctl, "--addr", daemon.address, "build", "--progress", "quiet"],
                stdin=file,
                stdout=subprocess.DEVNULL,
                check=True,
            )
        began = time.perf_counter()
        prune(options, daemon)
        times[daemon.name] = time.perf_counter() - began
    ours, theirs = times["ours"], times.get("theirs")
    ratio = ours / theirs if theirs else float("nan")
    name = f"prune of {options.records:,} records"
    print(f"{name:<38}{ours:>9.3f}{theirs or float('nan'):>9.3f}{ratio:>8.2f}  mark 0.20")


def report(scenario: Scenario, result: dict) -> None:
    """Print one line."""
    medians = {name: statistics.median(values) for name, values in result["times"].items()}
    ours = medians["ours"]
    theirs = medians.get("theirs")
    ratio = ours / theirs if theirs else float("nan")
    mark = "" if scenario.mark is None else f"  mark {scenario.mark:.2f}"
    verdict = (
        ""
        if scenario.mark is None or not theirs
        else ("  ok" if ratio <= scenario.mark else "  over")
    )
    size = ""
    if len(result["sizes"]) == 2:
        size = f"  size {result['sizes']['ours'] / result['sizes']['theirs']:.3f}"
    cpu = "  cpu " + "/".join(f"{statistics.median(each):.2f}" for each in result["cpu"].values())
    print(
        f"{scenario.name:<38}{ours:>9.3f}{theirs or float('nan'):>9.3f}{ratio:>8.2f}"
        f"{mark}{verdict}{size}{cpu}",
        flush=True,
    )


def main() -> None:
    """Parse the command line, start what must run, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--buildctl", default=shutil.which("buildctl"), help="stock client")
    parser.add_argument("--buildkitd", help="stock daemon to start and compare with")
    parser.add_argument("--against", help="address of a daemon that runs already")
    parser.add_argument("--runtime", default="", help="the same OCI runtime on both sides")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", default="", help="scenarios whose name holds this text")
    parser.add_argument("--records", type=int, default=10_000, help="to prune; 0: not measured")
    parser.add_argument("--work", default=None, help="where contexts and state go")
    parser.add_argument("--json", help="write all figures to this file")
    options = parser.parse_args()
    if not options.buildctl:
        parser.error("no buildctl on PATH: name one with --buildctl")
    options.work = tempfile.mkdtemp(prefix="boxwright-bench-", dir=options.work)
    everything: dict[str, dict] = {}
    try:
        with contextlib.ExitStack() as stack:
            work, runtime = Path(options.work), options.runtime
            daemons = [start(stack, "ours", our_argv(runtime), work, options.buildctl)]
            if options.buildkitd:
                argv = their_argv(options.buildkitd, runtime)
                daemons.append(start(stack, "theirs", argv, work, options.buildctl))
            elif options.against:
                wait_until_it_answers(options.buildctl, options.against)
                daemons.append(Daemon("theirs", options.against, Path("/")))
            print(
                f"# runtime {options.runtime or 'default'}; state on {filesystem(options.work)};"
                f" {options.runs} runs, medians; {os.cpu_count()} cores"
            )
            print(f"{'seconds':<38}{'ours':>9}{'theirs':>9}{'ratio':>8}")
            for figure, value in (("start to first answer", "start_s"),):
                line = [getattr(d, value) for d in daemons]
                print(
                    f"{figure:<38}{line[0]:>9.3f}"
                    + (
                        f"{line[1]:>9.3f}{line[0] / max(line[1], 1e-9):>8.2f}"
                        if len(line) > 1
                        else ""
                    )
                )
            print(
                f"{'idle memory, MiB':<38}" + "".join(f"{d.memory_mib():>9.1f}" for d in daemons)
            )
            options.registry = stack.enter_context(registry(Path(options.work)))
            for scenario in SCENARIOS:
                if "{registry}" in scenario.output and not options.registry:
                    continue
                if options.only in scenario.name:
                    result = measure(options, daemons, scenario)
                    everything[scenario.name] = result
                    report(scenario, result)
            if options.only in "prune" and options.records:
                pruning(options, daemons)
            if options.only in "embedded":
                embedded(options, daemons)
            print(
                f"{'memory after, MiB':<38}" + "".join(f"{d.memory_mib():>9.1f}" for d in daemons)
            )
    finally:
        shutil.rmtree(options.work, ignore_errors=True)
    if options.json:
        Path(options.json).write_text(json.dumps(everything, indent=1))


def filesystem(path: str) -> str:
    """Return the type of the file system that holds ``path``."""
    done = subprocess.run(["stat", "-f", "-c", "%T", path], capture_output=True, check=True)
    return done.stdout.decode().strip()


if __name__ == "__main__":
    main()
