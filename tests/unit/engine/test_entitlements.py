"""Privileges need both the daemon's and the client's word."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from boxwright.config.schema import CdiConfig, Config
from boxwright.core.digest import Digest
from boxwright.engine.entitlements import check_graph, enabled_by, granted
from boxwright.engine.errors import DeviceNotAllowedError, EntitlementError
from boxwright.errors import InvalidInputError
from boxwright.executor.cdi import CdiRegistry, DeviceNotFoundError
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


def test_devices_are_enabled_unless_there_are_none() -> None:
    assert enabled_by(Config()) == ("device",)
    config = Config(cdi=CdiConfig(disabled=True), insecure_entitlements=("network.host",))
    assert enabled_by(config) == ("network.host",)


def test_graph_is_searched_to_the_bottom() -> None:
    host = step(network=ops_pb2.NetMode.HOST)
    with pytest.raises(EntitlementError) as error:
        check_graph(host, frozenset())
    assert error.value.entitlement == "network.host"
    check_graph(host, frozenset({"network.host"}))
    check_graph(step(), frozenset())
    with pytest.raises(EntitlementError):
        check_graph(step(security=ops_pb2.SecurityMode.INSECURE), frozenset({"network.host"}))


@pytest.fixture
def devices(tmp_path: Path) -> CdiRegistry:
    """Two devices, one of which needs no permission."""
    spec = {
        "kind": "a.example/dev",
        "devices": [
            {"name": "x"},
            {
                "name": "free",
                "annotations": {"org.mobyproject.buildkit.device.autoallow": "true"},
            },
        ],
    }
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    return CdiRegistry([str(tmp_path)])


def got(edge: Edge) -> list[str]:
    return [device.name for device in edge.vertex.inputs[0].vertex.op.exec.cdiDevices]


def asking(*names: str) -> Edge:
    return step(cdiDevices=[ops_pb2.CDIDevice(name=name) for name in names])


def test_devices_need_permission_one_by_one(devices: CdiRegistry) -> None:
    with pytest.raises(DeviceNotAllowedError) as error:
        check_graph(asking("a.example/dev=x"), frozenset(), devices)
    assert error.value.device == "a.example/dev=x"
    allowed = granted(["device=a.example/dev=x"], ["device"])
    both = asking("a.example/dev=*")
    check_graph(both, allowed, devices)
    assert got(both) == ["a.example/dev=free", "a.example/dev=x"]
    free = asking("a.example/dev=free")
    check_graph(free, frozenset(), devices)
    assert got(free) == ["a.example/dev=free"]


def test_all_devices_at_once_leave_the_step_as_it_is(devices: CdiRegistry) -> None:
    edge = asking("a.example/dev=*")
    check_graph(edge, granted(["device"], ["device"]), devices)
    assert got(edge) == ["a.example/dev=*"]


def test_a_device_under_another_name(devices: CdiRegistry) -> None:
    edge = asking("gpu")
    check_graph(edge, granted(["device=a.example/dev=x,alias=gpu"], ["device"]), devices)
    assert got(edge) == ["a.example/dev=x"]
    with pytest.raises(InvalidInputError):
        check_graph(asking("gpu"), frozenset({"device=a,wrong=b"}), devices)


def test_a_device_that_is_not_there(devices: CdiRegistry) -> None:
    with pytest.raises(DeviceNotFoundError):
        check_graph(asking("a.example/dev=y"), frozenset(), devices)
    edge = step(cdiDevices=[ops_pb2.CDIDevice(name="a.example/dev=y", optional=True)])
    check_graph(edge, frozenset(), devices)
    assert got(edge) == []


@pytest.mark.parametrize(("field", "text"), [("network", "network"), ("security", "security")])
def test_modes_that_nobody_knows_are_refused(field: str, text: str) -> None:
    with pytest.raises(InvalidInputError, match=f"invalid {text} mode 9"):
        check_graph(step(**{field: 9}), frozenset())
