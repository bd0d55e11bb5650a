"""Serve a client's OCI layouts as containerd content stores (the client's side)."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from boxwright.core.digest import Digest
from boxwright.core.workers import to_worker
from boxwright.errors import NotFoundError
from boxwright.session import metadata as md
from boxwright.session.providers.contents import OciLayouts
from boxwright.wire import methods
from boxwright.wire.pb import content_pb2
from boxwright.wire.server import Context, Server, ServerStream
from boxwright.wire.status import RpcError, StatusCode


def add_layouts(server: Server, layouts: OciLayouts) -> None:
    """Add the methods of the Content service that reading and writing an image need."""

    async def info(request: content_pb2.InfoRequest, context: Context) -> content_pb2.InfoResponse:
        digest = Digest(request.digest)
        size = await to_worker(layouts.size, _store(context), digest)
        found = content_pb2.Info(digest=digest, size=size)
        found.created_at.CopyFrom(Timestamp(seconds=0))
        found.updated_at.CopyFrom(Timestamp(seconds=0))
        return content_pb2.InfoResponse(info=found)

    async def read(stream: ServerStream, context: Context) -> None:
        request = await stream.recv()
        if not isinstance(request, content_pb2.ReadContentRequest):
            raise RpcError(StatusCode.INVALID_ARGUMENT, "no read request")
        offset = request.offset
        pieces = layouts.read(
            _store(context), Digest(request.digest), offset=offset, size=request.size
        )
        while data := await to_worker(next, pieces, b""):
            await stream.send(content_pb2.ReadContentResponse(offset=offset, data=data))
            offset += len(data)

    async def write(stream: ServerStream, context: Context) -> None:
        await _Writing(layouts, _store(context), stream).run()

    server.add(methods.CONTENT_INFO, info)
    server.add(methods.CONTENT_READ, read)
    server.add(methods.CONTENT_WRITE, write)


def _store(context: Context) -> str:
    found = context.metadata.get(md.CONTENT_STORE)
    if not found:
        raise RpcError(StatusCode.INVALID_ARGUMENT, f"request lacks metadata {md.CONTENT_STORE!r}")
    return found


class _Writing:
    """One Write call: STAT, any number of WRITE, COMMIT; each is answered."""

    def __init__(self, layouts: OciLayouts, store: str, stream: ServerStream) -> None:
        self._layouts = layouts
        self._store = store
        self._stream = stream
        self._pieces: list[bytes] = []
        self._offset = 0

    async def run(self) -> None:
        while (message := await self._stream.recv()) is not None:
            if not isinstance(message, content_pb2.WriteContentRequest):
                raise RpcError(StatusCode.INVALID_ARGUMENT, "unexpected message")
            digest = Digest(message.expected) if message.expected else None
            if digest is not None and await self._is_there(digest):
                raise RpcError(StatusCode.ALREADY_EXISTS, f"content {digest}: already exists")
            if message.data:
                if message.offset != self._offset:
                    raise RpcError(StatusCode.OUT_OF_RANGE, "unexpected offset")
                self._pieces.append(message.data)
                self._offset += len(message.data)
            if message.action == content_pb2.COMMIT:
                if digest is None:
                    raise RpcError(StatusCode.INVALID_ARGUMENT, "commit without a digest")
                await to_worker(self._layouts.write, self._store, digest, iter(self._pieces))
                self._pieces = []
            await self._stream.send(
                content_pb2.WriteContentResponse(
                    action=message.action,
                    offset=self._offset,
                    total=message.total,
                    digest=str(digest or ""),
                )
            )

    async def _is_there(self, digest: Digest) -> bool:
        try:
            await to_worker(self._layouts.size, self._store, digest)
        except NotFoundError:
            return False
        return True
