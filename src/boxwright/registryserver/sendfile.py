"""Files to clients by the kernel, on uvloop too, which has no ``loop.sendfile`` of its own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

_PIECE_BYTES = 4 << 20
_CONDITIONAL = frozenset({"if-match", "if-none-match", "if-range"})
_DATED = frozenset({"if-modified-since", "if-unmodified-since"})


class BlobResponse(web.FileResponse):
    """A file response whose slow path hands the file to the socket.

    Its conditions are the caller's: aiohttp knows a file by its time only, and refuses ranges that
    a server has to ignore.

    aiohttp takes that path when the loop can't send files. If a later aiohttp calls it by another
    name, files are read and written in pieces, as without this class.
    """

    _transport: asyncio.Transport | None = None

    def __init__(
        self, path: Path, *, headers: Mapping[str, str], entity_tag: str, in_part: bool
    ) -> None:
        super().__init__(path, headers=headers)
        self._entity_tag = entity_tag
        self._ignored = _CONDITIONAL | _DATED | (frozenset() if in_part else {"range"})

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Remember the connection, then do what every response does."""
        self._transport = request.transport
        kept = [(k, v) for k, v in request.headers.items() if k.lower() not in self._ignored]
        return await super().prepare(request.clone(headers=kept))

    async def _prepare_headers(self) -> None:
        self.headers["ETag"] = self._entity_tag
        await super()._prepare_headers()

    async def _sendfile_fallback(
        self, writer: AbstractStreamWriter, fobj: IO[Any], offset: int, count: int
    ) -> AbstractStreamWriter:
        transport = self._transport
        socket = transport.get_extra_info("socket") if transport else None
        is_plain = transport is not None and transport.get_extra_info("sslcontext") is None
        if transport is None or socket is None or not is_plain or count <= 0:
            return await super()._sendfile_fallback(writer, fobj, offset, count)
        # The head goes first: wait until the transport holds nothing back.
        transport.set_write_buffer_limits(high=0)
        await writer.drain()
        if transport.get_write_buffer_size():
            transport.set_write_buffer_limits()
            return await super()._sendfile_fallback(writer, fobj, offset, count)
        # A duplicate, as the loop watches the original for the transport.
        target = os.dup(socket.fileno())
        try:
            await _send(target, fobj.fileno(), offset, count)
        finally:
            os.close(target)
            transport.set_write_buffer_limits()
        # As after loop.sendfile: nothing more is written, the length was in the head.
        await web.StreamResponse.write_eof(self)
        return writer


async def _send(target: int, source: int, offset: int, count: int) -> None:
    """Copy ``count`` bytes of a file to a socket that does not block.

    Raises:
        ConnectionError: the client has gone, or the file is shorter than it was.
    """
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def pump() -> None:
        """Send what the socket takes; called whenever it takes something."""
        nonlocal offset, count
        try:
            sent = os.sendfile(target, source, offset, min(count, _PIECE_BYTES))
        except BlockingIOError:
            return
        except OSError as exc:
            _settle(done, exc)
            return
        offset += sent
        count -= sent
        if not sent:
            _settle(done, ConnectionError("the file ended before its announced size"))
        elif not count:
            _settle(done, None)

    # One piece in a turn of the loop, so that others have theirs, and no task is woken for it.
    loop.add_writer(target, pump)
    try:
        await done
    finally:
        loop.remove_writer(target)


def _settle(future: asyncio.Future[None], error: OSError | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
