"""``doctor``: whether this machine can build, and what to do if not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import click

from boxwright.core.dataclass import dataclass

_HELP = {"help_option_names": ["-h", "--help"]}
_RUNTIMES = ("crun", "runc")
_APPARMOR = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
_TIMEOUT_S = 10.0
_FAILED = 27


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check; ``hint`` says what to do if it is not ok."""

    name: str
    ok: bool
    observed: str
    hint: str = ""


@click.command(context_settings=_HELP)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument("what", required=False, type=click.Choice(["rootless"]))
@click.pass_context
def doctor(context: click.Context, *, what: str | None, as_json: bool) -> int:
    """Check what building needs on this machine.

    With "rootless": try, as the present user, all that building without root needs, name what
    blocks it, and say in which mode builds will run.

    \b
    Examples:
      boxwright doctor
      boxwright doctor rootless
      boxwright doctor --json
    """  # noqa: D301 - click reads the backspace
    if what == "rootless":
        return _rootless(context, as_json=as_json)
    findings = [check() for check in CHECKS]
    if as_json:
        click.echo(json.dumps([asdict(each) for each in findings], indent=2))
    else:
        _show(findings)
    return 0 if all(each.ok for each in findings) else _FAILED


def _show(findings: Sequence[Finding]) -> None:
    for each in findings:
        click.echo(f"{'ok  ' if each.ok else 'FAIL'} {each.name}: {each.observed}")
        if each.hint and not each.ok:
            click.echo(f"     hint: {each.hint}")


def _rootless(context: click.Context, *, as_json: bool) -> int:
    from boxwright.cli.connect import root_of
    from boxwright.cli.doctor_rootless import diagnose

    diagnosis = diagnose(root_of(context.obj).absolute())
    if as_json:
        findings = [asdict(each) for each in diagnosis.findings]
        click.echo(json.dumps({"findings": findings, "mode": diagnosis.mode}, indent=2))
    else:
        _show(diagnosis.findings)
        click.echo(f"builds run: {diagnosis.mode}" if diagnosis.mode else "builds can't run")
    return 0 if diagnosis.can_build else _FAILED


def check_python() -> Finding:
    """Check the interpreter's version."""
    text = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", sys.version_info >= (3, 11), text, "use Python 3.11 or newer")


def check_runtime() -> Finding:
    """Run the OCI runtimes that are installed."""
    found = []
    for name in _RUNTIMES:
        path = shutil.which(name)
        if path is None:
            continue
        done = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
        if done.returncode == 0:
            found.append(done.stdout.splitlines()[0])
    return Finding("OCI runtime", bool(found), ", ".join(found) or "none", "apt install crun")


def check_namespaces() -> Finding:
    """Make the namespaces that a build needs, in a child."""
    is_root = os.geteuid() == 0
    argv = (
        ["unshare", "--mount"] if is_root else ["unshare", "--user", "--map-root-user", "--mount"]
    )
    hint = "run as root with full capabilities" if is_root else "allow user namespaces"
    if not is_root and _APPARMOR.exists() and _APPARMOR.read_text().strip() == "1":
        hint = (
            "AppArmor forbids user namespaces to programs without a profile: see "
            "docs/rootless.md, or sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
        )
    try:
        done = subprocess.run(
            [*argv, "true"], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except OSError as exc:
        return Finding("namespaces", ok=False, observed=str(exc), hint="apt install util-linux")
    observed = "can be made" if done.returncode == 0 else done.stderr.strip()
    return Finding("namespaces", done.returncode == 0, observed, hint)


def check_subordinate_ids() -> Finding:
    """Look for the id ranges that building without root needs."""
    if os.geteuid() == 0:
        return Finding("subordinate ids", ok=True, observed="not needed: this is root")
    import pwd

    if shutil.which("newuidmap") is None:
        return Finding(
            "subordinate ids", ok=False, observed="no newuidmap", hint="apt install uidmap"
        )
    name = pwd.getpwuid(os.getuid()).pw_name
    missing = []
    for path in ("/etc/subuid", "/etc/subgid"):
        try:
            lines = Path(path).read_text().splitlines()
        except OSError:
            lines = []
        if not any(line.split(":")[0] in {name, str(os.getuid())} for line in lines):
            missing.append(path)
    hint = f"sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {name}"
    observed = f"no range in {', '.join(missing)}" if missing else "ranges are set"
    return Finding("subordinate ids", not missing, observed, hint)


def check_overlay() -> Finding:
    """Look whether the kernel knows overlayfs."""
    try:
        known = "overlay" in Path("/proc/filesystems").read_text()
    except OSError as exc:
        return Finding("overlayfs", ok=False, observed=str(exc))
    observed = "in the kernel" if known else "not loaded"
    return Finding("overlayfs", known, observed, "sudo modprobe overlay")


CHECKS: tuple[Callable[[], Finding], ...] = (
    check_python,
    check_runtime,
    check_namespaces,
    check_subordinate_ids,
    check_overlay,
)
