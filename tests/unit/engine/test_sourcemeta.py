"""What sources resolve to, in the gateway's message."""

from __future__ import annotations

from datetime import UTC, datetime

from boxwright.core.digest import Digest
from boxwright.engine.sourcemeta import HttpAnswerMetadata, fill_response
from boxwright.sources.git import GitMetadata
from boxwright.sources.http import HttpMetadata
from boxwright.wire.pb import gateway_pb2


def test_git() -> None:
    response = gateway_pb2.ResolveSourceMetaResponse()
    fill_response(response, GitMetadata("refs/tags/v1", "1" * 40, "2" * 40, b"c", b"t"), b"")
    assert response.Git.Ref == "refs/tags/v1"
    assert (response.Git.Checksum, response.Git.CommitChecksum) == ("1" * 40, "2" * 40)
    assert (response.Git.CommitObject, response.Git.TagObject) == (b"c", b"t")
    assert not response.HasField("HTTP")


def test_http() -> None:
    digest, modified = Digest.of(b"x"), datetime(2024, 3, 5, 6, 7, 8, tzinfo=UTC)
    response = gateway_pb2.ResolveSourceMetaResponse()
    found = HttpAnswerMetadata(HttpMetadata(digest, "file", modified), "sha512:00")
    fill_response(response, found, b"suffix")
    assert (response.HTTP.Checksum, response.HTTP.Filename) == (digest, "file")
    assert response.HTTP.LastModified.seconds == 1709618828
    assert response.HTTP.ChecksumResponse.Digest == "sha512:00"
    assert response.HTTP.ChecksumResponse.Suffix == b"suffix"


def test_http_without_a_date() -> None:
    response = gateway_pb2.ResolveSourceMetaResponse()
    fill_response(response, HttpAnswerMetadata(HttpMetadata(Digest.of(b""), "f")), b"")
    assert not response.HTTP.HasField("LastModified")
    assert not response.HTTP.HasField("ChecksumResponse")
