import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxwright.session import packets
from boxwright.session.packets import MalformedPacketError, Stat
from boxwright.wire.pb import fsutil_pb2

texts = st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="\x00"), max_size=40
).map(str.encode)
int64 = st.integers(-(2**63), 2**63 - 1)
uint32 = st.integers(0, 2**32 - 1)
stats = st.builds(
    Stat,
    path=texts,
    mode=uint32,
    uid=uint32,
    gid=uint32,
    size=int64,
    mtime_ns=int64,
    linkname=texts,
    devmajor=int64,
    devminor=int64,
    xattrs=st.dictionaries(texts, st.binary(max_size=20), max_size=3),
)


def message(stat: Stat) -> fsutil_pb2.Stat:
    return fsutil_pb2.Stat(
        path=stat.path.decode(),
        mode=stat.mode,
        uid=stat.uid,
        gid=stat.gid,
        size=stat.size,
        modTime=stat.mtime_ns,
        linkname=stat.linkname.decode(),
        devmajor=stat.devmajor,
        devminor=stat.devminor,
        xattrs={key.decode(): value for key, value in stat.xattrs.items()},
    )


@given(stats)
def test_stat_equals_protobuf_in_both_directions(stat):
    theirs = message(stat)
    assert fsutil_pb2.Stat.FromString(packets.encode_stat(stat)) == theirs
    assert packets.decode_stat(theirs.SerializeToString()) == stat


@given(stats)
def test_splitting_off_the_path_keeps_everything(stat):
    raw = packets.encode_stat(stat)
    path, rest = packets.split_path(raw)
    assert path == stat.path
    assert packets.decode_stat(packets.join_path(path, rest)) == stat


def test_a_path_that_is_not_utf8_survives():
    stat = Stat(b"caf\xe9/\xff", 0o644, size=3)
    assert packets.decode_stat(packets.encode_stat(stat)) == stat


@given(stats, uint32, st.binary(max_size=300))
def test_packets_equal_protobuf(stat, file_id, data):
    pb = fsutil_pb2.Packet
    raw = packets.encode_stat(stat)
    for ours, theirs in (
        (packets.stat_packet(raw), pb(type=pb.PACKET_STAT, stat=message(stat))),
        (packets.LAST_STAT_PACKET, pb(type=pb.PACKET_STAT)),
        (packets.request_packet(file_id), pb(type=pb.PACKET_REQ, ID=file_id)),
        (packets.data_packet(file_id, data), pb(type=pb.PACKET_DATA, ID=file_id, data=data)),
        (packets.FIN_PACKET, pb(type=pb.PACKET_FIN)),
        (packets.error_packet("no"), pb(type=pb.PACKET_ERR, data=b"no")),
    ):
        assert pb.FromString(ours) == theirs
        parsed = packets.parse_packet(theirs.SerializeToString())
        assert parsed.type == theirs.type
        assert parsed.id == theirs.ID
        if parsed.type == packets.STAT:
            assert (parsed.payload is None) == (not theirs.HasField("stat"))
        else:
            assert parsed.payload == theirs.data


@given(st.binary(max_size=60))
def test_garbage_is_a_typed_error_or_parses(raw):
    for parse in (packets.parse_packet, packets.decode_stat, packets.split_path):
        try:
            parse(raw)
        except MalformedPacketError:
            pass


@pytest.mark.parametrize("raw", [b"\x12\x05ab", b"\x08\x09", b"\x2a\x00", b"\x22\xff\xff"])
def test_malformed_packets(raw):
    with pytest.raises(MalformedPacketError):
        packets.parse_packet(raw)


@given(st.integers(0, 1 << 40), st.binary(max_size=300))
def test_data_packets_are_parsed_in_the_usual_order(file_id, data):
    raw = packets.data_packet(file_id, data)
    found = packets.parse_data(raw)
    assert found == ((file_id, data) if file_id < 1 << 35 else None)
    assert packets.parse_packet(raw) == packets.Packet(packets.DATA, file_id, data)


@pytest.mark.parametrize(
    "raw",
    [
        b"\x08\x02\x18",
        b"\x08\x02\x18\x80",
        b"\x08\x02\x22",
        b"\x08\x02\x22\x05ab",
        b"\x08\x02\x22\x01ab",
        b"\x08\x02\x22\x01a\x18\x05",
        b"\x08\x02\x12\x00",
    ],
)
def test_other_data_packets_are_left_to_the_general_parser(raw):
    assert packets.parse_data(raw) is None
