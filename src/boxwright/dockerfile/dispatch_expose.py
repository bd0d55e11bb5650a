"""EXPOSE: port specifications ``[ip:][host:]container[-end][/protocol]``."""

from __future__ import annotations

import ipaddress

from boxwright.dockerfile import lint_rules as rules
from boxwright.dockerfile.errors import DockerfileError
from boxwright.dockerfile.golang import parse_int, quote
from boxwright.dockerfile.lint import Linter
from boxwright.dockerfile.syntax import Range

_PROTOCOLS = frozenset({"tcp", "udp", "sctp"})


def parse_ports(specs: list[str], linter: Linter, ranges: tuple[Range, ...]) -> list[str]:
    """Return ``port/protocol`` for every port of every specification.

    Raises:
        DockerfileError: a specification is malformed.
    """
    return [port for spec in specs for port in _parse_port(spec, linter, ranges)]


def _parse_port(spec: str, linter: Linter, ranges: tuple[Range, ...]) -> list[str]:
    address, host, container = _split(spec)
    container, _, protocol = container.partition("/")
    if not container:
        raise _invalid(spec, "no port specified")
    protocol = protocol or "tcp"
    if protocol.lower() not in _PROTOCOLS:
        raise _invalid(spec, f"invalid proto: {protocol}")
    if protocol != protocol.lower():
        linter.emit(rules.EXPOSE_PROTO_CASING, ranges, port=spec)
    if address or host:
        linter.emit(rules.EXPOSE_INVALID_FORMAT, ranges, port=spec)
    _check_address(address)
    start, end = _port_range(container, "containerPort")
    if host:
        host_start, host_end = _port_range(host, "hostPort")
        if end - start != host_end - host_start and end != start:
            raise DockerfileError(
                f"invalid ranges specified for container and host Ports: {container} and {host}",
                token=spec,
            )
    return [f"{port}/{protocol.lower()}" for port in range(start, end + 1)]


def _split(spec: str) -> tuple[str, str, str]:
    rest, _, container = spec.rpartition(":")
    address, _, host = rest.rpartition(":")
    return address, host, container


def _check_address(address: str) -> None:
    if not address:
        return
    bare = address[1:-1] if address.startswith("[") and address.endswith("]") else address
    try:
        ipaddress.ip_address(bare)
    except ValueError:
        raise DockerfileError(f"invalid IP address: {address}", token=address) from None


def _port_range(text: str, what: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    try:
        start = _port(first)
        end = _port(last) if dash and first != last else start
    except ValueError:
        raise DockerfileError(f"invalid {what}: {text}", token=text) from None
    if end < start:
        raise DockerfileError(f"invalid {what}: {text}", token=text)
    return start, end


def _port(text: str) -> int:
    port = parse_int(text, bits=64)
    if not 0 <= port <= 65535:
        raise ValueError(text)
    return port


def _invalid(spec: str, why: str) -> DockerfileError:
    return DockerfileError(f"invalid port: {quote(spec)}: {why}", token=spec)
