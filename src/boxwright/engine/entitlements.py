"""Which privileges a build has: those the daemon enables *and* the client asks for."""

from __future__ import annotations

from collections.abc import Iterable

from boxwright.engine.errors import EntitlementError
from boxwright.errors import InvalidInputError
from boxwright.llb.graph import Edge, Vertex
from boxwright.wire.pb import ops_pb2

NETWORK_HOST = "network.host"
SECURITY_INSECURE = "security.insecure"
DEVICE = "device"
_KNOWN = frozenset({NETWORK_HOST, SECURITY_INSECURE, DEVICE})


def granted(requested: Iterable[str], enabled: Iterable[str]) -> frozenset[str]:
    """Return the build's entitlements.

    Raises:
        InvalidInputError: the client names one that does not exist.
        EntitlementError: the client asks for one that the daemon has not enabled.
    """
    enabled_names = {name.partition("=")[0] for name in enabled}
    result: set[str] = set()
    for item in requested:
        name = item.partition("=")[0]
        if name not in _KNOWN:
            raise InvalidInputError(
                "unknown entitlement", detail=item, hint=f"one of {', '.join(sorted(_KNOWN))}"
            )
        if name not in enabled_names:
            raise EntitlementError(name, by_daemon=True)
        result.add(name)
    return frozenset(result)


def check_graph(target: Edge, entitlements: frozenset[str]) -> None:
    """Refuse a graph that holds a step with more privileges than the build has.

    Raises:
        EntitlementError: naming the missing one.
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
        wanted = (
            (step.network == ops_pb2.NetMode.HOST, NETWORK_HOST),
            (step.security == ops_pb2.SecurityMode.INSECURE, SECURITY_INSECURE),
            (len(step.cdiDevices) > 0, DEVICE),
        )
        for is_wanted, name in wanted:
            if is_wanted and name not in entitlements:
                raise EntitlementError(name, by_daemon=False)
