"""The two files of name resolution that every step sees.

``/etc/resolv.conf`` is this machine's (this pod's) own, byte for byte: steps share its network,
so they share its resolver, and no public server is ever put in instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from boxwright.executor.spec import DEFAULT_HOSTNAME

_RESOLV_CONF = Path("/etc/resolv.conf")
_MAX_BYTES = 1 << 20


def resolv_conf(path: Path = _RESOLV_CONF) -> bytes:
    """Return the resolver configuration; empty where there is none."""
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES)
    except OSError:
        return b""


def hosts(hostname: str, extra: Iterable[tuple[str, str]]) -> bytes:
    """Return ``/etc/hosts`` for a step; ``extra`` are pairs of name and address."""
    lines = [
        f"127.0.0.1\tlocalhost {hostname or DEFAULT_HOSTNAME}",
        "::1\tlocalhost ip6-localhost ip6-loopback",
        *(f"{address}\t{name}" for name, address in extra),
    ]
    return "".join(f"{line}\n" for line in lines).encode()
