"""containerd's Content service over the blob store, read-only as BuildKit serves it.

``buildx`` reads history blobs, attestations and results through it. What would change the
store answers that it may not.
"""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Sequence
from typing import BinaryIO, Final, NoReturn, TypeVar

from google.protobuf.message import Message

from boxwright.core.digest import Digest
from boxwright.core.workers import to_worker
from boxwright.daemon.control import streaming, unary
from boxwright.errors import BoxwrightError, InvalidInputError, PermissionDeniedError
from boxwright.store.blobs import BlobInfo, BlobStore
from boxwright.store.errors import BlobNotFoundError
from boxwright.wire import methods
from boxwright.wire.pb import content_pb2
from boxwright.wire.server import Context, Server, ServerStream, UnaryHandler
from boxwright.wire.status import RpcError, StatusCode, to_rpc_error

_CHUNK: Final = 1 << 20
_LIST_BATCH: Final = 100
_First = TypeVar("_First")
_Answer = TypeVar("_Answer")


class ContentService:
    """Serves one engine's blobs.

    Args:
        blobs: The store.
        documents: Finds what is read though there is no such blob (blocking).
        unlisted: Digests that are read but not listed: BuildKit keeps what belongs to the
            history in a namespace of its own, in which clients only look up.
    """

    def __init__(
        self,
        blobs: BlobStore,
        documents: Callable[[Digest], bytes | None] = lambda _digest: None,
        unlisted: Callable[[], Container[str]] = frozenset,
    ) -> None:
        self._blobs = blobs
        self._documents = documents
        self._unlisted = unlisted

    def register(self, server: Server) -> None:
        """Add all methods to ``server``."""
        info: UnaryHandler = unary(self.info)
        server.add(methods.CONTENT_INFO, _plain(info))
        server.add(methods.CONTENT_LIST, _plain(streaming(self.list)))
        server.add(methods.CONTENT_READ, _plain(streaming(self.read)))
        for method in (
            methods.CONTENT_UPDATE,
            methods.CONTENT_DELETE,
            methods.CONTENT_ABORT,
            methods.CONTENT_STATUS,
            methods.CONTENT_LIST_STATUSES,
        ):
            server.add(method, _refuse)
        server.add(methods.CONTENT_WRITE, _refuse_stream)

    async def info(self, request: content_pb2.InfoRequest) -> content_pb2.InfoResponse:
        """Return size, times and labels of a blob.

        Raises:
            NotFoundError: there is none.
        """
        digest = Digest(request.digest)
        try:
            found = await to_worker(self._blobs.info, digest)
        except BlobNotFoundError:
            data = await to_worker(self._documents, digest)
            if data is None:
                raise
            info = content_pb2.Info(digest=digest, size=len(data))
            return content_pb2.InfoResponse(info=info)
        return content_pb2.InfoResponse(info=_to_message(found))

    async def list(
        self, request: content_pb2.ListContentRequest
    ) -> AsyncIterator[content_pb2.ListContentResponse]:
        """Yield all blobs in batches, but those that belong to the history.

        Raises:
            InvalidInputError: filters are given; none are supported.
        """
        if any(request.filters):
            raise InvalidInputError("content filters are not supported")
        found = await to_worker(self._listed)
        for start in range(0, len(found), _LIST_BATCH):
            yield content_pb2.ListContentResponse(info=found[start : start + _LIST_BATCH])

    def _listed(self) -> Sequence[content_pb2.Info]:
        unlisted = self._unlisted()
        return [_to_message(each) for each in self._blobs.walk() if each.digest not in unlisted]

    async def read(
        self, request: content_pb2.ReadContentRequest
    ) -> AsyncIterator[content_pb2.ReadContentResponse]:
        """Yield ``size`` bytes from ``offset``, all of the rest if ``size`` is 0.

        Raises:
            NotFoundError: there is no such blob.
            InvalidInputError: the range does not lie in the blob.
        """
        digest = Digest(request.digest)
        source: BinaryIO
        try:
            total = (await to_worker(self._blobs.info, digest)).size
            source = await to_worker(self._blobs.open, digest)
        except BlobNotFoundError:
            document = await to_worker(self._documents, digest)
            if document is None:
                raise
            total, source = len(document), io.BytesIO(document)
        with source:
            async for piece in _pieces(source, request, total):
                yield piece


def _plain(
    handler: Callable[[_First, Context], Awaitable[_Answer]],
) -> Callable[[_First, Context], Awaitable[_Answer]]:
    """Send errors without details: containerd's client reports those that it does not know."""

    async def call(first: _First, context: Context) -> _Answer:
        try:
            return await handler(first, context)
        except BlobNotFoundError as error:
            text = f"content digest {error.digest}: not found"
            raise RpcError(StatusCode.NOT_FOUND, text) from error
        except BoxwrightError as error:
            failed = to_rpc_error(error)
            raise RpcError(failed.status, failed.message) from error

    return call


async def _pieces(
    source: BinaryIO, request: content_pb2.ReadContentRequest, total: int
) -> AsyncIterator[content_pb2.ReadContentResponse]:
    offset, size = request.offset, request.size or total - request.offset
    if offset < 0 or size < 0 or offset + size > total:
        raise InvalidInputError(
            "range is outside of the blob", detail=f"{offset}+{size} of {total} bytes"
        )
    while size > 0:
        data = await to_worker(_read_at, source, offset, min(size, _CHUNK))
        if not data:
            raise InvalidInputError("blob is shorter than its record", detail=request.digest)
        yield content_pb2.ReadContentResponse(offset=offset, data=data)
        offset += len(data)
        size -= len(data)


def _read_at(source: BinaryIO, offset: int, size: int) -> bytes:
    source.seek(offset)
    return source.read(size)


def _to_message(info: BlobInfo) -> content_pb2.Info:
    message = content_pb2.Info(digest=info.digest, size=info.size, labels=info.labels)
    message.created_at.FromNanoseconds(info.created_ns)
    message.updated_at.FromNanoseconds(info.created_ns)
    return message


def _read_only() -> NoReturn:
    raise PermissionDeniedError("the content store is read-only")


async def _refuse(_request: Message, _ctx: Context) -> Message:
    _read_only()


async def _refuse_stream(_stream: ServerStream, _ctx: Context) -> None:
    _read_only()
