"""Attestations of results on their way through the gateway."""

from __future__ import annotations

import pytest

from boxwright.core.digest import Digest
from boxwright.engine.gatewayattests import fill_attestations, read_attestations
from boxwright.engine.results import FrontendResult, LazyRef, ResultAttestation
from boxwright.errors import InvalidInputError
from boxwright.exporters.attestation import Attestation, Subject
from boxwright.llb.graph import Edge, Vertex
from boxwright.solver.types import CachedResult
from boxwright.wire.pb import gateway_pb2, ops_pb2


async def _never() -> CachedResult:
    raise AssertionError


def lazy() -> LazyRef:
    vertex = Vertex(Digest.of(b""), ops_pb2.Op())
    return LazyRef(ops_pb2.Definition(), Edge(vertex), _never)


async def _content() -> bytes:
    return b"{}"


def test_there_and_back() -> None:
    ref = lazy()
    form = Attestation(
        "bundle",
        "folder",
        "https://spdx.dev/Document",
        (Subject("a"), Subject("b", {"sha256": "00"}, is_self=False)),
        {"reason": b"sbom"},
    )
    made = Attestation(path="provenance.json", content=_content)
    result = FrontendResult(
        attestations={"linux/amd64": [ResultAttestation(form, ref), ResultAttestation(made)]}
    )
    message = gateway_pb2.Result()
    ids: dict[str, LazyRef | None] = {}

    def register(found: LazyRef | None) -> str:
        ids["id"] = found
        return "id"

    fill_attestations(message, result, register)
    again = gateway_pb2.Result.FromString(message.SerializeToString())
    assert read_attestations(again, ids.__getitem__) == {
        "linux/amd64": [ResultAttestation(form, ref)]
    }


def test_unknown_kinds_are_refused() -> None:
    message = gateway_pb2.Result()
    message.attestations["x"].attestation.add(kind=7)
    with pytest.raises(InvalidInputError, match="kind"):
        read_attestations(message, lambda _id: None)
    message = gateway_pb2.Result()
    message.attestations["x"].attestation.add().inTotoSubjects.add(kind=7)
    with pytest.raises(InvalidInputError, match="subject"):
        read_attestations(message, lambda _id: None)
