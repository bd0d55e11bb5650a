"""What was measured, and how it is printed; a build by the stock client."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from daemons import Daemon
from run import run


@dataclass
class Figures:
    """What one thing took, by name of who did it: seconds of wall time, and of CPU time."""

    wall: dict[str, list[float]] = field(default_factory=dict)
    cpu: dict[str, list[float]] = field(default_factory=dict)

    def add(self, daemon: Daemon, run: Callable[[], float]) -> None:
        """Run once and note what it took."""
        before = daemon.cpu_s()
        self.wall.setdefault(daemon.name, []).append(run())
        self.cpu.setdefault(daemon.name, []).append(daemon.cpu_s() - before)

    def report(self, name: str, mark: float) -> None:
        """Print medians and their ratio."""
        ours, theirs = (statistics.median(self.wall[key]) for key in ("ours", "theirs"))
        verdict = "ok" if ours / theirs <= mark else "over"
        line = f"{name:<38}{ours:>9.3f}{theirs:>9.3f}{ours / theirs:>8.2f}  mark {mark:.2f}  {verdict}"
        if self.cpu:
            spent = (statistics.median(self.cpu[key]) for key in ("ours", "theirs"))
            line += "  cpu " + "/".join(f"{each:.2f}" for each in spent)
        print(line, flush=True)


def build(options: argparse.Namespace, daemon: Daemon, context: Path, *more: str) -> float:
    """Run one build; return its wall time in seconds."""
    argv = [options.buildctl, "--addr", daemon.address, "build", "--frontend", "dockerfile.v0"]
    argv += ["--local", f"context={context}", "--local", f"dockerfile={context}"]
    return run([*argv, *more])
