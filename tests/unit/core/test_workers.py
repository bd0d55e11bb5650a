"""Cancellation of work in threads."""

from __future__ import annotations

import asyncio
import threading

import pytest

from boxwright.core.workers import to_worker


def test_a_cancelled_caller_waits_for_what_runs():
    async def scenario():
        started, finish, ended = asyncio.Event(), threading.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def work() -> None:
            loop.call_soon_threadsafe(started.set)
            finish.wait(120)
            ended.set()

        task = asyncio.ensure_future(to_worker(work))
        await started.wait()
        for _ in range(3):  # however often
            task.cancel()
            for _ in range(5):
                await asyncio.sleep(0)
            assert not task.done()
        finish.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()

    asyncio.run(scenario())


def test_what_has_not_started_never_does():
    async def scenario():
        from concurrent.futures import ThreadPoolExecutor

        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        block = threading.Event()
        ran = []
        first = asyncio.ensure_future(to_worker(block.wait, 120))
        await asyncio.sleep(0)
        second = asyncio.ensure_future(to_worker(ran.append, 1))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        block.set()
        assert await first
        await to_worker(int)
        assert ran == []

    asyncio.run(scenario())


def test_results_and_errors_pass():
    assert asyncio.run(to_worker(int, "7")) == 7
    with pytest.raises(ValueError, match="invalid literal"):
        asyncio.run(to_worker(int, "x"))
