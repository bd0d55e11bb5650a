"""Locks by name: what two builds want at the same time is made once."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from weakref import WeakValueDictionary


class KeyedLocks:
    """One lock per key, there as long as anybody holds it or waits. For the event loop only."""

    def __init__(self) -> None:
        # Not "until it is not locked": between a release and the waking of who waits it is not.
        self._locks: WeakValueDictionary[Hashable, asyncio.Lock] = WeakValueDictionary()

    def __call__(self, key: Hashable) -> asyncio.Lock:
        """Return the lock of a key, to be used in ``async with`` at once."""
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock
