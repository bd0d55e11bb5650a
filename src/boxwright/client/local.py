"""Clients for programs: of a daemon at an address, and of an engine on this machine.

A program that imports this package keeps its namespaces, signals and threads: the engine is a
process of its own, which ends with the program.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from boxwright.client.client import Client
from boxwright.client.ownership import OWNER_SOCKET, answers
from boxwright.client.transport import GrpcTransport
from boxwright.engine.settings import default_root
from boxwright.errors import BoxwrightError, Code
from boxwright.wire.tls import TlsOptions

_READY = b"ready\n"
_STOP_S = 30.0
_KEPT_BYTES = 4096


class EngineStartError(BoxwrightError):
    """The engine's process ended before it could be used; the detail is what it said."""

    code = Code.ENVIRONMENT


@asynccontextmanager
async def connect(address: str, *, tls: TlsOptions | None = None) -> AsyncIterator[Client]:
    """Give a client of the daemon at ``unix:///path`` or ``tcp://host:port``.

    Raises:
        ConnectError: nobody answers, or its certificate is not accepted.
    """
    async with Client(await GrpcTransport.open(address, tls=tls)) as client:
        yield client


@asynccontextmanager
async def local_engine(
    root: Path | None = None, *, config: Path | None = None
) -> AsyncIterator[Client]:
    """Give a client of the engine that owns a state folder; start one if nobody does.

    Args:
        root: The state folder; by default the command line's, so that both share one cache.
        config: A ``buildkitd.toml``; by default the one that the command line reads. Not used if
            the engine runs already.

    Raises:
        EngineStartError: an engine can't be started here.
        ConnectError: its process went away.
    """
    root = root or default_root(os.environ, is_root=os.geteuid() == 0)
    address = f"unix://{root / OWNER_SOCKET}"
    if answers(root / OWNER_SOCKET):
        async with connect(address) as client:
            yield client
        return
    process = await _start(root, config)
    try:
        async with connect(address) as client:
            yield client
    finally:
        await _stop(process)


async def _start(root: Path, config: Path | None) -> asyncio.subprocess.Process:
    argv = [sys.executable, "-m", "boxwright.client.localengine", str(root)]
    process = await asyncio.create_subprocess_exec(
        *argv,
        *([str(config)] if config is not None else []),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C in a terminal is for the program, not for the engine
    )
    assert process.stdout is not None
    try:
        said = await process.stdout.readline()
        if said == _READY:
            return process
        said += await process.stdout.read(_KEPT_BYTES)
    except BaseException:
        await _stop(process)
        raise
    await _stop(process)
    lines = said.decode("utf-8", "replace").strip().splitlines()
    raise EngineStartError(
        f"can't start an engine on {root}",
        detail="\n".join(lines) or f"its process ended with {process.returncode}",
    )


async def _stop(process: asyncio.subprocess.Process) -> None:
    """Close its standard input, which ends it; wait, and kill it if that takes too long."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        async with asyncio.timeout(_STOP_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
