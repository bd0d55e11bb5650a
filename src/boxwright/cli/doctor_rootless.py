"""``doctor rootless``: what keeps this user from building, and the best way that is left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import boxwright
from boxwright.cli.doctor import Finding
from boxwright.core.dataclass import dataclass

_PROGRAM = (
    "import sys; sys.path[:0]=[sys.argv.pop(1)]; "
    "from boxwright.sandbox.rootlessprobe import main; main()"
)
_TIMEOUT_S = 60.0
_ENOUGH_IDS = 65536


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found.

    Attributes:
        findings: One per thing that building without root needs or can do without.
        mode: How builds will run here; empty if they can't.
    """

    findings: tuple[Finding, ...]
    mode: str

    @property
    def can_build(self) -> bool:
        """Whether builds run, in whatever mode."""
        return bool(self.mode)


def diagnose(state: Path) -> Diagnosis:
    """Try everything as the present user.

    Args:
        state: Where the state folder will lie; the nearest folder above it that exists is used.
    """
    if os.geteuid() == 0:
        observed = "this is root, which needs none of this; run it as the user who shall build"
        return Diagnosis((Finding("user", ok=True, observed=observed),), "as root")
    place = next(folder for folder in (state, *state.parents) if folder.is_dir())
    if not os.access(place, os.W_OK):
        place = Path(tempfile.gettempdir())
    with tempfile.TemporaryDirectory(prefix=".boxwright-doctor-", dir=place) as folder:
        return judge(_facts(folder))


def _facts(folder: str) -> dict[str, Any]:
    root = str(Path(boxwright.__file__).parent.parent)
    # The interpreter's own packages are not on the path of an isolated one.
    argv = [sys.executable, "-SI", "-c", _PROGRAM, root, folder]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    try:
        found = json.loads(done.stdout)
    except ValueError:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        return {"userns": f"the probe failed: {lines[-1]}"}
    return found if isinstance(found, dict) else {}


def judge(facts: Mapping[str, Any]) -> Diagnosis:
    """Return what the facts of ``boxwright.sandbox.rootlessprobe`` mean."""
    policy = [
        Finding(str(name), ok=bool(ok), observed=str(detail), hint=str(fix))
        for name, ok, detail, fix in facts.get("policy", ())
    ]
    refused = facts.get("userns", "")
    confined = _confinement(facts, blocks=bool(refused or facts.get("tmpfs")))
    if refused:
        hint = facts.get("userns_fix") or "run as root, or allow user namespaces"
        finding = Finding("user namespace", ok=False, observed=refused, hint=hint)
        return Diagnosis((*policy, *confined, finding), "")
    findings = [*policy, *confined, _ids(facts), _mounts(facts), _overlay(facts), _fuse(facts)]
    findings.append(_proc(facts))
    essential = {"mounts", "process sandbox"}
    if any(not each.ok for each in findings if each.name in essential):
        return Diagnosis(tuple(findings), "")
    if not facts.get("overlay"):
        storage = "overlayfs of the kernel"
    elif not facts.get("fuse"):
        storage = "fuse-overlayfs"
    else:
        storage = "copies of every layer (slow, large)"
    ids = int(facts.get("ids", 0))
    users = f"{ids} ids" if ids >= _ENOUGH_IDS else f"only {ids} id, so no chown to others"
    return Diagnosis(tuple(findings), f"user namespace with {users}; {storage}")


def _confinement(facts: Mapping[str, Any], *, blocks: bool) -> list[Finding]:
    profile, filtered = str(facts.get("apparmor", "unconfined")), bool(facts.get("seccomp"))
    confined = profile not in ("unconfined", "")
    return [
        Finding(
            "seccomp",
            ok=not (filtered and blocks),
            observed="a filter is set" if filtered else "no filter",
            hint="start the container with --security-opt seccomp=unconfined "
            "(Kubernetes: seccompProfile: {type: Unconfined})",
        ),
        Finding(
            "AppArmor",
            ok=not (confined and blocks),
            observed=f"profile {profile}" if confined else "unconfined",
            hint="start the container with --security-opt apparmor=unconfined "
            "(Kubernetes: appArmorProfile: {type: Unconfined})",
        ),
    ]


def _ids(facts: Mapping[str, Any]) -> Finding:
    ids = int(facts.get("ids", 0))
    warnings = facts.get("warnings") or [""]
    observed = f"{ids} of them can be used"
    return Finding("subordinate ids", ids >= _ENOUGH_IDS, observed, str(warnings[0]))


def _mounts(facts: Mapping[str, Any]) -> Finding:
    said = str(facts.get("tmpfs", ""))
    hint = (
        "the namespace has no privileges: AppArmor or a security module took them "
        "(see docs/rootless.md)"
    )
    return Finding("mounts", not said, said or "can be made", hint)


def _overlay(facts: Mapping[str, Any]) -> Finding:
    said = str(facts.get("overlay", ""))
    hint = "Linux 5.11 or newer, and a state folder on ext4, xfs or btrfs"
    return Finding("overlayfs", not said, said or "can be mounted", hint)


def _fuse(facts: Mapping[str, Any]) -> Finding:
    said = str(facts.get("fuse", ""))
    is_needed = bool(facts.get("overlay"))
    observed = said or "can be used"
    hint = "sudo apt-get install fuse-overlayfs; in a container: --device /dev/fuse"
    return Finding("fuse", not said or not is_needed, observed, hint)


def _proc(facts: Mapping[str, Any]) -> Finding:
    said = str(facts.get("proc", ""))
    hint = (
        "the outer container masks /proc: --security-opt systempaths=unconfined "
        "(Kubernetes: procMount: Unmasked, with hostUsers: false); or noProcessSandbox = true "
        "under [worker.oci], if steps may see the daemon's processes"
    )
    return Finding("process sandbox", not said, said or "a /proc of its own", hint)
