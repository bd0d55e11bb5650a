"""Work that must end before its caller leaves."""

from __future__ import annotations

import asyncio

import pytest

from boxwright.engine.parallel import to_the_end


def test_it_ends_however_often_its_caller_is_cancelled() -> None:
    async def main() -> None:
        goes_on, ended = asyncio.Event(), []

        async def work() -> None:
            await goes_on.wait()
            ended.append(True)

        caller = asyncio.ensure_future(to_the_end(work()))
        for _ in range(3):  # the client leaves, the daemon stops, and once more
            await asyncio.sleep(0)
            caller.cancel()
        await asyncio.sleep(0.05)
        assert not caller.done()
        goes_on.set()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert ended

    asyncio.run(asyncio.wait_for(main(), 60))


def test_how_it_ends_is_told() -> None:
    async def fail() -> None:
        raise ValueError("reason")

    async def main() -> None:
        await to_the_end(asyncio.sleep(0))
        with pytest.raises(ValueError, match="reason"):
            await to_the_end(fail())

    asyncio.run(main())
