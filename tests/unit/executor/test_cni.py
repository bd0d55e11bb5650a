"""Calls of CNI plugins; the plugins are scripts of the test."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from boxwright.executor import cni
from boxwright.executor.cni import NetworkConfigError, NetworkSetupError
from boxwright.executor.networks import Networks, NetworkSettings

SCRIPT = """#!/bin/sh
input=$(cat)
echo "$CNI_COMMAND {name} $CNI_CONTAINERID $CNI_NETNS $CNI_IFNAME $CNI_ARGS" >>{log}
echo "$input" >>{log}.input
{body}
"""


class Plugins:
    """A folder of plugins that note how they were called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"

    def add(self, name: str, body: str = 'echo "{}"') -> None:
        path = self.folder / name
        path.write_text(SCRIPT.format(name=name, log=self.log, body=body))
        path.chmod(0o755)

    def calls(self) -> list[str]:
        return [line.rstrip() for line in self.log.read_text().splitlines()]

    def inputs(self) -> list[dict[str, Any]]:
        lines = Path(f"{self.log}.input").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def network(self, *names: str) -> cni.CniNetwork:
        plugins = [{"type": name, "key": name} for name in names]
        data = {"cniVersion": "1.0.0", "name": "net", "plugins": plugins}
        return cni.parse(data, (self.folder,), "test")


@pytest.fixture
def plugins(tmp_path: Path) -> Plugins:
    """An empty folder of plugins."""
    return Plugins(tmp_path)


def test_plugins_are_called_in_order_and_undone_in_reverse(plugins: Plugins) -> None:
    plugins.add("one", """echo '{"ips":[{"address":"10.0.0.1/8"}]}'""")
    plugins.add("two", """echo '{"ips":[],"dns":{}}'""")
    network = plugins.network("one", "two")

    async def use() -> None:
        result = await network.add("id", "/ns", hostname="here")
        assert result == {"ips": [], "dns": {}}
        await network.remove("id", "/ns", result=result)

    asyncio.run(use())
    assert plugins.calls() == [
        "ADD one id /ns eth0 K8S_POD_NAME=here;IgnoreUnknown=1",
        "ADD two id /ns eth0 K8S_POD_NAME=here;IgnoreUnknown=1",
        "DEL two id /ns eth0",
        "DEL one id /ns eth0",
    ]
    first, second, *_ = plugins.inputs()
    assert first == {"type": "one", "key": "one", "cniVersion": "1.0.0", "name": "net"}
    assert second["prevResult"] == {"ips": [{"address": "10.0.0.1/8"}]}


def test_what_was_begun_is_undone(plugins: Plugins) -> None:
    plugins.add("one")
    plugins.add(
        "two",
        'if [ $CNI_COMMAND = ADD ]; then echo \'{"code":7,"msg":"full","details":"no ips"}\'; '
        "exit 1; fi",
    )
    network = plugins.network("one", "two")
    with pytest.raises(NetworkSetupError) as caught:
        asyncio.run(network.add("id", "/ns"))
    assert "two failed to ADD" in caught.value.brief
    assert caught.value.detail == "full: no ips"
    assert [call.split()[0] for call in plugins.calls()] == ["ADD", "ADD", "DEL", "DEL"]


def test_a_plugin_that_is_stuck_is_killed_with_its_children(
    plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cni, "_PLUGIN_TIMEOUT_S", 0.2)
    plugins.add("one", "[ $CNI_COMMAND = DEL ] || sleep 1000")
    with pytest.raises(NetworkSetupError) as caught:
        asyncio.run(plugins.network("one").add("id", "/ns"))
    assert "no end" in caught.value.detail


@pytest.mark.parametrize(
    "data",
    [
        {"plugins": []},
        {"plugins": "x"},
        {"type": ""},
        {"type": "../escape"},
        {"plugins": [{"type": "missing"}]},
        {},
    ],
    ids=["none", "text", "empty", "path", "missing", "no type"],
)
def test_bad_configurations_are_named(plugins: Plugins, data: dict[str, Any]) -> None:
    with pytest.raises(NetworkConfigError):
        cni.parse(data, (plugins.folder,), "test")


def test_modes(plugins: Plugins, tmp_path: Path) -> None:
    async def open_mode(mode: str, *, is_root: bool = True, **changes: Any) -> str:
        settings = NetworkSettings(mode=mode, binaries=plugins.folder, **changes)
        return Networks.open(settings, tmp_path, is_root=is_root).mode

    def mode_of(mode: str, **options: Any) -> str:
        return asyncio.run(open_mode(mode, **options))

    plugins.add("one")
    config = tmp_path / "cni.json"
    missing = tmp_path / "missing.json"
    config.write_text('{"type": "one"}')
    assert mode_of("auto", config_path=missing) == "host"
    assert mode_of("auto", config_path=config) == "cni"
    assert mode_of("auto", config_path=config, is_root=False) == "host"
    assert mode_of("none") == "none"
    for mode, options in (
        ("cni", {"config_path": missing}),
        ("cni", {"config_path": config, "is_root": False}),
        ("bridge", {}),
        ("nonsense", {}),
    ):
        with pytest.raises(NetworkConfigError):
            mode_of(mode, **options)
