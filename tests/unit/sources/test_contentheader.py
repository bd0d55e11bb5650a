"""The header of plain files is the general one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from boxwright.session import packets
from boxwright.session.packets import Stat
from boxwright.snapshots import tarsum
from boxwright.sources.contentheader import content_header, kernel_mode

MODES = st.integers(0, 0o777).flatmap(
    lambda bits: st.sampled_from((0, packets.MODE_SETUID, packets.MODE_STICKY)).map(
        lambda more: bits | more
    )
)


@given(MODES, st.integers(0, 70_000), st.integers(0, 70_000), st.integers(0, 1 << 40))
def test_plain_files_have_the_general_header(mode: int, uid: int, gid: int, size: int) -> None:
    stat = Stat(b"f", mode, uid, gid, size)
    assert content_header(stat) == tarsum.header(kernel_mode(stat), uid, gid, size)


@given(st.integers(0, 0o777), st.binary(max_size=5))
def test_attributes_and_devices_count(mode: int, value: bytes) -> None:
    plain = content_header(Stat(b"f", mode))
    assert content_header(Stat(b"f", mode, devmajor=1)) != plain
    assert content_header(Stat(b"f", mode, xattrs={b"user.a": value})) != plain
    assert content_header(Stat(b"f", mode, linkname=b"other")) == plain  # a hard link
