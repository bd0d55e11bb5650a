"""One control group per step, made by us around the one that the runtime makes.

The runtime removes its own group as soon as the step has ended, and with it the numbers that say
whether the kernel killed it for memory. So each step gets a group of ours,
``<base>/<id>``, that carries the memory limit, and the runtime works in ``<base>/<id>/c``.

On a v1 or hybrid host only the memory hierarchy is ours; the runtime creates the same path in the
others and leaves the empty parents behind, which :func:`remove` clears.

Imported by the supervisor: standard library only.
"""

import errno
import os
import signal

ROOT = "/sys/fs/cgroup"
RUNTIME_CHILD = "c"

_V2_CONTROLLERS = ("cpuset", "cpu", "io", "memory", "pids")


def mode() -> str:
    """Return ``v2``, ``v1``, ``hybrid`` or ``none``, from what is mounted under :data:`ROOT`."""
    if os.path.exists(f"{ROOT}/cgroup.controllers"):
        return "v2"
    if not os.path.exists(f"{ROOT}/memory/cgroup.procs"):
        return "none"
    return "hybrid" if os.path.exists(f"{ROOT}/unified/cgroup.controllers") else "v1"


def hierarchies() -> list[str]:
    """Return the mount points in which a group of one name can exist."""
    if mode() == "v2":
        return [ROOT]
    try:
        names = os.listdir(ROOT)
    except OSError:
        return []
    paths = (f"{ROOT}/{name}" for name in names)
    return [path for path in paths if os.path.exists(f"{path}/cgroup.procs")]


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _read(path: str) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(fd, 1 << 16).decode("ascii", "replace")
    except OSError:
        return ""
    finally:
        os.close(fd)


def _number(path: str) -> int:
    text = _read(path).strip()
    return int(text) if text.isdigit() else 0


def _field(path: str, name: str) -> int:
    for line in _read(path).splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdigit():
            return int(value)
    return 0


def create(group: str, memory_bytes: int) -> None:
    """Make ``group`` (absolute within the hierarchy) and set its memory limit (0: none).

    Raises:
        OSError: the hierarchy can't be written.
    """
    if mode() == "v2":
        _create_v2(group, memory_bytes)
        return
    path = f"{ROOT}/memory{group}"
    os.makedirs(path, exist_ok=True)
    if os.path.isdir(
        f"{ROOT}/freezer"
    ):  # before the runtime makes it: a step can always be frozen
        os.makedirs(f"{ROOT}/freezer{group}", exist_ok=True)
    if memory_bytes:
        _write(f"{path}/memory.limit_in_bytes", str(memory_bytes))


def _create_v2(group: str, memory_bytes: int) -> None:
    path = ROOT
    for name in group.strip("/").split("/"):
        available = _read(f"{path}/cgroup.controllers").split()
        for controller in _V2_CONTROLLERS:
            if controller in available:
                try:
                    _write(f"{path}/cgroup.subtree_control", f"+{controller}")
                except OSError as exc:
                    if exc.errno not in (errno.EBUSY, errno.ENOENT, errno.EOPNOTSUPP):
                        raise
        path = f"{path}/{name}"
        try:
            os.mkdir(path)
        except FileExistsError:
            pass
    if memory_bytes:
        _write(f"{path}/memory.max", str(memory_bytes))


def usage(group: str) -> dict[str, int]:
    """Return ``peak`` and ``limit`` (bytes, 0: none), ``oom_kills`` and ``cpu_usec`` of ``group``.

    On v1 the kernel counts a kill in the group of the victim, which is gone by now; a limit that
    was hit together with SIGKILL is the sign there, so ``oom_kills`` is 1 when the limit was hit.
    """
    if mode() == "v2":
        path = f"{ROOT}{group}"
        return {
            "peak": _number(f"{path}/memory.peak"),
            "oom_kills": _field(f"{path}/memory.events", "oom_kill"),
            "limit": _number(f"{path}/memory.max"),
            "cpu_usec": _field(f"{path}/cpu.stat", "usage_usec"),
        }
    path = f"{ROOT}/memory{group}"
    limit = _number(f"{path}/memory.limit_in_bytes")
    unlimited = limit >= 1 << 62
    hit = not unlimited and _number(f"{path}/memory.failcnt") > 0
    return {
        "peak": _number(f"{path}/memory.max_usage_in_bytes"),
        "oom_kills": int(hit),
        "limit": 0 if unlimited else limit,
        "cpu_usec": _number(f"{ROOT}/cpuacct{group}/cpuacct.usage") // 1000,
    }


def freeze(group: str, *, frozen: bool) -> None:
    """Stop or resume every process of ``group``.

    Raises:
        OSError: the group does not exist or has no freezer.
    """
    if mode() == "v2":
        _write(f"{ROOT}{group}/cgroup.freeze", "1" if frozen else "0")
    else:
        _write(f"{ROOT}/freezer{group}/freezer.state", "FROZEN" if frozen else "THAWED")


def remove(group: str) -> None:
    """Kill what still runs in ``group`` and remove it with everything below, everywhere."""
    for hierarchy in hierarchies():
        path = f"{hierarchy}{group}"
        if os.path.isdir(path):
            _remove_tree(path)


def _remove_tree(path: str) -> None:
    if os.path.exists(f"{path}/freezer.state"):
        try:
            _write(f"{path}/freezer.state", "THAWED")  # frozen processes do not die
        except OSError:
            pass
    for name in _children(path):
        _remove_tree(f"{path}/{name}")
    for _ in range(3):
        try:
            os.rmdir(path)
            return
        except OSError as exc:
            if exc.errno != errno.EBUSY:
                return
        for pid in _read(f"{path}/cgroup.procs").split():
            try:
                os.kill(int(pid), signal.SIGKILL)
            except OSError:
                pass


def _children(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def leftovers(base: str) -> list[str]:
    """Return the groups directly under ``base`` that exist in any hierarchy."""
    names: set[str] = set()
    for hierarchy in hierarchies():
        names.update(_children(f"{hierarchy}{base}"))
    return [f"{base}/{name}" for name in sorted(names)]
