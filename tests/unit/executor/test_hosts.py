"""The resolver configuration of steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from boxwright.executor.hosts import Dns, resolv_conf

MACHINE = b"# a note\nnameserver 127.0.0.11\nnameserver 10.0.0.2\nsearch a b\noptions edns0\n"


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, Path]:
    """The files of a machine, one of which does not exist."""
    path = tmp_path / "resolv.conf"
    path.write_bytes(MACHINE)
    return {"path": path, "systemd_path": tmp_path / "systemd.conf"}


def test_the_machines_own_byte_for_byte(machine: dict[str, Path]) -> None:
    assert resolv_conf(**machine) == MACHINE


def test_each_key_replaces_its_lines(machine: dict[str, Path]) -> None:
    assert resolv_conf(Dns(nameservers=("9.9.9.9", "::1")), **machine) == (
        b"nameserver 9.9.9.9\nnameserver ::1\n# a note\nsearch a b\noptions edns0\n"
    )
    assert resolv_conf(Dns(options=("ndots:1",), search_domains=("x", "y")), **machine) == (
        b"nameserver 127.0.0.11\nnameserver 10.0.0.2\nsearch x y\noptions ndots:1\n# a note\n"
    )


def test_loopback_servers_do_not_answer_in_a_network_of_its_own(machine: dict[str, Path]) -> None:
    assert resolv_conf(is_own_network=True, **machine) == (
        b"nameserver 10.0.0.2\n# a note\nsearch a b\noptions edns0\n"
    )


def test_systemds_stub_stands_for_the_servers_behind_it(machine: dict[str, Path]) -> None:
    machine["path"].write_bytes(b"nameserver 127.0.0.53\n")
    machine["systemd_path"].write_bytes(b"nameserver 192.0.2.1\n")
    assert resolv_conf(is_own_network=True, **machine) == b"nameserver 192.0.2.1\n"
    assert resolv_conf(**machine) == b"nameserver 127.0.0.53\n"


def test_no_file_is_no_server(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert resolv_conf(path=missing, systemd_path=missing) == b""
    assert resolv_conf(is_own_network=True, path=missing, systemd_path=missing) == b""
