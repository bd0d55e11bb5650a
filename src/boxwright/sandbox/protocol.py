"""Messages between the engine and its sandbox supervisor.

The two talk over one ``SOCK_SEQPACKET`` pair: a message is one small JSON object in one packet,
file descriptors travel beside it. Everything large (the runtime's configuration, secrets,
``/etc/hosts``) goes through one memory file per request, so it never touches a disk and a packet
never grows with the user's input.

Engine to supervisor::

    {"op": "run", "id": …, "argv": […], "files": [[name, mode, uid, gid, size], …],
     "cgroup": path or null, "memory": bytes or 0, "pidfile": bool,
     "stoppable": bool, "after": id or null}
        fds: payload, stdin, stdout, stderr; the payload is the files' contents in order;
        "after" is the container that it enters, and waits for until that has a process
    {"op": "kill", "id": …, "signal": n}
    {"op": "resize", "id": …, "rows": n, "columns": n}
    {"op": "watch", "path": …, "free": bytes}    arm the brake; an empty path disarms it
    {"op": "watch", …, "ids": […] or null}       and let these go on that it has stopped, or all;
        while not all may, a stoppable run that comes later waits until it is named, too

Supervisor to engine::

    {"ev": "ready"}
    {"ev": "started", "id": …}
    {"ev": "exited", "id": …, "code": n, "signal": n, "asked": bool, "log": text, "usage": {…}}
    {"ev": "failed", "id": …, "stage": …, "errno": n, "path": …}
    {"ev": "sized", "id": …}                     a resize was done, or can't be: no such terminal
    {"ev": "low", "free": bytes}                 the brake has stopped what is stoppable

This module is imported by the supervisor, so it must stay standard-library only and small.
"""

import json

MAX_PACKET_BYTES = 160 << 10
"""Upper bound of one packet; below the kernel's default socket buffer (net.core.wmem_default)."""

MAX_LOG_BYTES = 16 << 10
"""How much of the runtime's own log an ``exited`` message carries."""

FD_COUNT = 4
"""Descriptors beside a ``run`` message: payload, stdin, stdout, stderr."""

CONFIG = "config.json"
LOG = "runtime.log"
PIDFILE = "pid"
RUNTIME_ROOT = "runtime"


def encode(message: dict[str, object]) -> bytes:
    """Return ``message`` as the bytes of one packet.

    Raises:
        ValueError: the packet would be larger than :data:`MAX_PACKET_BYTES`.
    """
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) > MAX_PACKET_BYTES:
        raise ValueError(f"sandbox message of {len(data)} bytes is too large")
    return data


def decode(data: bytes) -> dict[str, object]:
    """Return the message in one packet.

    Raises:
        TypeError: the packet is not a JSON object.
        ValueError: it is not JSON.
    """
    message = json.loads(data)
    if not isinstance(message, dict):
        raise TypeError("sandbox message is not an object")
    return message
