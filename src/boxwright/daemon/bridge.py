"""The ``moby.buildkit.v1.frontend.LLBBridge`` service of the daemon's socket.

Clients that drive a build themselves name it in metadata; each call goes to that build's
gateway, which lives exactly as long as the build's Solve call.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.message import Message

from boxwright.engine.engine import Engine
from boxwright.engine.gatewayserver import UNARY
from boxwright.errors import InvalidInputError
from boxwright.wire import methods
from boxwright.wire.server import Context, Server, ServerStream

if TYPE_CHECKING:
    from boxwright.engine.gateway import GatewayBridge

BUILD_ID_KEY: Final = "buildkit-controlapi-buildid"


class BridgeService:
    """Forwards frontend calls to the build that they name."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def register(self, server: Server) -> None:
        """Add all methods to ``server``."""
        for method, function in UNARY:
            server.add(method, self._forward(function))
        server.add(methods.BRIDGE_EXEC_PROCESS, self._exec_process)

    async def _exec_process(self, stream: ServerStream, ctx: Context) -> None:
        await (await self._gateway(ctx)).exec_process(stream)

    async def _gateway(self, ctx: Context) -> GatewayBridge:
        build_id = ctx.metadata.get(BUILD_ID_KEY)
        if not build_id:
            raise InvalidInputError(
                "no buildid found in context", detail=f"metadata {BUILD_ID_KEY} is missing"
            )
        return await self._engine.gateway(build_id)

    def _forward(
        self, function: Callable[[GatewayBridge, Any], Awaitable[Message]]
    ) -> Callable[[Message, Context], Awaitable[Message]]:
        async def handler(request: Message, ctx: Context) -> Message:
            return await function(await self._gateway(ctx), request)

        return handler
