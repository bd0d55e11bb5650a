"""The client of any BuildKit-compatible daemon and of the embedded engine.

The names that programs use are here::

    from boxwright.client import BuildRequest, Export, connect, local_engine

They are imported when they are first asked for: the command line starts faster without.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from boxwright.client.client import Client, ProgressCallback
    from boxwright.client.local import connect, local_engine
    from boxwright.client.localcache import CacheSpec
    from boxwright.client.request import BuildRequest, BuildResult, Export
    from boxwright.client.transport import EmbeddedTransport, GrpcTransport

__all__ = [
    "BuildRequest",
    "BuildResult",
    "CacheSpec",
    "Client",
    "EmbeddedTransport",
    "Export",
    "GrpcTransport",
    "ProgressCallback",
    "connect",
    "local_engine",
]

_HOMES = {
    "BuildRequest": "request",
    "BuildResult": "request",
    "CacheSpec": "localcache",
    "Client": "client",
    "EmbeddedTransport": "transport",
    "Export": "request",
    "GrpcTransport": "transport",
    "ProgressCallback": "client",
    "connect": "local",
    "local_engine": "local",
}


def __getattr__(name: str) -> object:
    """Import one of the public names."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    return found
