"""Deciding which commands run when the disk is low, with a disk and a sandbox that are made up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from boxwright.executor.executor import Executor
from boxwright.ops.stepgate import StepGate, StepYieldedError, UndecidedError
from boxwright.store.errors import DiskCapError
from boxwright.store.room import Room


class FakeRoom:
    """A disk of 100 bytes with a headroom of 20."""

    path = Path("/nowhere")
    headroom, margin = 20, 10

    def __init__(self) -> None:
        self.left = 100
        self.failure: Exception | None = None
        self.asked: asyncio.Event | None = None
        self.end_step: object = None

    def available(self) -> int:
        return self.left

    def mark(self, available: int) -> int:
        return available

    async def make_room(self, wanted: int) -> bool:
        if self.failure is not None:
            raise self.failure
        if self.asked is not None:
            await self.asked.wait()
        return self.left >= wanted

    async def drained(self) -> None:
        await asyncio.sleep(0)

    def error(self, needed: int) -> DiskCapError:
        return DiskCapError(100, 100 - self.left, needed=needed)


class FakeExecutor:
    """Remembers who may run."""

    def __init__(self) -> None:
        self.on_low: Callable[[int], None] = lambda _free: None
        self.resumed: list[list[str] | None] = []

    async def watch_disk(self, _path: Path, _mark: int, on_low: Callable[[int], None]) -> None:
        self.on_low = on_low

    async def resume(self, run_ids: Sequence[str] | None, _mark: int) -> None:
        self.resumed.append(None if run_ids is None else list(run_ids))


class Steps:
    """A gate with commands that write when they are told to."""

    def __init__(self) -> None:
        self.room, self.executor = FakeRoom(), FakeExecutor()
        self.gate = StepGate(cast("Room", self.room), cast("Executor", self.executor))

    def start(self, name: str, size: int = 0) -> asyncio.Task[None]:
        age = self.gate.next_age()

        async def run() -> None:
            async with self.gate.turn(name, age):
                try:
                    self.room.left -= size
                    await asyncio.Event().wait()
                finally:
                    self.room.left += size

        return asyncio.create_task(run(), name=name)

    async def low(self) -> None:
        self.executor.on_low(self.room.left)
        await quiet()


async def quiet() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


def run(use: Callable[[Steps], Any]) -> None:
    async def main() -> None:
        steps = Steps()
        await use(steps)
        await steps.gate.close()

    asyncio.run(asyncio.wait_for(main(), 120))


def test_the_oldest_goes_on_alone_and_others_give_up():
    async def use(steps: Steps) -> None:
        tasks = [steps.start(f"s{n}", 28) for n in range(3)]
        await quiet()
        await steps.low()
        assert steps.executor.resumed == [["s0"]]
        steps.room.left -= 10  # it goes on to the margin
        await steps.low()
        with pytest.raises(StepYieldedError):
            await tasks[2]
        await quiet()
        assert steps.executor.resumed[-1] in (["s0"], None)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run(use)


def test_one_that_can_not_fit_fails():
    async def use(steps: Steps) -> None:
        task = steps.start("s0", 95)
        await quiet()
        await steps.low()
        with pytest.raises(DiskCapError):
            await task

    run(use)


def test_one_that_is_ended_before_it_has_started_holds_nobody_up():
    async def use(steps: Steps) -> None:
        room = steps.room
        running = steps.start("s0", 95)
        await quiet()
        late = steps.start("late")
        await quiet()
        assert not late.done()
        room.asked = asyncio.Event()  # from now on it takes a while to see what can be removed
        room.left -= 95  # others have written
        running.cancel()
        await quiet()
        steps.executor.on_low(room.left)
        room.asked.set()
        with pytest.raises(DiskCapError):
            await asyncio.wait_for(late, 60)
        room.left = 100
        again = steps.start("again")
        await quiet()
        assert steps.executor.resumed[-1] is None
        again.cancel()
        await asyncio.gather(again, return_exceptions=True)

    run(use)


@pytest.mark.parametrize("failure", [OSError(5, "input/output error"), ValueError("a bug")])
def test_nobody_waits_for_a_decision_that_fails(failure):
    async def use(steps: Steps) -> None:
        running = [steps.start(f"s{n}", 45) for n in range(2)]
        await quiet()
        late = steps.start("late")
        await quiet()
        assert not late.done()
        steps.room.failure = failure
        await steps.low()
        found = await asyncio.gather(*running, late, return_exceptions=True)
        assert [type(each) for each in found] == [UndecidedError] * 3
        assert str(failure) in str(found[0].detail)
        steps.room.failure = None  # and the next one finds the gate open
        again = steps.start("again")
        await quiet()
        assert steps.executor.resumed[-1] is None
        again.cancel()
        await asyncio.gather(again, return_exceptions=True)

    run(use)
