"""Locks by name: what two builds want at the same time is made once."""

from __future__ import annotations

import asyncio


class KeyedLocks:
    """One lock per key, forgotten when nobody holds it. Used from the event loop only."""

    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}

    def __call__(self, key: str) -> asyncio.Lock:
        """Return the lock of a key."""
        for idle in [k for k, lock in self._locks.items() if not lock.locked() and k != key]:
            del self._locks[idle]
        return self._locks.setdefault(key, asyncio.Lock())
