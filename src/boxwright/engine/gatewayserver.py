"""``LLBBridge`` as a table, and a frontend's own connection that serves it.

The daemon's socket serves the same methods for clients that are frontends themselves, by the
build that they name; a frontend in a container has one connection of its own, its standard
input and output, for the one build that runs it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.message import Message

from boxwright.wire import methods
from boxwright.wire.bytestream import SocketStream
from boxwright.wire.frames import Http2Limits
from boxwright.wire.methods import Method
from boxwright.wire.pb import health_pb2
from boxwright.wire.rpc import MAX_MESSAGE
from boxwright.wire.server import Context, Server, ServerStream

if TYPE_CHECKING:
    from boxwright.engine.gateway import GatewayBridge  # not before the first build

_Call = tuple[Method[Any, Any], Callable[["GatewayBridge", Any], Awaitable[Message]]]

UNARY: Final[tuple[_Call, ...]] = (
    (methods.BRIDGE_PING, lambda gateway, request: gateway.ping(request)),
    (methods.BRIDGE_SOLVE, lambda gateway, request: gateway.solve(request)),
    (methods.BRIDGE_RETURN, lambda gateway, request: gateway.return_(request)),
    (methods.BRIDGE_INPUTS, lambda gateway, request: gateway.inputs(request)),
    (methods.BRIDGE_EVALUATE, lambda gateway, request: gateway.evaluate(request)),
    (methods.BRIDGE_READ_FILE, lambda gateway, request: gateway.read_file(request)),
    (methods.BRIDGE_READ_DIR, lambda gateway, request: gateway.read_dir(request)),
    (methods.BRIDGE_STAT_FILE, lambda gateway, request: gateway.stat_file(request)),
    (
        methods.BRIDGE_RESOLVE_IMAGE_CONFIG,
        lambda gateway, request: gateway.resolve_image_config(request),
    ),
    (
        methods.BRIDGE_RESOLVE_SOURCE_META,
        lambda gateway, request: gateway.resolve_source_meta(request),
    ),
    (methods.BRIDGE_WARN, lambda gateway, request: gateway.warn(request)),
    (methods.BRIDGE_NEW_CONTAINER, lambda gateway, request: gateway.new_container(request)),
    (
        methods.BRIDGE_RELEASE_CONTAINER,
        lambda gateway, request: gateway.release_container(request),
    ),
    (
        methods.BRIDGE_READ_FILE_CONTAINER,
        lambda gateway, request: gateway.read_file_container(request),
    ),
    (
        methods.BRIDGE_READ_DIR_CONTAINER,
        lambda gateway, request: gateway.read_dir_container(request),
    ),
    (
        methods.BRIDGE_STAT_FILE_CONTAINER,
        lambda gateway, request: gateway.stat_file_container(request),
    ),
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
