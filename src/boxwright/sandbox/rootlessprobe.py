"""Tries what building without root needs, and prints what happened as JSON; a program of its own.

Run as ``python -SI -c "…; from boxwright.sandbox.rootlessprobe import main; main()" FOLDER``, by
the user who shall build, with a folder on the file system where the state will lie. Everything
happens in namespaces that end with the program. Who reads the facts is ``boxwright doctor
rootless``; nothing is judged here.
"""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from boxwright.errors import BoxwrightError
from boxwright.linux import namespaces
from boxwright.linux.mount import MS_NODEV, MS_NOEXEC, MS_NOSUID, mount, overlay, umount
from boxwright.sandbox import userns

Facts = dict[str, Any]


def main() -> None:
    """Print the facts about this user on this machine."""
    print(json.dumps(facts(Path(sys.argv[1]))))  # noqa: T201 - this is its purpose


def facts(folder: Path) -> Facts:
    """Return what happened; changes the process for good."""
    found: Facts = {
        "seccomp": _status("Seccomp") == "2",
        "apparmor": _read("/proc/self/attr/current").split(" ")[0] or "unconfined",
        "policy": [[each.name, each.ok, each.detail, each.fix] for each in userns.probe()],
        "fuse": _fuse(),
    }
    try:
        entered = userns.enter()
    except (BoxwrightError, OSError) as error:
        found["userns"] = getattr(error, "detail", "") or str(error)
        found["userns_fix"] = getattr(error, "hint", "")
        return found
    found["userns"] = ""
    found["warnings"] = list(entered.warnings)
    found["ids"] = sum(int(line.split()[2]) for line in _read("/proc/self/uid_map").splitlines())
    found["tmpfs"] = _try(lambda: _mount_tmpfs(folder))
    found["overlay"] = _try(lambda: _mount_overlay(folder))
    found["proc"] = _try_proc(folder)
    return found


def _status(name: str) -> str:
    lines = _read("/proc/self/status").splitlines()
    return next((line.split()[1] for line in lines if line.startswith(f"{name}:")), "")


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _fuse() -> str:
    """Return why fuse-overlayfs can't be used, or nothing."""
    if shutil.which("fuse-overlayfs") is None:
        return "fuse-overlayfs is not installed"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"/dev/fuse: {error.strerror}"
    return ""


def _try(action: Any) -> str:  # noqa: ANN401 - any callable
    """Return what the kernel said against it, or nothing."""
    try:
        action()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _mount_tmpfs(folder: Path) -> None:
    target = folder / "tmpfs"
    target.mkdir()
    mount("tmpfs", target, "tmpfs", MS_NOSUID | MS_NODEV)
    umount(target)


def _mount_overlay(folder: Path) -> None:
    names = ("lower", "upper", "work", "merged")
    lower, upper, work, merged = (folder / name for name in names)
    for each in (lower, upper, work, merged):
        each.mkdir()
    (lower / "file").touch()
    overlay(merged, lower=[lower], upper=upper, work=work, userxattr=True)
    try:
        (merged / "file").unlink()  # a whiteout, which some file systems refuse
    finally:
        umount(merged)
        shutil.rmtree(work, ignore_errors=True)  # the kernel's folder has no permissions


def _try_proc(folder: Path) -> str:
    """Mount a proc of a new PID namespace: refused where the outer /proc is masked."""
    try:
        namespaces.unshare(namespaces.CLONE_NEWPID)
    except OSError as error:
        return f"PID namespace: {error.strerror}"
    target = folder / "proc"
    target.mkdir()
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
            os.write(write_fd, _try(lambda: mount("proc", target, "proc", flags)).encode())
        finally:
            os._exit(0)
    os.close(write_fd)
    said = os.read(read_fd, 4096)
    os.waitpid(pid, 0)
    return said.decode(errors="replace")
