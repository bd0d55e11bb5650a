"""Round trips of everything that the wire encodes by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxwright.wire import frames, metadata
from boxwright.wire.http2 import Http2
from boxwright.wire.http2send import Http2Error
from boxwright.wire.tunnel import _field_header, _field_start


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
