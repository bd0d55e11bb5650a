"""Networks, resolvers and devices of steps, as the daemon's configuration gives them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from programs import Cli, Context, Daemon, Run

pytestmark = [pytest.mark.root, pytest.mark.peer("crun")]

Start = Callable[[str], Daemon]

PLUGIN = """#!/bin/sh
cat >/dev/null
echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_NETNS" >>{log}
[ $CNI_COMMAND != ADD ] || [ ! -e {log}.refuse ] || {{
    echo '{{"code": 11, "msg": "no addresses", "details": "left"}}'; exit 1; }}
echo '{{"cniVersion": "1.0.0"}}'
"""


@pytest.fixture
def start(daemon: Daemon, tmp_path: Path) -> Iterator[Start]:
    """Start the daemon again with a configuration."""

    def restart(text: str) -> Daemon:
        daemon.stop()
        config = tmp_path / "buildkitd.toml"
        config.write_text(text)
        if "--config" not in daemon.argv:
            daemon.argv += ["--config", str(config)]
        return daemon.start()

    return restart


def built(cli: Cli, daemon: Daemon, context: Context, script: str, *options: str) -> Run:
    context.dockerfile(f"FROM base\nRUN {script}\n")
    return cli("--addr", daemon.address, "build", "--progress", "plain", "--no-cache",
               *options, str(context.path))  # fmt: skip


class Plugin:
    """A network plugin that only notes its calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        folder.mkdir()
        script = folder / "noting"
        script.write_text(PLUGIN.format(log=self.log))
        script.chmod(0o755)
        (folder / "net.conf").write_text('{"cniVersion": "1.0.0", "name": "n", "type": "noting"}')

    def config(self, pool_size: int = 0) -> str:
        return (
            f'[worker.oci]\nnetworkMode = "cni"\ncniPoolSize = {pool_size}\n'
            f'cniConfigPath = "{self.folder}/net.conf"\ncniBinaryPath = "{self.folder}"\n'
        )

    def calls(self) -> list[list[str]]:
        return [line.split() for line in self.log.read_text().splitlines()]


@pytest.fixture
def plugin(tmp_path: Path) -> Plugin:
    """A plugin of the test's own."""
    return Plugin(tmp_path / "cni")


def test_each_step_gets_a_network_of_its_own(
    cli: Cli, start: Start, plugin: Plugin, context: Context
) -> None:
    daemon = start(plugin.config())
    done = built(cli, daemon, context, "ls /sys/class/net").ok()
    assert " lo" in done.text
    assert "eth0" not in done.text
    (add, add_id, add_path), (delete, del_id, del_path) = plugin.calls()
    assert (add, delete) == ("ADD", "DEL")
    assert (add_id, add_path) == (del_id, del_path)
    assert not Path(add_path).exists()


def test_a_network_is_kept_for_the_next_step(
    cli: Cli, start: Start, plugin: Plugin, context: Context
) -> None:
    daemon = start(plugin.config(pool_size=1))
    for _ in range(2):
        built(cli, daemon, context, "true").ok()
    assert [call[0] for call in plugin.calls()] == ["ADD"]
    daemon.stop()
    assert [call[0] for call in plugin.calls()] == ["ADD", "DEL"]


def test_what_a_killed_daemon_left_is_disconnected(
    cli: Cli, start: Start, plugin: Plugin, context: Context
) -> None:
    daemon = start(plugin.config(pool_size=1))
    built(cli, daemon, context, "true").ok()
    daemon.stop(signal.SIGKILL)
    daemon.start()
    built(cli, daemon, context, "true").ok()
    first, left, second = plugin.calls()
    assert (first[0], left[0], second[0]) == ("ADD", "DEL", "ADD")
    assert first[1] == left[1] != second[1]


def test_a_plugin_that_refuses_fails_the_step_with_its_words(
    cli: Cli, start: Start, plugin: Plugin, context: Context
) -> None:
    daemon = start(plugin.config())
    Path(f"{plugin.log}.refuse").touch()
    done = built(cli, daemon, context, "true")
    assert done.status != 0
    assert "noting failed to ADD: no addresses: left" in done.text
    assert [call[0] for call in plugin.calls()] == ["ADD", "DEL"]


def test_steps_without_any_network(cli: Cli, start: Start, context: Context) -> None:
    daemon = start('[worker.oci]\nnetworkMode = "none"\n')
    done = built(cli, daemon, context, "ls /sys/class/net").ok()
    assert "eth0" not in done.text


def real_plugins() -> Path:
    """Return the folder of the distribution's plugins."""
    folders = [Path(name) for name in ("/usr/lib/cni", "/opt/cni/bin")]
    return next(folder for folder in folders if (folder / "host-local").exists())


@pytest.mark.peer("host-local")
@pytest.mark.peer("iptables")
def test_a_list_of_the_distributions_plugins(
    cli: Cli, start: Start, context: Context, tmp_path: Path
) -> None:
    """Steps reach the bridge, and not what listens on the machine's loopback address."""
    bridge = f"bx{os.getpid() % 10**9}"
    ranges = [[{"subnet": "10.213.78.0/24"}]]
    network = {
        "cniVersion": "0.4.0",
        "name": bridge,
        "plugins": [
            {
                "type": "bridge",
                "bridge": bridge,
                "isDefaultGateway": True,
                "ipMasq": True,
                "hairpinMode": True,
                "ipam": {"type": "host-local", "ranges": ranges, "dataDir": f"{tmp_path}/ipam"},
            },
            {"type": "firewall"},
        ],
    }
    (tmp_path / "net.conflist").write_text(json.dumps(network))
    daemon = start(
        f'[worker.oci]\nnetworkMode = "cni"\ncniConfigPath = "{tmp_path}/net.conflist"\n'
        f'cniBinaryPath = "{real_plugins()}"\n[dns]\nnameservers = ["10.213.78.1"]\n'
    )
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            done = built(
                cli, daemon, context,
                "busybox ping -c 1 -W 5 10.213.78.1 && cat /etc/resolv.conf && "
                f"! busybox nc -w 2 127.0.0.1 {server.getsockname()[1]}",
            ).ok()  # fmt: skip
        assert "1 packets received" in done.text
        assert "nameserver 10.213.78.1" in done.text
        daemon.stop()
        assert not list((tmp_path / "ipam" / bridge).glob("10.*"))
    finally:
        subprocess.run(["ip", "link", "delete", bridge], check=False, capture_output=True)


@pytest.mark.peer("host-local")
@pytest.mark.peer("iptables")
def test_a_bridge_of_our_own(cli: Cli, start: Start, context: Context) -> None:
    binaries = real_plugins()
    bridge = f"bw{os.getpid() % 10**9}"
    daemon = start(
        f'[worker.oci]\nnetworkMode = "bridge"\ncniBinaryPath = "{binaries}"\n'
        f'bridgeName = "{bridge}"\nbridgeSubnet = "10.213.77.0/24"\n'
    )
    done = built(
        cli, daemon, context, "busybox ip addr show eth0 && busybox ping -c 1 -W 5 10.213.77.1"
    ).ok()
    assert "inet 10.213.77." in done.text
    assert "1 packets received" in done.text
    daemon.stop()
    assert not Path("/sys/class/net", bridge).exists()


def test_resolver_settings(cli: Cli, start: Start, context: Context) -> None:
    daemon = start(
        '[dns]\nnameservers = ["192.0.2.7"]\noptions = ["ndots:4"]\nsearchDomains = ["a.b"]\n'
    )
    done = built(cli, daemon, context, "cat /etc/resolv.conf").ok()
    for line in ("nameserver 192.0.2.7", "options ndots:4", "search a.b"):
        assert line in done.text
    assert done.text.count("nameserver") == 1


@pytest.fixture
def devices(tmp_path: Path) -> str:
    """The configuration for a folder with one device, which daemons may grant."""
    folder = tmp_path / "cdi"
    folder.mkdir()
    spec = {
        "cdiVersion": "0.6.0",
        "kind": "vendor.example/thing",
        "devices": [
            {
                "name": "one",
                "containerEdits": {
                    "env": ["THING=here"],
                    "deviceNodes": [{"path": "/dev/thing", "hostPath": "/dev/zero"}],
                    "mounts": [
                        {"hostPath": "/etc/hostname", "containerPath": "/thing.txt",
                         "options": ["ro", "bind"]}
                    ],
                },
            }
        ],
    }  # fmt: skip
    (folder / "thing.json").write_text(json.dumps(spec))
    return f'insecure-entitlements = ["device"]\n[cdi]\nspecDirs = ["{folder}"]\n'


STEP = (
    '--device=vendor.example/thing=one echo "thing is $THING" && dd if=/dev/thing bs=3 count=1 '
    "| wc -c && cat /thing.txt"
)


def test_a_device_reaches_the_step(cli: Cli, start: Start, devices: str, context: Context) -> None:
    daemon = start(devices)
    allow = "device=vendor.example/thing=one"
    done = built(cli, daemon, context, STEP, "--allow", allow).ok()
    assert "thing is here" in done.text
    assert " 3\n" in done.text
    assert Path("/etc/hostname").read_text().strip() in done.text


def test_a_device_that_the_build_may_not_have(
    cli: Cli, start: Start, devices: str, context: Context
) -> None:
    daemon = start(devices)
    done = built(cli, daemon, context, STEP)
    assert "device vendor.example/thing=one is requested by the build but not allowed" in done.text
    done = built(cli, daemon, context, STEP.replace("=one", "=two,required"), "--allow", "device")
    assert 'required device "vendor.example/thing=two" is not registered' in done.text


def test_specifications_in_yaml_and_flags(
    cli: Cli, daemon: Daemon, context: Context, tmp_path: Path
) -> None:
    """``buildkitd``'s own flags name the folder, or switch devices off."""
    (tmp_path / "devices").mkdir()
    (tmp_path / "devices/thing.yaml").write_text(
        'cdiVersion: "0.6.0"\nkind: "vendor.example/thing"\n'
        "annotations:\n  org.mobyproject.buildkit.device.autoallow: true\n"
        "devices:\n- name: one\n  containerEdits:\n    env:\n    - THING=yaml\n"
    )
    link = tmp_path / "buildkitd"
    link.symlink_to(daemon.argv[0])
    daemon.stop()
    plain = [str(link), "--root", str(daemon.root), "--addr", daemon.address]
    daemon.argv = [*plain, "--cdi-spec-dir", str(tmp_path / "devices")]
    daemon.start()
    step = '--device=vendor.example/thing=one,required echo "thing is $THING"'
    assert "thing is yaml" in built(cli, daemon, context, step).ok().text
    daemon.stop()
    daemon.argv.append("--cdi-disabled")
    daemon.start()
    refused = built(cli, daemon, context, step)
    assert refused.status != 0
    assert "vendor.example/thing=one" in refused.text


@pytest.mark.peer("docker-buildx")
def test_a_stock_client_lists_the_devices(
    start: Start, devices: str, request: pytest.FixtureRequest
) -> None:
    start(devices.replace("[cdi]\n", '[cdi]\nautoAllowed = ["vendor.example/thing"]\n'))
    listed = request.getfixturevalue("buildx")("inspect").ok().out
    assert "vendor.example/thing=one" in listed
    assert "Automatically allowed:" in listed
