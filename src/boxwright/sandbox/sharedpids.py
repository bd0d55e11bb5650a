"""Steps in the process namespace of the engine: whose process is whose, and how all are ended.

A namespace of its own would end with its first process and take all others along. Without one,
what loses its parent becomes the child of the next subreaper: of the runtime, which would wait for
it, or, when that has ended, of the supervisor. The mount namespace tells to which container an
orphan belongs, as each has one of its own.

Imported by the supervisor, so it must stay standard-library only and small.
"""

import os
import signal
import time

_PAUSE_S = 0.002


def children(parent: int = 0) -> list[int]:
    """Return the processes whose parent is this one, or another."""
    wanted = str(parent or os.getpid())
    names = (name for name in os.listdir("/proc") if name.isdigit())
    return [int(name) for name in names if _facts(name)[1:2] == [wanted]]


def has_ended(pid: int) -> bool:
    """Whether a process has ended, be it reaped or not."""
    return _facts(str(pid))[:1] in ([], ["Z"])


def _facts(name: str) -> list[str]:
    """Return what stat says of a process from its state on: the second is its parent."""
    try:
        with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
            return file.read(4096).rpartition(")")[2].split()
    except OSError:
        return []


def world(pid: int) -> str:
    """Return the mount namespace of a process; empty if it has none any more."""
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt")
    except OSError:
        return ""


def end_children(parent: int) -> None:
    """Kill the children of another process."""
    for pid in children(parent):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def end_descendants() -> None:
    """Kill and reap children until there are none: theirs become ours as they end."""
    while found := children():
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                pass
        time.sleep(_PAUSE_S)
