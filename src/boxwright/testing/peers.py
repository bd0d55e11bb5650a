"""Programs that are not ours, which tests run beside it."""

from __future__ import annotations

import functools
import os
import shutil
import sys
from pathlib import Path

_SYSTEM = ("/usr/sbin", "/sbin", "/usr/lib/cni", "/opt/cni/bin")


def peers_folder() -> Path | None:
    """Return the folder in which some lie unpacked and not installed, if there is one."""
    named = os.environ.get("BOXWRIGHT_PEERS")
    return Path(named) if named else None


@functools.cache
def find_peer(name: str) -> str | None:
    """Return the path of a program that is not ours, or None."""
    named = os.environ.get(name.upper().replace("-", "_"))
    if named:
        return named
    own = Path(sys.executable).parent
    path = [p for p in os.environ["PATH"].split(os.pathsep) if Path(p) != own]
    path += _SYSTEM
    unpacked = peers_folder()
    if unpacked is not None:
        path = [str(unpacked / "usr/libexec/docker/cli-plugins"), *path]
        path += [str(unpacked / "usr/sbin"), str(unpacked / "usr/bin")]
    return shutil.which(name, path=os.pathsep.join(path))


def libraries() -> dict[str, str]:
    """Return the environment in which unpacked programs find libraries unpacked beside them."""
    unpacked = peers_folder()
    found = sorted(unpacked.glob("usr/lib/*-linux-gnu")) if unpacked is not None else []
    found += sorted(unpacked.glob("lib/*-linux-gnu")) if unpacked is not None else []
    return {"LD_LIBRARY_PATH": os.pathsep.join(map(str, found))} if found else {}
