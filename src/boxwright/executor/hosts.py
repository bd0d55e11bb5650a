"""The two files of name resolution that every step sees.

``/etc/resolv.conf`` is this machine's (this pod's) own, byte for byte unless ``[dns]`` says
otherwise: steps share its network, so they share its resolver. Where they have a network of their
own, servers that only this machine reaches are left out. No public server is ever put in instead.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from pathlib import Path

from boxwright.core.dataclass import dataclass
from boxwright.executor.spec import DEFAULT_HOSTNAME

_RESOLV_CONF = Path("/etc/resolv.conf")
_SYSTEMD_RESOLV_CONF = Path("/run/systemd/resolve/resolv.conf")
_SYSTEMD_STUB = b"127.0.0.53"
_MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Dns:
    """``[dns]``: what replaces the machine's own settings; empty leaves them."""

    nameservers: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    search_domains: tuple[str, ...] = ()


def resolv_conf(
    dns: Dns = Dns(),  # noqa: B008 - immutable
    *,
    is_own_network: bool = False,
    path: Path = _RESOLV_CONF,
    systemd_path: Path = _SYSTEMD_RESOLV_CONF,
) -> bytes:
    """Return the resolver configuration of a step; empty where there is none.

    Args:
        dns: What is replaced.
        is_own_network: The step does not share the machine's network, so servers on the
            loopback address, like systemd's, can't be reached from it.
        path: The machine's configuration.
        systemd_path: Where systemd lists the real servers.
    """
    text = _read(path)
    if is_own_network and _servers(text) == [_SYSTEMD_STUB]:
        text = _read(systemd_path)
    if not is_own_network and dns == Dns():
        return text
    kept = [line for line in text.splitlines() if _is_kept(line, dns)]
    servers = [item.encode() for item in dns.nameservers] or _servers(text)
    if is_own_network:
        servers = [server for server in servers if not _is_loopback(server)]
    lines = [b"nameserver " + server for server in servers]
    if dns.search_domains:
        lines.append(b"search " + " ".join(dns.search_domains).encode())
    if dns.options:
        lines.append(b"options " + " ".join(dns.options).encode())
    return b"".join(line + b"\n" for line in (*lines, *kept))


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES)
    except OSError:
        return b""


def _servers(text: bytes) -> list[bytes]:
    words = (line.split() for line in text.splitlines())
    return [item[1] for item in words if len(item) > 1 and item[0] == b"nameserver"]


def _is_kept(line: bytes, dns: Dns) -> bool:
    keyword = line.split()[:1]
    if keyword in ([b"search"], [b"domain"]):
        return not dns.search_domains
    if keyword == [b"options"]:
        return not dns.options
    return keyword != [b"nameserver"]


def _is_loopback(server: bytes) -> bool:
    try:
        return ipaddress.ip_address(server.decode().partition("%")[0]).is_loopback
    except ValueError:
        return False


def hosts(hostname: str, extra: Iterable[tuple[str, str]]) -> bytes:
    """Return ``/etc/hosts`` for a step; ``extra`` are pairs of name and address."""
    lines = [
        f"127.0.0.1\tlocalhost {hostname or DEFAULT_HOSTNAME}",
        "::1\tlocalhost ip6-localhost ip6-loopback",
        *(f"{address}\t{name}" for name, address in extra),
    ]
    return "".join(f"{line}\n" for line in lines).encode()
