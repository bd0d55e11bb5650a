"""Calls about processes: parent-death signal, subreaper, pidfds."""

from __future__ import annotations

import os
import signal

from boxwright.linux.libc import check, libc

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38


def set_pdeathsig(number: int = signal.SIGKILL) -> None:
    """Have the kernel send ``number`` to this process when its parent *thread* ends.

    Raises:
        OSError: the signal number is invalid.
    """
    check(libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0))


def set_subreaper(*, enabled: bool = True) -> None:
    """Make orphaned descendants children of this process instead of init.

    Raises:
        OSError: the kernel refused.
    """
    check(libc.prctl(_PR_SET_CHILD_SUBREAPER, int(enabled), 0, 0, 0))


def set_no_new_privileges() -> None:
    """Forbid this process and its children to gain privileges by execve.

    Raises:
        OSError: the kernel refused.
    """
    check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def pidfd_open(pid: int) -> int:
    """Return a descriptor for process ``pid``; it is readable once the process has ended.

    Raises:
        ProcessLookupError: there is no such process.
    """
    return os.pidfd_open(pid)


def pidfd_send_signal(pidfd: int, number: int) -> None:
    """Send a signal to exactly the process that ``pidfd`` was opened for.

    Raises:
        ProcessLookupError: it has ended and was reaped.
    """
    signal.pidfd_send_signal(pidfd, number)


def is_alive(pid: int) -> bool:
    """Return whether a process with this id exists, ours or another user's."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def boot_id() -> str:
    """Return the id of this boot; a changed one means that unsynced data may be gone."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
