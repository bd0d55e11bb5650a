"""What a command is given besides its trees."""

from __future__ import annotations

import pytest

from boxwright.ops.errors import InvalidOpError
from boxwright.ops.execop import extra_host
from boxwright.wire.pb import ops_pb2 as pb


@pytest.mark.parametrize(
    ("given", "written"),
    [("1.2.3.4", "1.2.3.4"), ("0:0:0::5", "::5"), ("::ffff:1.2.3.4", "1.2.3.4")],
)
def test_addresses_of_hosts_are_written_as_go_writes_them(given: str, written: str) -> None:
    assert extra_host(pb.HostIP(Host="h", IP=given)) == ("h", written)


@pytest.mark.parametrize("given", ["", "1.2.3", "1.2.03.4", "fe80::1%eth0"])
def test_addresses_that_are_none(given: str) -> None:
    with pytest.raises(InvalidOpError, match="failed to parse IP"):
        extra_host(pb.HostIP(Host="h", IP=given))
