"""Several pieces of work at the same time, ended together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence


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
