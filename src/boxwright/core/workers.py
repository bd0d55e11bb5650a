"""One bounded thread pool for blocking work (hash, tar, SQLite, tree walks).

The functions that run here must release the interpreter lock for the long part of their
work and must never wait for another function of the same pool: that could deadlock.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_MINIMUM_THREADS = 8


def pool_size() -> int:
    """Return the number of threads: more than cores, as most wait for the disk."""
    return max(_MINIMUM_THREADS, 2 * (os.cpu_count() or 1))


def install_pool(loop: asyncio.AbstractEventLoop) -> ThreadPoolExecutor:
    """Make a bounded pool the default executor of ``loop``; the caller shuts it down."""
    pool = ThreadPoolExecutor(max_workers=pool_size(), thread_name_prefix="boxwright")
    loop.set_default_executor(pool)
    return pool


async def to_worker(func: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Run ``func`` in the loop's pool and wait until it has really ended.

    A cancelled caller leaves at once only if the function has not started: a thread can't
    be stopped, and work that goes on behind its owner's back would write into folders
    that the owner has already given up. So cancellation is delivered after the function ends.
    """
    loop = asyncio.get_running_loop()
    context = contextvars.copy_context()
    call = functools.partial(context.run, func, *args, **kwargs)
    # Whoever takes the one token decides: the thread starts, or the caller leaves. Cancelling the
    # future can't tell: it succeeds on a running call and lets that go on unseen.
    token = [None]

    def run() -> R:
        try:
            token.pop()
        except IndexError:
            raise asyncio.CancelledError from None
        return call()

    future = loop.run_in_executor(None, run)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        try:
            token.pop()
        except IndexError:
            await ended(future)
        else:
            future.cancel()
        raise


async def ended(future: asyncio.Future[R]) -> None:
    """Wait until ``future`` has ended, through any number of cancellations."""
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            continue
    if not future.cancelled():
        future.exception()  # seen: never "exception was never retrieved"
