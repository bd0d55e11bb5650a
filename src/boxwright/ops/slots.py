"""How many ops may work at once."""

from __future__ import annotations

import asyncio


class Slots:
    """A number of slots that ops hold while they run; 0 is unlimited."""

    def __init__(self, limit: int = 0) -> None:
        self._semaphore = asyncio.Semaphore(limit) if limit > 0 else None

    async def acquire(self) -> Slots | None:
        """Wait for a slot; ``None`` where there is no limit."""
        if self._semaphore is None:
            return None
        await self._semaphore.acquire()
        return self

    def release(self) -> None:
        """Give one slot back."""
        if self._semaphore is not None:
            self._semaphore.release()
