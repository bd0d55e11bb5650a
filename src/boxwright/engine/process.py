"""What a process must do before it may open an engine: namespaces, before any thread exists.

As root the process gets a mount namespace of its own, so that whatever an engine mounts vanishes
with it, however it ends. An ordinary user gets a user namespace as well, in which the process
is root over the user's subordinate ids. Neither is ever done to the process of somebody who
merely imports this package: only programs call :func:`enter`.
"""

from __future__ import annotations

import errno
import os

from boxwright.core.dataclass import dataclass
from boxwright.errors import BoxwrightError, Code
from boxwright.linux import namespaces


class NamespaceError(BoxwrightError):
    """The kernel refused a namespace that building needs."""

    code = Code.ENVIRONMENT


@dataclass(frozen=True, slots=True)
class EnteredProcess:
    """How this process was before it entered.

    Attributes:
        rootless: Whether it is now in a user namespace of its own.
        outer_uid: The user that started it.
        outer_gid: That user's group.
    """

    rootless: bool
    outer_uid: int
    outer_gid: int
    warnings: tuple[str, ...] = ()


def enter() -> EnteredProcess:
    """Enter the namespaces. Call once, before threads, event loop and heavy imports.

    Raises:
        NamespaceError: the kernel refuses mount namespaces though this is root.
        BoxwrightError: an ordinary user can't build here; says what to change.
    """
    uid, gid = os.getuid(), os.getgid()
    if os.geteuid() == 0:
        try:
            namespaces.isolate_mounts()
        except OSError as exc:
            if exc.errno == errno.EINVAL:
                raise NamespaceError(
                    "this root folder is not a mount of its own",
                    detail="mounts made in a chroot like this can't be kept from the rest",
                    hint="outside of it: mount --bind DIR DIR, then chroot DIR",
                ) from exc
            raise NamespaceError(
                "can't make a mount namespace",
                detail=f"{exc.strerror}: root without CAP_SYS_ADMIN?",
                hint="run as root with full capabilities, or as an ordinary user (rootless)",
            ) from exc
        return EnteredProcess(rootless=False, outer_uid=uid, outer_gid=gid)
    from boxwright.sandbox import userns

    entered = userns.enter()
    namespaces.isolate_mounts()
    return EnteredProcess(
        rootless=True, outer_uid=uid, outer_gid=gid, warnings=tuple(entered.warnings)
    )
