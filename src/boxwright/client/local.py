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
from boxwright.errors import EXIT_CODES, BoxwrightError, Code
from boxwright.wire.client import ConnectError
from boxwright.wire.tls import TlsOptions

_READY = b"ready\n"
_STOP_S = 30.0
_OWNER_WAIT_S = 5.0
_OWNER_POLL_S = 0.05
_LOCKED = EXIT_CODES[Code.STORE_LOCKED]
_KEPT_BYTES = 4096


class EngineStartError(BoxwrightError):
    """The engine's process ended before it could be used.

    Args:
        root: Its state folder.
        said: What it printed.
        status: Its exit status.
    """

    code = Code.ENVIRONMENT

    def __init__(self, root: Path, said: str, status: int | None) -> None:
        super().__init__(
            f"can't start an engine on {root}", detail=said or f"its process ended with {status}"
        )
        self.status = status


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
    process, transport = await _find_or_start(root, config)
    try:
        async with Client(transport) as client:
            yield client
    finally:
        if process is not None:
            await _stop(process)


async def _find_or_start(
    root: Path, config: Path | None
) -> tuple[asyncio.subprocess.Process | None, GrpcTransport]:
    """Connect to the folder's owner; become one through a process where there is none.

    An owner that is just leaving or just coming is waited for.
    """
    address = f"unix://{root / OWNER_SOCKET}"
    deadline = asyncio.get_running_loop().time() + _OWNER_WAIT_S
    while True:
        try:
            if answers(root / OWNER_SOCKET):
                return None, await GrpcTransport.open(address)
            process = await _start(root, config)
        except (ConnectError, EngineStartError) as exc:
            is_passing = isinstance(exc, ConnectError) or exc.status == _LOCKED
            if not is_passing or asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(_OWNER_POLL_S)
            continue
        try:
            return process, await GrpcTransport.open(address)
        except BaseException:
            await _stop(process)
            raise


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
    raise EngineStartError(root, said.decode("utf-8", "replace").strip(), process.returncode)


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
