"""gRPC health, and the trace collector that accepts spans and drops them.

Every client probes the first; ``buildx`` with a tracing delegate sends to the second and
would log an error for each failed export.
"""

from __future__ import annotations

import asyncio

from google.protobuf.empty_pb2 import Empty

from boxwright.errors import NotFoundError
from boxwright.wire import methods
from boxwright.wire.pb import health_pb2
from boxwright.wire.server import Context, Server, ServerStream

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class HealthService:
    """Health of the whole server: the empty service name is the only one known."""

    def __init__(self) -> None:
        self._status = _SERVING
        self._changed = asyncio.Event()

    def register(self, server: Server) -> None:
        """Add all methods to ``server``."""
        server.add(methods.HEALTH_CHECK, self.check)
        server.add(methods.HEALTH_WATCH, self.watch)
        server.add(methods.TRACE_EXPORT, _swallow)

    def stop_serving(self) -> None:
        """Tell probes and watchers that the daemon is going away."""
        self._status = _NOT_SERVING
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def check(
        self, request: health_pb2.HealthCheckRequest, _ctx: Context
    ) -> health_pb2.HealthCheckResponse:
        """Return the state now.

        Raises:
            NotFoundError: a service name was given.
        """
        if request.service:
            raise NotFoundError("unknown service", detail=request.service[:200])
        return health_pb2.HealthCheckResponse(status=self._status)

    async def watch(self, stream: ServerStream, _ctx: Context) -> None:
        """Send the state now and at each change, until the caller leaves."""
        request = await stream.recv()
        known = request is None or not request.service
        while True:
            changed = self._changed
            status = self._status if known else _UNKNOWN
            await stream.send(health_pb2.HealthCheckResponse(status=status))
            await changed.wait()


async def _swallow(_request: Empty, _ctx: Context) -> Empty:
    return Empty()
