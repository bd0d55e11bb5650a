"""How much may still be written: the disk's free space, and the cap on the state folder.

*Exact* is a walk over the state folder that counts every inode once. Between walks the use is what
the walk found plus what the file system has lost since, which charges other writers of the disk
to us: never too little. When that says the cap is near, the next walk puts it right.

``headroom`` is what steps must leave free before they are stopped; ``margin``, half of it, is never
given to anybody: metadata is written from it, and it takes what a system call writes that had
begun when its process was stopped.

:meth:`Room.reserved` lets a writer whose size is known in only when there is room, after making some.
:attr:`Room.evict` and :attr:`Room.end_step` are set by whoever can make some.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from boxwright.core.dataclass import dataclass
from boxwright.core.workers import to_worker
from boxwright.linux import files
from boxwright.store.errors import DiskCapError, DiskFullError
from boxwright.store.trash import Trash

_LARGEST_HEADROOM = 1 << 30
_HEADROOM_PART = 32
_SMALL_HEADROOM = 64 << 20
_SMALL_PART = 4
_WALK_INTERVAL_S = 5.0


def default_headroom(limit_bytes: int) -> int:
    """Return the headroom for a disk or cap of this size when none is configured."""
    least = min(limit_bytes // _SMALL_PART, _SMALL_HEADROOM)
    return max(least, min(limit_bytes // _HEADROOM_PART, _LARGEST_HEADROOM))


@dataclass(frozen=True, slots=True)
class RoomNumbers:
    """Bytes; ``used`` and ``cap`` are 0 where nothing is capped."""

    used: int
    cap: int
    free: int
    available: int


class Room:
    """The room of one state folder. Numbers are safe from every thread, waiting is the loop's."""

    def __init__(self, root: Path, trash: Trash) -> None:
        self.path = root
        self._trash = trash
        self.cap = 0
        self.headroom = 0
        self.evict: Callable[[int], Awaitable[None]] | None = None
        self.end_step: Callable[[], Awaitable[bool]] | None = None
        self._base = 0  # what was used plus what was free at the last walk
        self._walked_s = 0.0
        self._granted = 0
        self._order = asyncio.Lock()
        self._making = asyncio.Lock()
        self._changed = asyncio.Event()

    @property
    def margin(self) -> int:
        """What is never given to anybody, in bytes."""
        return self.headroom // 2

    def limit(self, cap: int, headroom: int) -> None:
        """Set cap and headroom in bytes (0: none, a default) and count what is used. Blocking."""
        total = files.statfs(self.path).total_bytes
        self.cap = cap
        self.headroom = headroom or default_headroom(min(cap or total, total))
        if cap:
            self.walk()

    def walk(self) -> None:
        """Count exactly. Blocking."""
        free = files.statfs(self.path).available_bytes
        self._base = files.disk_usage(self.path) + free
        self._walked_s = time.monotonic()

    def numbers(self) -> RoomNumbers:
        """Return what is used and free now; one system call."""
        free = files.statfs(self.path).available_bytes
        if not self.cap:
            return RoomNumbers(0, 0, free, free)
        used = max(self._base - free, 0)
        return RoomNumbers(used, self.cap, free, min(free, self.cap - used))

    def available(self) -> int:
        """Return the bytes that may still be written; negative beyond the cap."""
        return self.numbers().available

    def mark(self, available: int) -> int:
        """Return how much the disk has free when just ``available`` bytes may still be written."""
        return max(available, available + self._base - self.cap) if self.cap else available

    def check(self, size: int) -> None:
        """Refuse to write ``size`` more bytes beyond the cap.

        Raises:
            DiskCapError: they would be.
        """
        if self.cap:
            now = self.numbers()
            if now.cap - now.used < size:
                raise DiskCapError(now.cap, now.used, needed=size)

    def error(self, needed: int) -> DiskCapError | DiskFullError:
        """Return why ``needed`` bytes can't be had."""
        now = self.numbers()
        if self.cap and now.cap - now.used <= now.free:
            return DiskCapError(now.cap, now.used, needed=needed)
        return DiskFullError(self.path, needed=needed, available=now.free)

    async def make_room(self, wanted: int) -> bool:
        """Remove cache until ``wanted`` bytes may be written; return whether they may.

        Raises:
            BoxwrightError: the rules of collection can't be followed.
        """
        async with self._making:
            if self.available() >= wanted:
                return True
            if self.evict is not None:
                await self.evict(wanted - self.available())
                await self.drained()
            if self.cap and self.available() < wanted and self._is_walk_due():
                await to_worker(self.walk)
            return self.available() >= wanted

    async def drained(self) -> None:
        """Wait until everything that has been discarded is removed."""
        await to_worker(self._trash.drain)

    def _is_walk_due(self) -> bool:
        return time.monotonic() - self._walked_s > _WALK_INTERVAL_S

    @asynccontextmanager
    async def reserved(self, size: int) -> AsyncIterator[None]:
        """Have room for ``size`` bytes during the block, in the order of asking.

        Raises:
            DiskCapError: the cap leaves no room, whatever is removed.
            DiskFullError: the disk has none.
        """
        if size <= 0:
            yield
            return
        async with self._order:
            await self._wait_for(size)
            self._granted += size
        try:
            yield
        finally:
            self._granted -= size
            self._changed.set()

    async def _wait_for(self, size: int) -> None:
        while True:
            self._changed.clear()
            needed = size + self.margin + self._granted
            if self.available() >= needed or await self.make_room(needed):
                return
            if self._granted:  # what others have asked for may be written, or not needed, soon
                await self._changed.wait()
            elif self.end_step is None or not await self.end_step():
                if self.available() < size:
                    raise self.error(size)
                return
