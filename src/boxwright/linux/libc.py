"""The C library handle and the one way in which a failed call becomes an ``OSError``.

Calls go through :class:`ctypes.CDLL`, which releases the interpreter lock for their duration
and keeps ``errno`` per thread. Numbers of system calls from 424 on are the same on every
architecture (asm-generic/unistd.h), so newer calls need no table.
"""

from __future__ import annotations

import ctypes
import os

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def raise_errno(path: str | bytes | os.PathLike[str] | None = None) -> None:
    """Raise the ``OSError`` for the calling thread's ``errno``.

    Raises:
        OSError: always, of the subclass that fits ``errno``, with ``path`` if given.
    """
    number = ctypes.get_errno()
    if path is None:
        raise OSError(number, os.strerror(number))
    raise OSError(number, os.strerror(number), os.fspath(path))


def check(result: int, path: str | bytes | os.PathLike[str] | None = None) -> int:
    """Return ``result`` unless it is negative.

    Raises:
        OSError: the call failed.
    """
    if result < 0:
        raise_errno(path)
    return result


def syscall(number: int, *args: object, path: str | bytes | os.PathLike[str] | None = None) -> int:
    """Make a system call by number; integers are passed as longs.

    Raises:
        OSError: the call failed, ``ENOSYS`` where the kernel lacks it.
    """
    converted = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    return check(int(libc.syscall(ctypes.c_long(number), *converted)), path)
