"""Round trips of everything that the wire encodes by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxwright.errors import InvalidInputError
from boxwright.wire import frames, metadata
from boxwright.wire import fsutil_codec as codec
from boxwright.wire.fsutil_codec import FileStat
from boxwright.wire.http2 import Http2
from boxwright.wire.http2send import Http2Error
from boxwright.wire.pb import fsutil_pb2
from boxwright.wire.tunnel import _field_header, _field_start

U32 = st.integers(0, 2**32 - 1)
I64 = st.integers(-(2**63), 2**63 - 1)
NAMES = st.text(max_size=40).map(str.encode)
STATS = st.builds(
    FileStat, NAMES, U32, U32, U32, I64, I64, NAMES, I64, I64,
    st.dictionaries(NAMES, st.binary(max_size=20), max_size=3),
)  # fmt: skip


def as_message(stat: FileStat) -> fsutil_pb2.Stat:
    return fsutil_pb2.Stat(
        path=stat.path.decode(),
        mode=stat.mode,
        uid=stat.uid,
        gid=stat.gid,
        size=stat.size,
        modTime=stat.mod_time_ns,
        linkname=stat.linkname.decode(),
        devmajor=stat.devmajor,
        devminor=stat.devminor,
        xattrs={key.decode(): value for key, value in stat.xattrs.items()},
    )


@given(STATS)
def test_stat_equals_the_protobuf_class(stat):
    message = fsutil_pb2.Packet(stat=as_message(stat))
    assert fsutil_pb2.Packet.FromString(codec.encode_stat_packet(stat)) == message
    assert fsutil_pb2.Stat.FromString(codec.encode_stat(stat)) == message.stat
    for packet in (
        codec.decode_packet(message.SerializeToString()),
        codec._decode_any(memoryview(message.SerializeToString())),
    ):
        assert packet.kind == codec.STAT
        assert packet.stat == stat


@given(st.binary(min_size=1, max_size=255), st.binary(max_size=50))
def test_names_of_any_bytes_survive(path, linkname):
    stat = FileStat(path, 0o644, 1, 2, 3, 4, linkname)
    assert codec.decode_packet(codec.encode_stat_packet(stat)).stat == stat


@given(U32, st.binary(max_size=100))
def test_data_request_and_error_equal_the_protobuf_class(file_id, data):
    packet_type = fsutil_pb2.Packet
    raw = codec.encode_data_header(file_id, len(data)) + data
    assert packet_type.FromString(raw) == packet_type(type=2, ID=file_id, data=data)
    decoded = codec.decode_packet(raw)
    assert (decoded.kind, decoded.id, bytes(decoded.data)) == (codec.DATA, file_id, data)
    request = codec.encode_request(file_id)
    assert packet_type.FromString(request) == packet_type(type=1, ID=file_id)
    assert codec.decode_packet(request).id == file_id


@given(st.text(max_size=50))
def test_error_packets(text):
    packet = codec.decode_packet(codec.encode_error(text))
    assert packet.kind == codec.ERR
    assert bytes(packet.data).decode() == text


def test_fixed_packets():
    assert fsutil_pb2.Packet.FromString(codec.FIN_PACKET) == fsutil_pb2.Packet(type=3)
    end = codec.decode_packet(codec.STATS_END_PACKET)
    assert (end.kind, end.stat) == (codec.STAT, None)


@given(st.binary(max_size=60), st.sampled_from([b"", b"\x08\x02", b"\x12\x05", b"\x08\x02\x22"]))
def test_garbage_packets_raise_only_our_error(data, start):
    try:
        packet = codec.decode_packet(start + data)
    except InvalidInputError:
        return
    assert isinstance(packet, codec.Packet)


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=30), st.binary(max_size=300))))
def test_header_blocks_are_understood_by_hpack(headers):
    import hpack

    decoded = hpack.Decoder().decode(frames.encode_headers(headers), raw=True)
    assert [(bytes(name), bytes(value)) for name, value in decoded] == headers


@given(st.text())
def test_status_messages(text):
    encoded = metadata.encode_message(text)
    assert all(0x20 <= byte <= 0x7E for byte in encoded)
    assert metadata.decode_message(encoded) == text.encode("utf-8", "replace").decode()


@given(st.binary(max_size=40))
def test_status_messages_of_any_bytes(raw):
    assert isinstance(metadata.decode_message(raw), str)


@given(st.binary(max_size=100))
def test_binary_metadata(value):
    encoded = metadata.encode_bin(value)
    assert metadata.decode_bin(encoded) == value
    assert metadata.decode_bin(encoded + b"=" * (-len(encoded) % 4)) == value


@given(st.floats(0, 1e7))
def test_timeouts_never_shrink(seconds):
    decoded = metadata.decode_timeout(metadata.encode_timeout(seconds))
    assert decoded >= seconds * 0.999999
    assert decoded <= seconds + max(2e-6, seconds * 1e-2)


@given(st.binary(min_size=1, max_size=300))
def test_tunnel_messages(data):
    message = _field_header(len(data)) + data
    start = _field_start(memoryview(message)[:16], len(message))
    assert start is not None
    assert message[start:] == data
    assert _field_start(memoryview(message), len(message) + 2) is None


class _Ignore:
    def __getattr__(self, name):
        return lambda *args, **kwargs: None


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 255), st.integers(0, 7), st.binary(max_size=40)), max_size=12))  # fmt: skip
def test_random_frames_raise_only_our_error(items):
    h2 = Http2(_Ignore(), is_client=False)
    data = frames.PREFACE + frames.settings_frame([])
    for kind, flags, stream_id, payload in items:
        data += frames.frame_header(len(payload), kind, flags, stream_id) + payload
    try:
        h2.receive(data)
        h2.pump(1 << 20)
    except Http2Error:
        with pytest.raises(AssertionError):
            assert not h2.out
