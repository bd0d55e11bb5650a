"""One process owns a state folder's engine; others find it by a socket in that folder."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from boxwright.linux import unixpath

if TYPE_CHECKING:
    from boxwright.engine.engine import Engine
    from boxwright.engine.settings import EngineSettings

OWNER_SOCKET = "engine.sock"
_OTHERS_GRACE_S = 24 * 3600.0


def answers(path: Path) -> bool:
    """Return whether somebody accepts connections on a unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        try:
            with unixpath.usable(path) as name:
                probe.connect(name)
        except OSError:
            return False
    return True


@asynccontextmanager
async def own_engine(settings: EngineSettings) -> AsyncIterator[Engine]:
    """Open the engine and serve it on the folder's socket while the block runs.

    Raises:
        StoreLockedError: another process owns the folder.
    """
    from boxwright.daemon.service import Front
    from boxwright.engine.engine import Engine

    engine = await Engine.open(settings)
    front = Front(engine)
    try:
        await front.listen_for_owner(settings.root)
        yield engine
    finally:
        # Whoever found our socket and builds with our engine is waited for.
        front.stop_serving()
        await engine.close(grace_s=_OTHERS_GRACE_S)
        await front.shutdown(1.0)
