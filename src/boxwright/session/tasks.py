"""Run the parts of one transfer side by side; the first failure ends all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


async def run_together(*parts: Coroutine[Any, Any, Any]) -> None:
    """Wait for all ``parts``; when one fails, cancel and await the others, then raise its error.

    Unlike :class:`asyncio.TaskGroup` it raises the error itself, not a group: the parts of a
    transfer fail for one reason, and callers handle that reason by its type.
    """
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        failed = [task for task in tasks if task in done and _error(task) is not None]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in failed:
        task.result()


def _error(task: asyncio.Future[Any]) -> BaseException | None:
    if task.cancelled():
        return asyncio.CancelledError()
    return task.exception()
