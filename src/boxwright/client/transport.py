"""How a client reaches an engine: over a connection, or in its own process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from google.protobuf.message import Message

from boxwright.client.foreign import typed_error
from boxwright.core.digest import Digest
from boxwright.core.workers import to_worker
from boxwright.errors import BoxwrightError, Code, UnimplementedError
from boxwright.session.base import SessionLostError
from boxwright.session.inprocess import InProcessSession
from boxwright.session.serve import serve_session
from boxwright.session.services import SessionServices
from boxwright.wire import methods
from boxwright.wire.client import Connection
from boxwright.wire.methods import Method
from boxwright.wire.pb import content_pb2, control_pb2, explain_pb2, gateway_pb2
from boxwright.wire.status import RpcError
from boxwright.wire.tls import TlsOptions

if TYPE_CHECKING:
    from boxwright.engine.engine import Engine

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)
BUILD_ID = "buildkit-controlapi-buildid"
_BLOB_CHUNK = 1 << 20
_MAX_WAITING = 64


class ProcessStream(Protocol):
    """The messages of processes in containers."""

    async def send(self, message: gateway_pb2.ExecMessage) -> None:
        """Send one."""

    async def recv(self) -> gateway_pb2.ExecMessage | None:
        """Return the next one, None at the end."""


class Transport(Protocol):
    """The calls of Control and of the gateway, and the session."""

    def session(self, services: SessionServices) -> AbstractAsyncContextManager[None]:
        """Offer ``services`` while the block runs."""

    async def solve(self, request: control_pb2.SolveRequest) -> control_pb2.SolveResponse:
        """Run a build to its end."""

    def status(
        self, request: control_pb2.StatusRequest
    ) -> AsyncIterator[control_pb2.StatusResponse]:
        """Yield a build's progress."""

    async def gateway_solve(
        self, build_id: str, request: gateway_pb2.SolveRequest
    ) -> gateway_pb2.SolveResponse:
        """Run a frontend inside a build."""

    async def gateway_return(self, build_id: str, request: gateway_pb2.ReturnRequest) -> None:
        """End the frontend's part of a build."""

    async def gateway_container(
        self, build_id: str, request: gateway_pb2.NewContainerRequest
    ) -> None:
        """Mount results of a build for processes to come."""

    def gateway_processes(self, build_id: str) -> AbstractAsyncContextManager[ProcessStream]:
        """Give the messages of processes in a build's containers; they end with the block."""

    async def info(self) -> control_pb2.InfoResponse:
        """Return the daemon's version."""

    async def workers(
        self, request: control_pb2.ListWorkersRequest
    ) -> control_pb2.ListWorkersResponse:
        """Return the daemon's workers."""

    async def disk_usage(
        self, request: control_pb2.DiskUsageRequest
    ) -> control_pb2.DiskUsageResponse:
        """Return what takes space."""

    def prune(self, request: control_pb2.PruneRequest) -> AsyncIterator[control_pb2.UsageRecord]:
        """Remove and yield what the request lets go."""

    def history(
        self, request: control_pb2.BuildHistoryRequest
    ) -> AsyncIterator[control_pb2.BuildHistoryEvent]:
        """Yield past, running and coming builds."""

    async def update_history(self, request: control_pb2.UpdateBuildHistoryRequest) -> None:
        """Pin, unpin or delete a past build."""

    def read_blob(self, digest: str) -> AsyncIterator[bytes]:
        """Yield a blob of the content store."""

    async def why(self, request: explain_pb2.WhyRequest) -> explain_pb2.WhyResponse:
        """Return why steps of a past build ran."""

    async def space(self) -> explain_pb2.SpaceResponse | None:
        """Return what collection goes by besides the records; None if the daemon does not tell."""

    async def close(self) -> None:
        """Give the connection up."""


class GrpcTransport:
    """A daemon at the other end of a connection, ours or BuildKit's."""

    def __init__(self, connection: Connection, *, is_local: bool = False) -> None:
        self.connection = connection
        self._is_local = is_local

    @classmethod
    async def open(
        cls, address: str, *, tls: TlsOptions | None = None, timeout_s: float = 10.0
    ) -> GrpcTransport:
        """Connect to ``unix://PATH`` or ``tcp://HOST:PORT``.

        Raises:
            ConnectError: nobody answers, or its certificate is not accepted.
        """
        connection = await Connection.open(address, tls=tls, timeout_s=timeout_s)
        return cls(connection, is_local=address.startswith("unix://"))

    async def close(self) -> None:
        """Close the connection."""
        await self.connection.close()

    async def _unary(
        self, method: Method[Request, Response], request: Request, *, build_id: str = ""
    ) -> Response:
        items = [(BUILD_ID, build_id)] if build_id else []
        with _typed_errors():
            return await self.connection.unary(method, request, metadata=items)

    async def _stream(
        self, method: Method[Request, Response], request: Request
    ) -> AsyncIterator[Response]:
        with _typed_errors():
            async with self.connection.stream(method) as stream:
                await stream.send(request)
                await stream.close_send()
                async for message in stream:
                    yield message

    @asynccontextmanager
    async def session(self, services: SessionServices) -> AsyncIterator[None]:
        """Serve the session while the block runs; its end before that ends the block."""
        opened = asyncio.Event()
        serving = asyncio.ensure_future(
            serve_session(self.connection, services, opened=opened, share_paths=self._is_local)
        )
        waiting = asyncio.ensure_future(opened.wait())
        try:
            await asyncio.wait((serving, waiting), return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                with _typed_errors():
                    serving.result()
                raise SessionLostError("the daemon ended the session at once")
            yield
        finally:
            for task in (waiting, serving):
                task.cancel()
            await asyncio.gather(waiting, serving, return_exceptions=True)

    async def solve(self, request: control_pb2.SolveRequest) -> control_pb2.SolveResponse:
        """Run a build to its end; cancelling cancels it on the daemon."""
        return await self._unary(methods.CONTROL_SOLVE, request)

    def status(
        self, request: control_pb2.StatusRequest
    ) -> AsyncIterator[control_pb2.StatusResponse]:
        """Yield a build's progress."""
        return self._stream(methods.CONTROL_STATUS, request)

    async def gateway_solve(
        self, build_id: str, request: gateway_pb2.SolveRequest
    ) -> gateway_pb2.SolveResponse:
        """Run a frontend inside a build."""
        await self._unary(methods.BRIDGE_PING, gateway_pb2.PingRequest(), build_id=build_id)
        return await self._unary(methods.BRIDGE_SOLVE, request, build_id=build_id)

    async def gateway_return(self, build_id: str, request: gateway_pb2.ReturnRequest) -> None:
        """End the frontend's part of a build."""
        await self._unary(methods.BRIDGE_RETURN, request, build_id=build_id)

    async def gateway_container(
        self, build_id: str, request: gateway_pb2.NewContainerRequest
    ) -> None:
        """Mount results of a build for processes to come."""
        await self._unary(methods.BRIDGE_NEW_CONTAINER, request, build_id=build_id)

    @asynccontextmanager
    async def gateway_processes(self, build_id: str) -> AsyncIterator[ProcessStream]:
        """Give the messages of processes in a build's containers; they end with the block."""
        items = [(BUILD_ID, build_id)]
        with _typed_errors():
            async with self.connection.stream(
                methods.BRIDGE_EXEC_PROCESS, metadata=items
            ) as stream:
                yield stream

    async def info(self) -> control_pb2.InfoResponse:
        """Return the daemon's version."""
        return await self._unary(methods.CONTROL_INFO, control_pb2.InfoRequest())

    async def workers(
        self, request: control_pb2.ListWorkersRequest
    ) -> control_pb2.ListWorkersResponse:
        """Return the daemon's workers."""
        return await self._unary(methods.CONTROL_LIST_WORKERS, request)

    async def disk_usage(
        self, request: control_pb2.DiskUsageRequest
    ) -> control_pb2.DiskUsageResponse:
        """Return what takes space."""
        return await self._unary(methods.CONTROL_DISK_USAGE, request)

    def prune(self, request: control_pb2.PruneRequest) -> AsyncIterator[control_pb2.UsageRecord]:
        """Remove and yield what the request lets go."""
        return self._stream(methods.CONTROL_PRUNE, request)

    def history(
        self, request: control_pb2.BuildHistoryRequest
    ) -> AsyncIterator[control_pb2.BuildHistoryEvent]:
        """Yield past, running and coming builds."""
        return self._stream(methods.CONTROL_LISTEN_BUILD_HISTORY, request)

    async def update_history(self, request: control_pb2.UpdateBuildHistoryRequest) -> None:
        """Pin, unpin or delete a past build."""
        await self._unary(methods.CONTROL_UPDATE_BUILD_HISTORY, request)

    async def why(self, request: explain_pb2.WhyRequest) -> explain_pb2.WhyResponse:
        """Return why steps of a past build ran.

        Raises:
            UnimplementedError: the daemon is not one of ours.
        """
        try:
            return await self._unary(methods.EXPLAIN_WHY, request)
        except BoxwrightError as exc:
            if exc.code is not Code.UNIMPLEMENTED:
                raise
            raise UnimplementedError(
                "this daemon does not tell why steps ran",
                detail="it is not Boxwright's, or too old",
                hint="build with the embedded engine, or with boxwright daemon",
            ) from exc

    async def space(self) -> explain_pb2.SpaceResponse | None:
        """Return what collection goes by besides the records; None if it is not one of ours."""
        try:
            return await self._unary(methods.EXPLAIN_SPACE, explain_pb2.SpaceRequest())
        except BoxwrightError as exc:
            if exc.code is not Code.UNIMPLEMENTED:
                raise
            return None

    async def read_blob(self, digest: str) -> AsyncIterator[bytes]:
        """Yield a blob of the daemon's content store."""
        request = content_pb2.ReadContentRequest(digest=digest)
        async for answer in self._stream(methods.CONTENT_READ, request):
            yield answer.data


class _Queues:
    """One end of a stream of messages inside this process."""

    def __init__(
        self,
        outbound: asyncio.Queue[gateway_pb2.ExecMessage],
        inbound: asyncio.Queue[gateway_pb2.ExecMessage],
    ) -> None:
        self._out = outbound
        self._in = inbound
        self.other: asyncio.Future[None] | None = None
        """Done when the other end sends nothing any more; its error is given on."""

    async def send(self, message: gateway_pb2.ExecMessage) -> None:
        """Send one; waits while the other end does not keep up."""
        await self._out.put(message)

    async def recv(self) -> gateway_pb2.ExecMessage | None:
        """Return the next message, None at the end."""
        getting = asyncio.ensure_future(self._in.get())
        try:
            ends: list[asyncio.Future[Any]] = [getting]
            if self.other is not None:
                ends.append(self.other)
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if getting.done():
                return getting.result()
        finally:
            getting.cancel()
        assert self.other is not None
        self.other.result()
        return None


class EmbeddedTransport:
    """An engine in this process; the engine stays the caller's."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def close(self) -> None:
        """Nothing to do: the engine's owner closes it."""

    @asynccontextmanager
    async def session(self, services: SessionServices) -> AsyncIterator[None]:
        """Attach the session while the block runs."""
        session = InProcessSession(services)
        self._engine.sessions.attach(session)
        try:
            yield
        finally:
            self._engine.sessions.detach(session)

    async def solve(self, request: control_pb2.SolveRequest) -> control_pb2.SolveResponse:
        """Run a build to its end."""
        with _typed_errors():
            return await self._engine.solve(request)

    def status(
        self, request: control_pb2.StatusRequest
    ) -> AsyncIterator[control_pb2.StatusResponse]:
        """Yield a build's progress."""
        return self._engine.status(request)

    async def gateway_solve(
        self, build_id: str, request: gateway_pb2.SolveRequest
    ) -> gateway_pb2.SolveResponse:
        """Run a frontend inside a build."""
        return await (await self._engine.gateway(build_id)).solve(request)

    async def gateway_return(self, build_id: str, request: gateway_pb2.ReturnRequest) -> None:
        """End the frontend's part of a build."""
        await (await self._engine.gateway(build_id)).return_(request)

    async def gateway_container(
        self, build_id: str, request: gateway_pb2.NewContainerRequest
    ) -> None:
        """Mount results of a build for processes to come."""
        await (await self._engine.gateway(build_id)).new_container(request)

    @asynccontextmanager
    async def gateway_processes(self, build_id: str) -> AsyncIterator[ProcessStream]:
        """Give the messages of processes in a build's containers; they end with the block."""
        gateway = await self._engine.gateway(build_id)
        asked: asyncio.Queue[gateway_pb2.ExecMessage] = asyncio.Queue(_MAX_WAITING)
        answers: asyncio.Queue[gateway_pb2.ExecMessage] = asyncio.Queue(_MAX_WAITING)
        serving = asyncio.ensure_future(gateway.exec_process(_Queues(answers, asked)))
        stream = _Queues(asked, answers)
        stream.other = serving
        try:
            yield stream
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    async def info(self) -> control_pb2.InfoResponse:
        """Return the engine's version."""
        return await self._engine.info(control_pb2.InfoRequest())

    async def workers(
        self, request: control_pb2.ListWorkersRequest
    ) -> control_pb2.ListWorkersResponse:
        """Return the engine's worker."""
        return await self._engine.list_workers(request)

    async def disk_usage(
        self, request: control_pb2.DiskUsageRequest
    ) -> control_pb2.DiskUsageResponse:
        """Return what takes space."""
        return await self._engine.disk_usage(request)

    def prune(self, request: control_pb2.PruneRequest) -> AsyncIterator[control_pb2.UsageRecord]:
        """Remove and yield what the request lets go."""
        return self._engine.prune(request)

    def history(
        self, request: control_pb2.BuildHistoryRequest
    ) -> AsyncIterator[control_pb2.BuildHistoryEvent]:
        """Yield past, running and coming builds."""
        return self._engine.listen_history(request)

    async def update_history(self, request: control_pb2.UpdateBuildHistoryRequest) -> None:
        """Pin, unpin or delete a past build."""
        await self._engine.update_history(request)

    async def why(self, request: explain_pb2.WhyRequest) -> explain_pb2.WhyResponse:
        """Return why steps of a past build ran."""
        return await self._engine.why(request)

    async def space(self) -> explain_pb2.SpaceResponse | None:
        """Return what collection goes by besides the records."""
        return await self._engine.space(explain_pb2.SpaceRequest())

    async def read_blob(self, digest: str) -> AsyncIterator[bytes]:
        """Yield a blob of the engine's store."""
        source = await to_worker(self._engine.parts.store.blobs.open, Digest(digest))
        try:
            while data := await to_worker(source.read, _BLOB_CHUNK):
                yield data
        finally:
            source.close()


@contextmanager
def _typed_errors() -> Iterator[None]:
    """Turn the status of a call into a typed error."""
    try:
        yield
    except RpcError as exc:
        raise typed_error(exc) from exc
