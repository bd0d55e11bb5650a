"""Devices of the Container Device Interface as data."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxwright.errors import InvalidInputError
from boxwright.executor.cdi import CdiRegistry, Device, DeviceNotFoundError, inject, parse

SPEC: dict[str, Any] = {
    "cdiVersion": "0.6.0",
    "kind": "vendor.example/gpu",
    "annotations": {"org.mobyproject.buildkit.device.class": "gpus"},
    "containerEdits": {"env": ["SHARED=1"]},
    "devices": [
        {"name": "0", "containerEdits": {"env": ["GPU=0"]}},
        {
            "name": "1",
            "annotations": {"org.mobyproject.buildkit.device.autoallow": "true"},
            "containerEdits": {"env": ["GPU=1"], "deviceNodes": [{"path": "/dev/null"}]},
        },
    ],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one specification."""
    (tmp_path / "gpu.json").write_text(json.dumps(SPEC))
    return tmp_path


def names(devices: list[Device]) -> list[str]:
    return [device.name.partition("=")[2] for device in devices]


def test_names_mean_one_first_all_or_a_class(folder: Path) -> None:
    registry = CdiRegistry([str(folder)])
    assert names(registry.find("vendor.example/gpu=1")) == ["1"]
    assert names(registry.find("vendor.example/gpu")) == ["0"]
    assert names(registry.find("vendor.example/gpu=*")) == ["0", "1"]
    assert names(registry.find("gpus")) == ["0", "1"]
    assert registry.find("vendor.example/gpu=7", optional=True) == []
    for missing in ("vendor.example/gpu=7", "other.example/x", "nothing"):
        with pytest.raises(DeviceNotFoundError) as caught:
            registry.find(missing)
        assert caught.value.device == missing


YAML = """\
# as the vendors' tools write it
cdiVersion: "0.6.0"
kind: "vendor.example/nic"
annotations:
  org.mobyproject.buildkit.device.autoallow: true
devices:
- name: 0
  containerEdits:
    deviceNodes:
    - {path: /dev/nic, hostPath: /dev/null, fileMode: 0660}
- name: one
  containerEdits:
    env:
    - NIC=one
"""


def test_specifications_in_yaml(folder: Path) -> None:
    (folder / "nic.yaml").write_text(YAML)
    registry = CdiRegistry([str(folder)])
    assert names(registry.devices()) == ["0", "1", "0", "one"]
    first, one = registry.find("vendor.example/nic=*")
    assert first.is_auto_allowed
    assert one.edits == [{"env": ["NIC=one"]}]
    planned: dict[str, Any] = {
        "process": {"env": [], "user": {"additionalGids": []}},
        "linux": {},
        "mounts": [],
    }
    inject(planned, [first])
    assert planned["linux"]["devices"][0]["fileMode"] == 0o660


def test_what_needs_no_permission(folder: Path) -> None:
    def allowed(*listed: str) -> list[bool]:
        return [d.is_auto_allowed for d in CdiRegistry([str(folder)], listed).devices()]

    assert allowed() == [False, True]
    assert allowed("vendor.example/gpu") == [True, True]
    assert allowed("vendor.example/gpu=0") == [True, True]


def test_changed_folders_are_read_again(folder: Path) -> None:
    registry = CdiRegistry([str(folder), str(folder / "missing")])
    assert len(registry.devices()) == 2
    other = {**SPEC, "kind": "vendor.example/nic", "devices": [{"name": "a"}]}
    (folder / "nic.json").write_text(json.dumps(other))
    assert len(registry.devices()) == 3
    (folder / "nic.json").unlink()
    assert registry.get("vendor.example/nic=a") is None


def test_a_bad_file_does_not_hide_the_others(folder: Path) -> None:
    (folder / "a.json").write_text("{")
    (folder / "b.json").write_text('{"kind": "x"}')
    (folder / "c.yaml").write_text("kind: vendor.example/y")
    (folder / "d.yaml").write_text("kind: [")
    (folder / "e.yaml").write_text("[" * 100_000)
    (folder / "f.yaml").write_text("!!python/object/apply:os.abort []")
    (folder / "g.yml").write_text(json.dumps({**SPEC, "kind": "vendor.example/other"}))
    assert len(CdiRegistry([str(folder)]).devices()) == 2


def container() -> dict[str, Any]:
    return {
        "process": {"env": ["A=1", "GPU=none"], "user": {"additionalGids": [5]}},
        "linux": {"resources": {"devices": [{"allow": False}]}},
        "mounts": [{"destination": "/proc"}],
    }


def test_edits_change_the_container(folder: Path) -> None:
    spec = container()
    inject(spec, CdiRegistry([str(folder)]).find("gpus"))
    assert spec["process"]["env"] == ["A=1", "SHARED=1", "GPU=1"]
    info = os.stat("/dev/null")
    number = {"major": os.major(info.st_rdev), "minor": os.minor(info.st_rdev)}
    assert spec["linux"]["devices"] == [
        {"path": "/dev/null", "type": "c", **number, "fileMode": 0o666}
    ]
    assert spec["linux"]["resources"]["devices"] == [
        {"allow": False},
        {"allow": True, "type": "c", **number, "access": "rwm"},
    ]


def test_mounts_hooks_and_groups() -> None:
    edits = {
        "mounts": [{"hostPath": "/h", "containerPath": "/c", "options": ["ro"]}],
        "hooks": [{"hookName": "createContainer", "path": "/bin/h", "args": ["h", "x"]}],
        "additionalGids": [0, 7, 5],
    }
    spec = container()
    inject(spec, parse({"kind": "a.b/c", "devices": [{"name": "d", "containerEdits": edits}]}))
    assert spec["mounts"][1:] == [
        {"destination": "/c", "source": "/h", "type": "bind", "options": ["ro"]}
    ]
    assert spec["hooks"] == {"createContainer": [{"path": "/bin/h", "args": ["h", "x"]}]}
    assert spec["process"]["user"]["additionalGids"] == [5, 7]


@pytest.mark.parametrize(
    "edits",
    [
        {"deviceNodes": [{}]},
        {"deviceNodes": [{"path": "/nonexistent/node"}]},
        {"deviceNodes": [{"path": "/"}]},
        {"mounts": [{"hostPath": "/x"}]},
        {"hooks": [{"hookName": "never", "path": "/x"}]},
        {"deviceNodes": ["x"]},
    ],
    ids=["no path", "missing", "no node", "no place", "unknown hook", "text"],
)
def test_wrong_descriptions_are_typed_errors(edits: dict[str, Any]) -> None:
    devices = parse({"kind": "a.b/c", "devices": [{"name": "d", "containerEdits": edits}]})
    with pytest.raises(InvalidInputError):
        inject(container(), devices)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
)


@given(JSON, JSON)
def test_any_file_parses_or_is_refused(shared: object, edits: object) -> None:
    data = {
        "kind": "a.b/c",
        "containerEdits": shared,
        "devices": [{"name": "d", "containerEdits": edits}],
    }
    try:
        parse(data)
    except InvalidInputError:
        pass
