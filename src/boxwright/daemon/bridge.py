"""The ``moby.buildkit.v1.frontend.LLBBridge`` service of the daemon's socket.

Clients that drive a build themselves name it in metadata; each call goes to that build's
gateway, which lives exactly as long as the build's Solve call.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from google.protobuf.message import Message

from boxwright.engine.engine import Engine
from boxwright.engine.gateway import GatewayBridge
from boxwright.errors import InvalidInputError
from boxwright.wire import methods
from boxwright.wire.methods import Method
from boxwright.wire.server import Context, Server

BUILD_ID_KEY: Final = "buildkit-controlapi-buildid"

_METHODS: Final[
    tuple[tuple[Method[Any, Any], Callable[[GatewayBridge, Any], Awaitable[Message]]], ...]
] = (
    (methods.BRIDGE_PING, GatewayBridge.ping),
    (methods.BRIDGE_SOLVE, GatewayBridge.solve),
    (methods.BRIDGE_RETURN, GatewayBridge.return_),
    (methods.BRIDGE_INPUTS, GatewayBridge.inputs),
    (methods.BRIDGE_EVALUATE, GatewayBridge.evaluate),
    (methods.BRIDGE_READ_FILE, GatewayBridge.read_file),
    (methods.BRIDGE_READ_DIR, GatewayBridge.read_dir),
    (methods.BRIDGE_STAT_FILE, GatewayBridge.stat_file),
    (methods.BRIDGE_RESOLVE_IMAGE_CONFIG, GatewayBridge.resolve_image_config),
    (methods.BRIDGE_RESOLVE_SOURCE_META, GatewayBridge.resolve_source_meta),
    (methods.BRIDGE_WARN, GatewayBridge.warn),
)


class BridgeService:
    """Forwards frontend calls to the build that they name."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def register(self, server: Server) -> None:
        """Add all methods to ``server``."""
        for method, function in _METHODS:
            server.add(method, self._forward(function))

    def _forward(
        self, function: Callable[[GatewayBridge, Any], Awaitable[Message]]
    ) -> Callable[[Message, Context], Awaitable[Message]]:
        async def handler(request: Message, ctx: Context) -> Message:
            build_id = ctx.metadata.get(BUILD_ID_KEY)
            if not build_id:
                raise InvalidInputError(
                    "the call names no build", detail=f"metadata {BUILD_ID_KEY} is missing"
                )
            return await function(await self._engine.gateway(build_id), request)

        return handler
