"""Several pieces of work at the same time, ended together; and work that is not to be disturbed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Sequence

from boxwright.core.workers import ended


async def gather_or_cancel(work: Sequence[Awaitable[None]]) -> None:
    """Run all at the same time; the first failure cancels the others and is raised alone."""
    tasks = [asyncio.ensure_future(item) for item in work]
    try:
        for task in asyncio.as_completed(tasks):
            await task
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def to_the_end(work: Coroutine[None, None, None]) -> None:
    """Wait until ``work`` has ended, however often the caller is cancelled meanwhile.

    It is not told of that; the caller is, when it has ended. For the end of something whose owner
    gives up what the work uses as soon as the caller has left.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await ended(task)
        task.result()  # its failure says more
        raise
