"""A unix socket in the step whose connections reach the client's ssh agent."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

from boxwright.core.workers import to_worker
from boxwright.errors import BoxwrightError
from boxwright.session.base import BytePipe, Session
from boxwright.wire.listen import bind_unix

_log = logging.getLogger(__name__)

_CHUNK = 64 << 10


@contextlib.asynccontextmanager
async def forward_socket(
    run_dir: Path, session: Session, agent_id: str, *, mode: int, owner: tuple[int, int]
) -> AsyncIterator[Path]:
    """Give a socket whose connections are forwarded to ``agent_id`` until the context ends.

    A connection that fails ends alone: the ssh client in the step then reports it.
    """
    folder = run_dir / f"ssh-{os.urandom(8).hex()}"
    path = folder / "agent.sock"
    connections = _Connections(session, agent_id)
    await to_worker(folder.mkdir, mode=0o711)
    try:
        listener = bind_unix(str(path), mode, *owner)
        server = await asyncio.start_unix_server(connections.accept, sock=listener, limit=_CHUNK)
        try:
            yield path
        finally:
            server.close()
            await connections.close()
    finally:
        await to_worker(shutil.rmtree, folder, ignore_errors=True)


class _Connections:
    """The open connections of one socket; owns a task for each."""

    def __init__(self, session: Session, agent_id: str) -> None:
        self._session = session
        self._agent_id = agent_id
        self._tasks: set[asyncio.Task[None]] = set()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._forward(reader, writer), name="ssh agent connection")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            pipe = await self._session.ssh_forward(self._agent_id)
            try:
                await _exchange(pipe, reader, writer)
            finally:
                await pipe.close()
        except (BoxwrightError, OSError) as exc:
            _log.debug("a connection to ssh agent %r ended: %s", self._agent_id, exc)
        finally:
            writer.close()


async def _exchange(
    pipe: BytePipe, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Copy in both directions until either side ends."""

    async def to_agent() -> None:
        while data := await reader.read(_CHUNK):
            await pipe.write(data)

    async def to_step() -> None:
        while data := await pipe.read():
            writer.write(data)
            await writer.drain()

    tasks = {asyncio.create_task(to_agent()), asyncio.create_task(to_step())}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
