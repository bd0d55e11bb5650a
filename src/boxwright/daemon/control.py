"""The ``moby.buildkit.v1.Control`` service."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar, cast

from google.protobuf.message import Message

from boxwright.engine.engine import Engine
from boxwright.engine.errors import EngineClosingError
from boxwright.errors import BoxwrightError, InvalidInputError
from boxwright.wire import methods
from boxwright.wire.pb import control_pb2
from boxwright.wire.server import Context, Server, ServerStream, StreamHandler
from boxwright.wire.status import StatusCode, to_rpc_error

_log = logging.getLogger(__name__)

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


def unary(
    function: Callable[[Request], Awaitable[Response]],
) -> Callable[[Request, Context], Awaitable[Response]]:
    """Adapt an engine call that needs no context."""

    async def handler(request: Request, _ctx: Context) -> Response:
        return await function(request)

    return handler


def streaming(function: Callable[[Any], AsyncIterator[Message]]) -> StreamHandler:
    """Adapt an engine call that yields messages; a caller that goes away ends it."""

    async def handler(stream: ServerStream, _ctx: Context) -> None:
        request = await stream.recv()
        if request is None:
            raise InvalidInputError("the call needs one message")
        # Every such function is an async generator; its finally blocks run here, not at
        # some later garbage collection.
        async with aclosing(cast("Any", function(request))) as answers:
            stream.send_headers()
            async for answer in answers:
                await stream.send(answer)

    return handler


class ControlService:
    """Translates Control calls for one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def register(self, server: Server) -> None:
        """Add all methods to ``server``."""
        engine = self._engine
        server.add(methods.CONTROL_INFO, unary(engine.info))
        server.add(methods.CONTROL_LIST_WORKERS, unary(engine.list_workers))
        server.add(methods.CONTROL_SOLVE, self.solve)
        server.add(methods.CONTROL_STATUS, streaming(engine.status))
        server.add(methods.CONTROL_SESSION, self.session)
        server.add(methods.CONTROL_DISK_USAGE, unary(engine.disk_usage))
        server.add(methods.CONTROL_PRUNE, streaming(engine.prune))
        server.add(methods.CONTROL_LISTEN_BUILD_HISTORY, streaming(engine.listen_history))
        server.add(methods.CONTROL_UPDATE_BUILD_HISTORY, unary(engine.update_history))

    async def solve(
        self, request: control_pb2.SolveRequest, ctx: Context
    ) -> control_pb2.SolveResponse:
        """Run a build and say in the log who asked for it and how it ended."""
        _log.info("build %s of %s started", request.Ref, ctx.peer.tls_subject or ctx.peer.address)
        try:
            response = await self._engine.solve(request)
        except BoxwrightError as exc:
            _log.info("build %s failed: %s", request.Ref, exc.brief)
            error = to_rpc_error(exc)
            if error.status is StatusCode.INVALID_ARGUMENT:
                # BuildKit's builds fail without a code name in front of the message
                error.status = StatusCode.UNKNOWN
            raise error from exc
        except asyncio.CancelledError:
            _log.info("build %s was cancelled", request.Ref)
            task = asyncio.current_task()
            if task is not None and not task.cancelling():
                # Not the caller gave up, the engine did.
                raise EngineClosingError from None
            raise
        _log.info("build %s finished", request.Ref)
        return response

    async def session(self, stream: ServerStream, ctx: Context) -> None:
        """Carry a client's session until either side ends it."""
        await self._engine.sessions.serve_stream(stream, ctx.metadata)
