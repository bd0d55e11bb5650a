"""Privileges need both the daemon's and the client's word."""

from __future__ import annotations

import pytest

from boxwright.core.digest import Digest
from boxwright.engine.entitlements import check_graph, granted
from boxwright.engine.errors import EntitlementError
from boxwright.errors import InvalidInputError
from boxwright.llb.graph import Edge, Vertex
from boxwright.wire.pb import ops_pb2


def step(**fields: object) -> Edge:
    op = ops_pb2.Op(exec=ops_pb2.ExecOp(**fields))  # type: ignore[arg-type]
    inner = Vertex(Digest.of(b"in"), op)
    return Edge(Vertex(Digest.of(b"out"), ops_pb2.Op(merge=ops_pb2.MergeOp()), (Edge(inner),)))


def test_granted_is_the_intersection() -> None:
    assert granted([], ["network.host"]) == frozenset()
    assert granted(["network.host"], ["network.host"]) == {"network.host"}
    with pytest.raises(EntitlementError):
        granted(["security.insecure"], ["network.host"])
    with pytest.raises(InvalidInputError):
        granted(["everything"], ["everything"])


def test_graph_is_searched_to_the_bottom() -> None:
    host = step(network=ops_pb2.NetMode.HOST)
    with pytest.raises(EntitlementError) as error:
        check_graph(host, frozenset())
    assert error.value.entitlement == "network.host"
    check_graph(host, frozenset({"network.host"}))
    check_graph(step(), frozenset())
    with pytest.raises(EntitlementError):
        check_graph(step(security=ops_pb2.SecurityMode.INSECURE), frozenset({"network.host"}))
