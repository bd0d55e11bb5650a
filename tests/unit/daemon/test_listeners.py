"""What the configuration makes the daemon listen on."""

from __future__ import annotations

from pathlib import Path

import pytest

from boxwright.config.schema import GrpcConfig, TlsConfig
from boxwright.daemon.service import (
    DaemonConfigError,
    _make_folder,
    default_address,
    listeners,
)
from boxwright.wire.listen import ListenError


def test_default_addresses_are_those_of_the_name():
    ours = default_address("boxwright", is_root=True)
    upstream = default_address("buildkitd", is_root=True)
    assert ours == "unix:///run/boxwright/boxwright.sock"
    assert upstream == "unix:///run/buildkit/buildkitd.sock"
    user = default_address("buildkitd", is_root=False, runtime_dir="/run/user/7")
    assert user == "unix:///run/user/7/buildkit/buildkitd.sock"


def test_owner_of_the_socket_and_certificates_of_tcp():
    config = GrpcConfig(
        address=("unix:///a.sock", "tcp://0.0.0.0:1234"),
        uid=5,
        tls=TlsConfig(cert="c.pem", key_file="k.pem", ca="ca.pem"),
    )
    unix, tcp = listeners(config, default="unix:///unused.sock")
    assert (unix.address, unix.uid, unix.gid, unix.tls) == ("unix:///a.sock", 5, -1, None)
    assert tcp.tls is not None
    assert (tcp.tls.ca, tcp.tls.cert, tcp.tls.key) == (
        Path("ca.pem"),
        Path("c.pem"),
        Path("k.pem"),
    )


def test_default_is_used_without_addresses():
    (only,) = listeners(GrpcConfig(), default="unix:///d.sock")
    assert only.address == "unix:///d.sock"


@pytest.mark.parametrize(
    "config",
    [
        GrpcConfig(address=("http://x",)),
        GrpcConfig(address=("/run/x.sock",)),
        GrpcConfig(tls=TlsConfig(cert="c.pem")),
    ],
)
def test_nonsense_is_refused(config):
    with pytest.raises(DaemonConfigError):
        listeners(config, default="unix:///d.sock")


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    address = f"unix://{tmp_path}/file/folder/x.sock"
    with pytest.raises(ListenError) as error:
        _make_folder(tmp_path / "file/folder", address)
    assert address in error.value.brief
    assert "--addr" in error.value.hint
