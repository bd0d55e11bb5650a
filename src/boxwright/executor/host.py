"""What this machine lets a step have, read once when the executor starts."""

from __future__ import annotations

import os
from pathlib import Path

from boxwright.executor import capabilities
from boxwright.executor.spec import HostFacts
from boxwright.sandbox import cgroups

_TTY_GROUP = 5
_ALL_IDS = 0xFFFF_FFFF


def read_host_facts(*, cgroups_allowed: bool, proc: Path = Path("/proc")) -> HostFacts:
    """Return the facts; blocks on a few small files of ``proc``."""
    in_user_namespace = is_user_namespace(_read(proc / "self/uid_map"))
    mode = cgroups.mode()
    has_cgroups = cgroups_allowed and not in_user_namespace and mode != "none"
    return HostFacts(
        has_cgroups=has_cgroups,
        cgroup_namespace=has_cgroups and mode == "v2",
        user_namespace=in_user_namespace,
        maps_tty_group=maps_id(_read(proc / "self/gid_map"), _TTY_GROUP),
        capabilities=capabilities.current(),
    )


def is_user_namespace(uid_map: str) -> bool:
    """Return whether ``uid_map`` (user_namespaces(7)) is anything but the initial one's."""
    return uid_map.split() not in ([], ["0", "0", str(_ALL_IDS)])


def maps_id(id_map: str, number: int) -> bool:
    """Return whether ``number`` exists in the namespace that ``id_map`` describes."""
    for line in id_map.splitlines():
        first, _, count = (int(field) for field in line.split())
        if first <= number < first + count:
            return True
    return not id_map.split()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""


_LOCKED_FLAGS = {
    os.ST_RDONLY: "ro",
    os.ST_NOSUID: "nosuid",
    os.ST_NODEV: "nodev",
    os.ST_NOEXEC: "noexec",
    os.ST_NOATIME: "noatime",
    os.ST_NODIRATIME: "nodiratime",
    os.ST_RELATIME: "relatime",
}


def locked_flags(source: Path) -> tuple[str, ...]:
    """Return the flags of the mount that ``source`` lies on.

    In a user namespace they can't be dropped: a bind mount that does not repeat them is refused.
    """
    try:
        flags = os.statvfs(source).f_flag
    except OSError:
        return ()
    return tuple(name for bit, name in _LOCKED_FLAGS.items() if flags & bit)
