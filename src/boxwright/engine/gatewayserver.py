"""``LLBBridge`` as a table, and a frontend's own connection that serves it.

The daemon's socket serves the same methods for clients that are frontends themselves, by the
build that they name; a frontend in a container has one connection of its own, its standard
input and output, for the one build that runs it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final

from google.protobuf.message import Message

from boxwright.engine.gateway import GatewayBridge
from boxwright.wire import methods
from boxwright.wire.bytestream import SocketStream
from boxwright.wire.frames import Http2Limits
from boxwright.wire.methods import Method
from boxwright.wire.pb import health_pb2
from boxwright.wire.rpc import MAX_MESSAGE
from boxwright.wire.server import Context, Server, ServerStream

_Call = tuple[Method[Any, Any], Callable[[GatewayBridge, Any], Awaitable[Message]]]

UNARY: Final[tuple[_Call, ...]] = (
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
    (methods.BRIDGE_NEW_CONTAINER, GatewayBridge.new_container),
    (methods.BRIDGE_RELEASE_CONTAINER, GatewayBridge.release_container),
    (methods.BRIDGE_READ_FILE_CONTAINER, GatewayBridge.read_file_container),
    (methods.BRIDGE_READ_DIR_CONTAINER, GatewayBridge.read_dir_container),
    (methods.BRIDGE_STAT_FILE_CONTAINER, GatewayBridge.stat_file_container),
)

_HEADER_LIST_BYTES = 256 << 10


async def serve_gateway(gateway: GatewayBridge, connection: socket.socket) -> None:
    """Serve a build's gateway on a connected socket until it ends; cancelling closes it.

    The other end is not trusted: message and header sizes have the limits of strangers.
    """
    server = Server(
        limits=Http2Limits(max_header_list=_HEADER_LIST_BYTES), max_message_bytes=MAX_MESSAGE
    )
    for method, function in UNARY:
        server.add(method, _bound(function, gateway))
    server.add(methods.HEALTH_CHECK, _healthy)

    async def exec_process(stream: ServerStream, _ctx: Context) -> None:
        await gateway.exec_process(stream)

    server.add(methods.BRIDGE_EXEC_PROCESS, exec_process)
    connection.settimeout(0)
    _, stream = await asyncio.get_running_loop().create_connection(SocketStream, sock=connection)
    await server.serve_over(stream)


def _bound(
    function: Callable[[GatewayBridge, Any], Awaitable[Message]], gateway: GatewayBridge
) -> Callable[[Message, Context], Awaitable[Message]]:
    async def handler(request: Message, _ctx: Context) -> Message:
        return await function(gateway, request)

    return handler


async def _healthy(
    _request: health_pb2.HealthCheckRequest, _ctx: Context
) -> health_pb2.HealthCheckResponse:
    return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
