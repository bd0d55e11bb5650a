"""Errors on the wire: codes, BuildKit's typed details, metadata encodings."""

from __future__ import annotations

import asyncio
import json

import pytest
from google.protobuf.any_pb2 import Any

from boxwright.errors import BoxwrightError, Code, InvalidInputError
from boxwright.wire import errdetails, metadata
from boxwright.wire.methods import BY_PATH
from boxwright.wire.pb import errdefs_pb2, ops_pb2
from boxwright.wire.status import (
    _TO_STATUS,
    RpcError,
    StatusCode,
    from_pb,
    from_rpc_error,
    to_pb,
    to_rpc_error,
)


def test_every_code_has_a_status():
    assert set(_TO_STATUS) == set(Code)


def test_cancellation_is_cancelled():
    assert to_rpc_error(asyncio.CancelledError()).status is StatusCode.CANCELLED


def test_details_of_the_whole_chain_are_sent():
    vertex = errdetails.pack(errdefs_pb2.Vertex(digest="sha256:a"))
    inner = BoxwrightError("inner")
    inner.rpc_details = [vertex]
    outer = BoxwrightError("outer", detail="d")
    outer.__cause__ = inner
    error = to_rpc_error(outer)
    assert error.detail_messages()[0] == errdefs_pb2.Vertex(digest="sha256:a")
    again = from_rpc_error(error)
    assert again.brief == "outer"
    assert vertex in again.rpc_details
    # passed on once more, the error is not described twice
    boxes = [d for d in to_rpc_error(again).details if errdetails.is_box_error(d)]
    assert len(boxes) == 1


def test_what_is_said_besides_about_an_error_of_another_call_is_sent():
    error = RpcError(StatusCode.UNAVAILABLE, "no login", [Any(type_url="x/y")])
    assert to_rpc_error(error) is error
    error.brief = f"failed to push a/b: {error.brief}"
    sent = to_rpc_error(error)
    assert (sent.status, sent.message) == (StatusCode.UNAVAILABLE, "failed to push a/b: no login")
    assert sent.details == error.details
    silent = RpcError(StatusCode.UNAVAILABLE, "")
    assert to_rpc_error(silent) is silent


def test_details_given_to_what_a_peer_reported_are_sent():
    error = RpcError(StatusCode.NOT_FOUND, "no access")
    vertex, source = (
        errdetails.pack(each)
        for each in (errdefs_pb2.Vertex(digest="sha256:a"), errdefs_pb2.Source())
    )
    error.__dict__.setdefault("rpc_details", []).append(vertex)
    assert to_rpc_error(error).details == [vertex]
    error.__dict__["rpc_details"] = [vertex, source]
    assert to_rpc_error(error).details == [vertex, source]


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (Code.DIGEST_MISMATCH, StatusCode.UNKNOWN),
        (Code.PERMISSION, StatusCode.UNKNOWN),
        (Code.UNAVAILABLE, StatusCode.UNKNOWN),
        (Code.SESSION_LOST, StatusCode.UNAVAILABLE),
    ],
)
def test_a_step_that_fails_is_shown_without_a_code(code, status):
    error = BoxwrightError("no")
    error.__dict__["code"] = code
    assert to_rpc_error(error).status is _TO_STATUS[code]
    error.vertex = "sha256:a"
    assert to_rpc_error(error).status is status


def test_status_message_round_trip_keeps_unknown_details():
    unknown = Any(type_url="example.com/some.Thing", value=b"\x01")
    error = from_pb(to_pb(RpcError(StatusCode.ABORTED, "x", [unknown])))
    assert error is not None
    assert error.details == [unknown]
    assert error.detail_messages() == []
    assert from_pb(to_pb(RpcError(StatusCode.OK, ""))) is None


def test_source_is_encoded_as_go_encodes_its_struct():
    source = errdefs_pb2.Source(
        info=ops_pb2.SourceInfo(filename="Dockerfile", data=b"FROM x\n", language="Dockerfile"),
        ranges=[ops_pb2.Range(start=ops_pb2.Position(line=1), end=ops_pb2.Position(line=2))],
    )
    packed = errdetails.pack(source)
    assert packed.type_url == "github.com/moby/buildkit/errdefs.Source+json"
    assert json.loads(packed.value) == {
        "info": {"filename": "Dockerfile", "data": "RlJPTSB4Cg==", "language": "Dockerfile"},
        "ranges": [{"start": {"line": 1}, "end": {"line": 2}}],
    }
    assert errdetails.unpack(packed) == source


def test_maps_numbers_and_nulls_survive_go_json():
    definition = ops_pb2.Definition(metadata={"sha256:a": ops_pb2.OpMetadata(ignore_cache=True)})
    definition.metadata["sha256:a"].linux_resources.memory = 1 << 40
    setattr(definition, "def", [b"op"]) if False else definition.MergeFrom(
        ops_pb2.Definition.FromString(b"\x0a\x02op")
    )
    source = errdefs_pb2.Source(info=ops_pb2.SourceInfo(definition=definition))
    packed = errdetails.pack(source)
    memory = json.loads(packed.value)["info"]["definition"]["metadata"]["sha256:a"]
    assert memory["linux_resources"]["memory"] == 1 << 40
    assert errdetails.unpack(packed) == source
    nulls = Any(type_url=packed.type_url, value=b'{"info":{"filename":null,"data":"eA=="}}')
    assert errdetails.unpack(nulls) == errdefs_pb2.Source(info=ops_pb2.SourceInfo(data=b"x"))


def test_solve_uses_protobufs_json():
    solve = errdefs_pb2.Solve(inputIDs=["a"], mountIDs=["b"], file=errdefs_pb2.FileAction(index=2))
    packed = errdetails.pack(solve)
    assert json.loads(packed.value)["file"] == {"index": "2"}
    assert errdetails.unpack(packed) == solve


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b'{"info":3}', b'{"info":{"data":"*"}}'])
def test_malformed_details_are_ignored(value):
    url = "github.com/moby/buildkit/errdefs.Source+json"
    assert errdetails.unpack(Any(type_url=url, value=value)) is None


def test_other_messages_are_no_details():
    with pytest.raises(InvalidInputError):
        errdetails.pack(ops_pb2.Op())


def test_reserved_and_unprintable_metadata_is_refused():
    for item in [("grpc-status", "0"), ("Upper", "x"), ("x", "ü"), ("x", "a\nb"), ("x", b"a")]:
        with pytest.raises(InvalidInputError):
            metadata.to_headers([item])


def test_binary_metadata_padded_unpadded_and_joined():
    got = metadata.from_headers([(b"a-bin", b"AA=="), (b"a-bin", b"AQ, Ag"), (b"a-bin", b"*")])
    assert list(got) == [("a-bin", b"\0"), ("a-bin", b"\1"), ("a-bin", b"\2")]


def test_metadata_repr_hides_values():
    assert "secret" not in repr(metadata.Metadata([("authorization", "secret")]))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, b"0u"),
        (1.5, b"1500000u"),
        (99.999999, b"99999999u"),
        (100, b"100000m"),
        (1e9, b"99999999S"),
    ],
)
def test_timeouts_are_encoded_with_eight_digits(seconds, text):
    assert metadata.encode_timeout(seconds) == text


@pytest.mark.parametrize("text", [b"", b"1", b"u", b"123456789u", b"-1S", b"1x", b"1S\n"])
def test_malformed_timeouts_are_refused(text):
    with pytest.raises(InvalidInputError):
        metadata.decode_timeout(text)


def test_paths_are_unique():
    assert len(BY_PATH) > 50
