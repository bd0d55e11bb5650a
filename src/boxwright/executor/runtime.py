"""Which OCI runtime runs the steps, found out by running something with it.

Versions and file names prove nothing: Debian 12's crun refuses some cgroup set-ups, a container
may forbid cgroups or a filter. So each candidate runs one process in a sandbox exactly like a
step's; the first that works is taken, and what did not work is logged with its own words.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path

from boxwright.core.dataclass import dataclass
from boxwright.executor.errors import RuntimeFailedError
from boxwright.executor.link import Outcome
from boxwright.sandbox import protocol

_log = logging.getLogger(__name__)

CANDIDATES = ("crun", "runc")


@dataclass(frozen=True, slots=True)
class Runtime:
    """A runtime binary and how it is used; ``takes_bpf`` is crun's compiled-filter annotation."""

    path: str
    name: str
    uses_cgroups: bool
    takes_bpf: bool

    def run_argv(self, base: Path, run_id: str) -> list[str]:
        """Return the command that runs the bundle of ``run_id`` below ``base``."""
        bundle = base / run_id
        return [
            *self._global_args(base, bundle),
            "run",
            "--bundle",
            str(bundle),
            "--pid-file",
            str(bundle / protocol.PIDFILE),
            run_id,
        ]

    def exec_argv(self, base: Path, exec_id: str, run_id: str) -> list[str]:
        """Return the command that starts ``process.json`` of ``exec_id`` in container ``run_id``."""
        bundle = base / exec_id
        return [
            *self._global_args(base, bundle),
            "exec",
            "--process",
            str(bundle / "process.json"),
            "--pid-file",
            str(bundle / protocol.PIDFILE),
            run_id,
        ]

    def _global_args(self, base: Path, bundle: Path) -> list[str]:
        args = [self.path, "--root", str(base / protocol.RUNTIME_ROOT)]
        args += ["--log", str(bundle / protocol.LOG), "--log-format", "json"]
        if self.name == "crun":
            args.append(f"--cgroup-manager={'cgroupfs' if self.uses_cgroups else 'disabled'}")
        return args


def find(names: Sequence[str]) -> list[Path]:
    """Return the executables that exist among ``names`` (paths or names on ``PATH``)."""
    search = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    found = (shutil.which(name, path=search) for name in names)
    return [Path(path).resolve() for path in found if path]


def choices(paths: Iterable[Path], *, cgroups_allowed: bool) -> list[Runtime]:
    """Return what to try, best first: any runtime with cgroups before any without."""
    order: list[Runtime] = []
    for uses_cgroups in (True, False) if cgroups_allowed else (False,):
        for path in paths:
            name = "crun" if "crun" in path.name else "runc"
            order.append(Runtime(str(path), name, uses_cgroups, takes_bpf=name == "crun"))
    return order


async def probe(
    names: Sequence[str],
    *,
    cgroups_allowed: bool,
    try_one: Callable[[Runtime], Awaitable[Outcome]],
) -> Runtime:
    """Return the first runtime that really runs a process.

    Raises:
        RuntimeFailedError: none is installed, or none works.
    """
    paths = find(names)
    if not paths:
        raise RuntimeFailedError(
            "no OCI runtime found",
            detail=f"looked for {', '.join(names)}",
            hint="install crun (apt-get install crun) or runc",
        )
    refusals: list[str] = []
    for runtime in choices(paths, cgroups_allowed=cgroups_allowed):
        outcome = await try_one(runtime)
        label = f"{runtime.path} {'with' if runtime.uses_cgroups else 'without'} cgroups"
        if outcome.code == 0:
            if refusals:
                _log.warning("using %s: %s", label, "; ".join(refusals))
            return runtime
        said = message_of(outcome.log) or f"exit code {outcome.code}, signal {outcome.signal}"
        refusals.append(f"{label} failed: {said}")
    raise RuntimeFailedError(
        "no OCI runtime works here",
        detail="; ".join(refusals),
        hint="boxwright doctor explains what the sandbox needs",
    )


def message_of(log: str) -> str:
    """Return the last error that a runtime wrote to its JSON log, or an empty string."""
    for line in reversed(log.splitlines()):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("level") in ("error", "fatal"):
            return str(entry.get("msg", ""))
    return ""
