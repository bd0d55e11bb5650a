"""Where the examples build: on the daemon of the first argument, else on an engine of their own."""

from __future__ import annotations

import sys
from contextlib import AbstractAsyncContextManager

from boxwright.client import Client, connect, local_engine


def engine() -> AbstractAsyncContextManager[Client]:
    """Give a client."""
    addresses = [each for each in sys.argv[1:] if "://" in each]
    return connect(addresses[0]) if addresses else local_engine()
