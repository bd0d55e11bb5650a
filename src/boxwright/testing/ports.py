"""Ports of loopback for servers that must be told where to listen."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator


@contextlib.contextmanager
def kept_port() -> Iterator[int]:
    """Yield a port that nobody else on this machine is given while the block runs.

    The kernel may give a port that was looked for and let go to the next one who asks for any.
    A socket that is bound and never listens keeps it, and leaves it to a server that asks for
    this one with ``SO_REUSEADDR``, as servers do. Until one listens, connections are refused.
    """
    with socket.socket() as keeper:
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        keeper.bind(("127.0.0.1", 0))
        yield keeper.getsockname()[1]
