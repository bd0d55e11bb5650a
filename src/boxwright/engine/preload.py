"""Modules that builds need and a first answer does not.

A daemon is probed long before it is asked to build, and an embedded build has one kind of
output: what is slow to import and not always wanted is imported where it is used. A daemon
imports it as soon as it has answered, so that its first build does not wait for it.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
from typing import Final

from boxwright.core.workers import to_worker

_MODULES: Final = (
    "boxwright.engine.solve",
    "boxwright.dockerfile.frontend",
    "boxwright.exporters.image",
    "boxwright.exporters.archive",
    "boxwright.exporters.tree",
)
# The first probe is answered first: imports hold the interpreter.
_DELAY_S: Final = 0.3


async def preload() -> None:
    """Import what most builds need, one module after the other, in a worker thread."""
    await asyncio.sleep(_DELAY_S)
    for name in _MODULES:
        await to_worker(importlib.import_module, name)
    # What is there now stays as long as the process: no collection needs to look at it again.
    gc.freeze()
