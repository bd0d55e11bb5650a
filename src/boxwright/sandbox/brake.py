"""The brake: every step stops when the disk has less room than it must keep.

What a step writes can't be reserved, and the engine's process is too busy to look often enough.
So process 1 of the sandbox looks: the closer the mark, the more often, so that at
:data:`RATE_BYTES_PER_MS` the mark is seen within a millisecond. It stops all steps and tells the
engine, which makes room and says who may go on (``boxwright.ops.stepgate``).

Stopping is the freezer of control groups, or SIGSTOP for every process of the step's PID
namespace where there is none. Either lets a system call that has begun come to its end.

Imported by the supervisor: standard library only.
"""

import os
import signal

from boxwright.sandbox import cgroups

RATE_BYTES_PER_MS = 4 << 20
_LONGEST_MS = 250
_ROUNDS = 50


class Brake:
    """The mark and when to look next; disarmed until :meth:`arm`, and again when it was hit."""

    def __init__(self) -> None:
        self._path = ""
        self._mark = 0
        self.is_armed = False
        self.wait_ms = _LONGEST_MS

    def arm(self, path: str, mark: int) -> None:
        """Look at the file system of ``path`` until it has less than ``mark`` bytes free."""
        self._path, self._mark = path, mark
        self.is_armed = bool(path)
        self.wait_ms = 0

    def look(self) -> int:
        """Return the bytes that are free if the mark was hit, and disarm; otherwise -1."""
        try:
            found = os.statvfs(self._path)
        except OSError:
            self.is_armed = False
            return -1
        free = found.f_bavail * found.f_frsize
        if free < self._mark:
            self.is_armed = False
            return free
        distance = (free - self._mark) // RATE_BYTES_PER_MS
        self.wait_ms = max(1, min(distance, _LONGEST_MS))
        return -1


def hurry() -> None:
    """Be woken before the steps that are to be stopped; what is started is not affected."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except OSError:
        pass


def stop(cgroup: str, pid: int) -> bool:
    """Stop a step; return whether it is (its first process may not exist yet).

    Args:
        cgroup: Its control group, or empty.
        pid: The first process of its PID namespace, 0 if that is not known yet.
    """
    if cgroup and _freeze(cgroup, frozen=True):
        return True
    return bool(pid) and _signal_all(pid, signal.SIGSTOP)


def resume(cgroup: str, pid: int) -> None:
    """Undo :func:`stop`."""
    if cgroup:
        _freeze(cgroup, frozen=False)
    if pid:
        _signal_all(pid, signal.SIGCONT)


def _freeze(cgroup: str, *, frozen: bool) -> bool:
    try:
        cgroups.freeze(cgroup, frozen=frozen)
    except OSError:
        return False
    return True


def _signal_all(pid: int, number: int) -> bool:
    """Signal a PID namespace until a look finds nobody new: stopped processes don't fork."""
    namespace = _namespace(str(pid))
    if not namespace or namespace == _namespace("self"):
        return False
    seen: set[str] = set()
    for _ in range(_ROUNDS):
        names = {name for name in os.listdir("/proc") if name.isdigit()} - seen
        members = {name for name in names if _namespace(name) == namespace}
        if not members:
            break
        for name in members:
            try:
                os.kill(int(name), number)
            except OSError:
                pass
        seen |= members
    return bool(seen)


def _namespace(name: str) -> str:
    try:
        return os.readlink(f"/proc/{name}/ns/pid")
    except OSError:
        return ""
