"""Makes a network namespace and pins it to a file; a program of its own.

The engine is threaded, so it does not move itself into namespaces. This program does, brings the
loopback device up, bind-mounts its namespace on the file and ends; the mount keeps the namespace.

Run as ``python -SI -c "…; from boxwright.sandbox.netns import main; main()" FILE``.
Imports nothing outside the standard library and `boxwright.linux`.
"""

import fcntl
import os
import socket
import struct
import sys

from boxwright.linux import namespaces
from boxwright.linux.mount import MS_BIND, mount

_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1
_REQUEST = "16sh"


def set_up(name: str, *, is_up: bool) -> None:
    """Bring a network device of the present namespace up or down.

    Raises:
        OSError: there is no such device, or the privilege is missing.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        asked = struct.pack(_REQUEST, name.encode(), 0) + bytes(16)
        flags = struct.unpack_from(_REQUEST, fcntl.ioctl(sock, _SIOCGIFFLAGS, asked))[1]
        flags = flags | _IFF_UP if is_up else flags & ~_IFF_UP
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack(_REQUEST, name.encode(), flags) + bytes(16))


def main() -> None:
    """Pin a new network namespace to the file that the one argument names."""
    target = sys.argv[1]
    namespaces.unshare(namespaces.CLONE_NEWNET)
    set_up("lo", is_up=True)
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    mount("/proc/self/ns/net", target, None, MS_BIND)
