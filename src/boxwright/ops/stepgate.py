"""Which commands may run when the disk is low.

What a command writes can't be known before. All may start while there is the headroom; when less
is left the sandbox stops them all (``boxwright.sandbox.brake``), and one task here decides:

1. cache that nobody needs is removed; if that gives twice the headroom, all go on;
2. else the oldest goes on alone, down to the margin, while the others stay stopped;
3. when it is stopped at the margin, too, the youngest of the others gives up what it has written and
   runs again later from its beginning; a command is a function of its inputs, so that is safe;
4. when no other is left, the oldest itself does not fit and fails, with an error that says so.

A command that ends makes its tree removable when its build ends, so the next oldest follows. Age
is the order of first starts and survives giving up: everybody becomes the oldest one day.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from boxwright.core.dataclass import dataclass, field
from boxwright.errors import BoxwrightError, Code
from boxwright.executor.executor import Executor
from boxwright.store.room import Room

_log = logging.getLogger(__name__)


class StepYieldedError(BoxwrightError):
    """A command gave up its room: it is to run again from its beginning."""

    code = Code.DISK_CAP
    retryable = True

    def __init__(self) -> None:
        super().__init__("the step gave up its room on the disk")


class UndecidedError(BoxwrightError):
    """The disk is low or can't be asked, and what is to be done about it failed, too."""

    code = Code.INTERNAL

    def __init__(self, cause: Exception) -> None:
        super().__init__("the state folder's disk can't be watched", detail=str(cause))


@dataclass(eq=False, slots=True)
class Turn:
    """One run of one command, in one task.

    Attributes:
        run_id: Its name in the executor.
        age: Its place in the order of first starts.
        task: What runs it.
        error: Why it was ended from here.
        ended: Its processes and what it had written are gone, or it has succeeded.
        admitted: It may start.
    """

    run_id: str
    age: int
    task: asyncio.Task[object]
    error: BoxwrightError | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    admitted: asyncio.Event = field(default_factory=asyncio.Event)

    def end(self, error: BoxwrightError) -> None:
        """Cancel it with a reason."""
        if self.error is None:
            self.error = error
            self.task.cancel()


class StepGate:
    """One per engine; used from its event loop.

    Args:
        room: What may still be written.
        executor: Runs the commands.
    """

    def __init__(self, room: Room, executor: Executor) -> None:
        self._room = room
        self._executor = executor
        self._ages = 0
        self._running: dict[str, Turn] = {}
        self._waiting: list[Turn] = []
        self._is_held = False
        self._alone: Turn | None = None
        self._is_armed = False
        self._task: asyncio.Task[None] | None = None
        self._again = False
        room.end_step = self.end_one

    def next_age(self) -> int:
        """Return the age of a command that wants to run for the first time."""
        self._ages += 1
        return self._ages

    async def close(self) -> None:
        """End the task that decides."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @asynccontextmanager
    async def turn(self, run_id: str, age: int) -> AsyncIterator[None]:
        """Wait until a command may start; the block is its run, with all that it cleans up.

        Args:
            run_id: Its name in the executor, which must be told that it is stoppable.
            age: From :meth:`next_age`, the same in every attempt.

        Raises:
            StepYieldedError: the run was ended to make room; do it again.
            DiskCapError: it was ended as it writes more than the cap leaves.
            DiskFullError: the same, of the disk.
        """
        task = asyncio.current_task()
        assert task is not None
        turn, cancelled_before = Turn(run_id, age, task), task.cancelling()
        try:
            await self._admit(turn)
            try:
                await self._arm()
                yield
            finally:
                del self._running[turn.run_id]
                turn.ended.set()
                if self._is_held or self._waiting:
                    self._decide()
        except asyncio.CancelledError:
            # As in asyncio.timeout: somebody else's cancellation always passes.
            if turn.error is not None and task.uncancel() <= cancelled_before:
                raise turn.error from None
            raise

    async def _admit(self, turn: Turn) -> None:
        if not self._is_held and not self._waiting and self._has_headroom():
            self._running[turn.run_id] = turn
            return
        self._waiting.append(turn)
        self._decide()
        try:
            await turn.admitted.wait()
        except asyncio.CancelledError:
            if turn in self._waiting:
                self._waiting.remove(turn)
            else:
                del self._running[turn.run_id]
                turn.ended.set()
                self._decide()
            raise

    def _has_headroom(self) -> bool:
        return self._room.available() >= self._room.headroom

    async def _arm(self) -> None:
        if not self._is_armed:
            mark = self._room.mark(self._room.headroom)
            self._is_armed = True
            await self._executor.watch_disk(self._room.path, mark, self._on_low)

    def _on_low(self, free: int) -> None:
        _log.info("disk is low (%d bytes free): %d steps stopped", free, len(self._running))
        self._is_held = True
        self._alone = None
        self._decide()

    def _decide(self) -> None:
        self._again = True
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._keep_deciding())

    async def _keep_deciding(self) -> None:
        while self._again:
            self._again = False
            try:
                await self._decide_once()
            except Exception as exc:  # noqa: BLE001 - whatever it is, nobody may hang
                # Who waits for a decision would wait for ever.
                _log.exception("can't decide which steps may run")
                for turn in (*self._running.values(), *self._waiting):
                    turn.end(UndecidedError(exc))

    async def _decide_once(self) -> None:
        if self._is_held and not self._running:
            await self._release()
        if self._is_held:
            await self._relieve()
        if self._waiting and not self._is_held:
            await self._admit_waiting()

    async def _relieve(self) -> None:
        """Let everybody go on, or the oldest, or make it give up."""
        if await self._make_room(2 * self._room.headroom):
            await self._release()
            return
        while self._running:
            oldest = min(self._running.values(), key=lambda turn: turn.age)
            if self._alone is oldest:
                return
            if self._room.available() > self._room.margin:
                self._alone = oldest
                await self._executor.resume([oldest.run_id], self._room.mark(self._room.margin))
                return
            if not await self._end_youngest(keep=oldest):
                await self._end(oldest, self._room.error(0))
            elif await self._make_room(2 * self._room.headroom):
                break
        await self._release()

    async def _make_room(self, wanted: int) -> bool:
        try:
            return await self._room.make_room(wanted)
        except (
            BoxwrightError
        ) as error:  # a disk that is full to the last byte: others must go first
            _log.warning("can't remove cache: %s", error)
            return False

    async def _release(self) -> None:
        self._is_held, self._alone = False, None
        await self._executor.resume(None, self._room.mark(self._room.headroom))

    async def _admit_waiting(self) -> None:
        self._waiting.sort(key=lambda turn: turn.age)
        wanted = self._room.headroom if self._running else 2 * self._room.headroom
        if not self._has_headroom():
            await self._make_room(wanted)
        while self._waiting and (self._has_headroom() or not self._running):
            turn = self._waiting.pop(0)
            self._running[turn.run_id] = turn
            turn.admitted.set()

    async def end_one(self) -> bool:
        """Have room by the end of one command; return whether there was any.

        A stopped one is ended; if all are running the first to end is waited for.
        """
        if await self._end_youngest():
            return True
        waits = [asyncio.ensure_future(turn.ended.wait()) for turn in self._running.values()]
        if not waits:
            return False
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        await self._room.drained()
        return True

    async def _end_youngest(self, keep: Turn | None = None) -> bool:
        """Make the youngest stopped command give up what it has written, but not ``keep``."""
        stopped = [
            turn
            for turn in self._running.values()
            if self._is_held and turn is not self._alone and turn is not keep
        ]
        if not stopped:
            return False
        youngest = max(stopped, key=lambda turn: turn.age)
        _log.info("step %s gives up its room and runs again later", youngest.run_id)
        await self._end(youngest, StepYieldedError())
        return True

    async def _end(self, turn: Turn, error: BoxwrightError) -> None:
        turn.end(error)
        await turn.ended.wait()
        await self._room.drained()
