"""What git and http sources resolve to, for frontends that want to know before they build."""

from __future__ import annotations

from boxwright.core.dataclass import dataclass
from boxwright.errors import InvalidInputError, UnimplementedError
from boxwright.session.manager import SessionManager
from boxwright.solver.jobs import Job
from boxwright.sources.base import SourceContext, SourceProgress, SourceResolver
from boxwright.sources.git import GitMetadata, GitSource
from boxwright.sources.http import HttpMetadata, HttpSource
from boxwright.sources.resolutions import Resolutions
from boxwright.wire.pb import gateway_pb2, ops_pb2

_ALGORITHMS = {
    gateway_pb2.ChecksumRequest.CHECKSUM_ALGO_SHA256: "sha256",
    gateway_pb2.ChecksumRequest.CHECKSUM_ALGO_SHA384: "sha384",
    gateway_pb2.ChecksumRequest.CHECKSUM_ALGO_SHA512: "sha512",
}


@dataclass(frozen=True, slots=True)
class HttpAnswerMetadata:
    """What a URL resolved to, and the digest of its content and a suffix if one was wanted."""

    found: HttpMetadata
    checksum: str = ""


@dataclass(frozen=True, slots=True)
class SourceQuestion:
    """What to find out about a source.

    Attributes:
        op: The source.
        git_object: Whether the raw commit is wanted.
        http_checksum: Which digest of the content is wanted.
    """

    op: ops_pb2.SourceOp
    git_object: bool = False
    http_checksum: gateway_pb2.ChecksumRequest | None = None


class SourceMetadataResolver:
    """Asks sources; nothing is kept but what they keep themselves."""

    def __init__(self, sources: SourceResolver, sessions: SessionManager) -> None:
        self._sources = sources
        self._sessions = sessions

    async def resolve(
        self, question: SourceQuestion, job: Job, session_id: str, progress: SourceProgress
    ) -> GitMetadata | HttpAnswerMetadata:
        """Return what the source is for this job: the steps that use it will find the same.

        Raises:
            UnimplementedError: it is neither git nor http.
            BoxwrightError: of the source.
        """
        context = SourceContext(
            self._sessions.group([session_id]),
            progress,
            job.on_cleanup,
            (Resolutions.of(job.values),),
        )
        op = question.op
        source = self._sources.resolve(op.identifier, dict(op.attrs))
        if isinstance(source, GitSource):
            return await source.metadata(context, return_object=question.git_object)
        if not isinstance(source, HttpSource):
            kind = op.identifier.partition("://")[0]
            raise UnimplementedError(f"metadata of {kind} sources is not supported")
        checksum = ""
        if question.http_checksum is not None:
            algorithm = _ALGORITHMS.get(question.http_checksum.Algo)
            if algorithm is None:
                raise InvalidInputError("unsupported checksum algorithm")
            suffix = question.http_checksum.Suffix
            checksum = await source.content_checksum(context, algorithm, suffix)
        return HttpAnswerMetadata(await source.metadata(context), checksum)


def fill_response(
    response: gateway_pb2.ResolveSourceMetaResponse,
    found: GitMetadata | HttpAnswerMetadata,
    suffix: bytes,
) -> None:
    """Write what was found into the gateway's message."""
    if isinstance(found, GitMetadata):
        response.Git.Checksum = found.checksum
        response.Git.Ref = found.ref
        response.Git.CommitChecksum = found.commit_checksum
        response.Git.CommitObject = found.commit_object
        response.Git.TagObject = found.tag_object
        return
    response.HTTP.Checksum = found.found.digest
    response.HTTP.Filename = found.found.filename
    if found.found.modified is not None:
        response.HTTP.LastModified.FromDatetime(found.found.modified)
    if found.checksum:
        response.HTTP.ChecksumResponse.Digest = found.checksum
        response.HTTP.ChecksumResponse.Suffix = suffix
