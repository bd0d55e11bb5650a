"""Which privileges a build has: those the daemon enables *and* the client asks for."""

from __future__ import annotations

import csv
from collections.abc import Iterable

from boxwright.config.schema import Config
from boxwright.engine.errors import DeviceNotAllowedError, EntitlementError
from boxwright.errors import InvalidInputError
from boxwright.executor.cdi import CdiRegistry
from boxwright.llb.graph import Edge, Vertex
from boxwright.wire.pb import ops_pb2

NETWORK_HOST = "network.host"
SECURITY_INSECURE = "security.insecure"
DEVICE = "device"
_KNOWN = frozenset({NETWORK_HOST, SECURITY_INSECURE, DEVICE})


def enabled_by(config: Config) -> tuple[str, ...]:
    """Return what the daemon lets builds ask for: devices unless there are none at all."""
    return (*config.insecure_entitlements, *(() if config.cdi.disabled else (DEVICE,)))


def granted(requested: Iterable[str], enabled: Iterable[str]) -> frozenset[str]:
    """Return the build's entitlements; those for single devices keep their value.

    Raises:
        InvalidInputError: the client names one that does not exist.
        EntitlementError: the client asks for one that the daemon has not enabled.
    """
    enabled_names = {name.partition("=")[0] for name in enabled}
    result: set[str] = set()
    for item in requested:
        name, _, value = item.partition("=")
        if name not in _KNOWN or (value and name != DEVICE):
            raise InvalidInputError(
                "unknown entitlement", detail=item, hint=f"one of {', '.join(sorted(_KNOWN))}"
            )
        if name not in enabled_names:
            raise EntitlementError(name, by_daemon=True)
        result.add(f"{name}={value}" if value else name)
    return frozenset(result)


def check_modes(network: int, security: int) -> None:
    """Refuse modes of a later protocol, which would otherwise be taken for others.

    Raises:
        InvalidInputError: there is no such mode.
    """
    if network not in ops_pb2.NetMode.values():
        raise InvalidInputError(f"invalid network mode {network}")
    if security not in ops_pb2.SecurityMode.values():
        raise InvalidInputError(f"invalid security mode {security}")


def check_graph(
    target: Edge, entitlements: frozenset[str], devices: CdiRegistry | None = None
) -> None:
    """Refuse a graph that holds a step with more privileges than the build has.

    What a step asks for of devices is replaced with the devices that it gets, before anything is
    keyed by it.

    Raises:
        EntitlementError: naming the missing one.
        DeviceNotFoundError: a device is not there.
    """
    seen: set[int] = set()
    pending: list[Vertex] = [target.vertex]
    while pending:
        vertex = pending.pop()
        if id(vertex) in seen:
            continue
        seen.add(id(vertex))
        pending.extend(edge.vertex for edge in vertex.inputs)
        if vertex.op.WhichOneof("op") != "exec":
            continue
        step = vertex.op.exec
        check_modes(step.network, step.security)
        wanted = (
            (step.network == ops_pb2.NetMode.HOST, NETWORK_HOST),
            (step.security == ops_pb2.SecurityMode.INSECURE, SECURITY_INSECURE),
        )
        for is_wanted, name in wanted:
            if is_wanted and name not in entitlements:
                raise EntitlementError(name, by_daemon=False)
        if step.cdiDevices and DEVICE not in entitlements:
            names = _allowed_devices(step, entitlements, devices or CdiRegistry(()))
            del step.cdiDevices[:]
            step.cdiDevices.extend(ops_pb2.CDIDevice(name=name) for name in names)


def _allowed_devices(
    step: ops_pb2.ExecOp, entitlements: frozenset[str], registry: CdiRegistry
) -> list[str]:
    """Return the devices that a step gets from those that its build may have."""
    aliases: dict[str, str] = {}
    allowed: set[str] = set()
    for item in entitlements:
        name, _, value = item.partition("=")
        if name == DEVICE:
            named, alias = _parse_device(value)
            aliases[alias] = named
            if not alias:
                allowed.update(each.name for each in registry.find(named))
    result: list[str] = []
    for wanted in step.cdiDevices:
        if aliases.get(wanted.name):
            result.append(aliases[wanted.name])
            continue
        for device in registry.find(wanted.name, optional=wanted.optional):
            if device.name not in allowed and not device.is_auto_allowed:
                raise DeviceNotAllowedError(device.name)
            result.append(device.name)
    return list(dict.fromkeys(result))


def _parse_device(value: str) -> tuple[str, str]:
    """Return device and alias of ``--allow device=NAME[,alias=OTHER]``."""
    device, *rest = next(csv.reader([value]), [""])
    alias = ""
    for item in rest:
        key, equals, alias = item.partition("=")
        if key != "alias" or not equals:
            raise InvalidInputError(f"unknown device config key {key!r}", hint="alias=NAME")
    return device, alias
