"""Sockets to listen on: permissions before reachability, stale files, living servers."""

from __future__ import annotations

import os
import socket
import stat

from boxwright.errors import BoxwrightError, Code
from boxwright.linux import unixpath


class ListenError(BoxwrightError):
    """An address that can't be listened on.

    Args:
        address: the address.
        reason: what the system said.
    """

    code = Code.ENVIRONMENT

    def __init__(self, address: str, reason: str, *, hint: str = "") -> None:
        super().__init__(f"can't listen on {address}", detail=reason, hint=hint)
        self.address = address


def bind_unix(path: str, mode: int, uid: int, gid: int) -> socket.socket:
    """Return a bound unix socket whose file never had wider permissions than ``mode``.

    Raises:
        OSError: not permitted, or a living server owns the path.
    """
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # Linux gives the file the mode of the unbound socket, less the umask.
        os.fchmod(sock.fileno(), mode)
        with unixpath.usable(path) as name:
            sock.bind(name)
        if uid != -1 or gid != -1:
            os.chown(path, uid, gid, follow_symlinks=False)
        os.chmod(path, mode)
    except BaseException:
        sock.close()
        raise
    return sock


def _remove_stale(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            with unixpath.usable(path) as name:
                probe.connect(name)
        except (ConnectionRefusedError, FileNotFoundError):
            os.unlink(path)


def unlink_own(path: str, inode: int) -> None:
    """Remove a socket file unless another server has put its own there since."""
    try:
        if os.lstat(path).st_ino == inode:
            os.unlink(path)
    except FileNotFoundError:
        pass
