"""Tasks with an owner: started for an edge or shared by several, ended before they are forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar

from boxwright.core.dataclass import dataclass
from boxwright.errors import BoxwrightError, Code

T = TypeVar("T")


class TaskSet:
    """All running tasks of one owner. Used from the event loop only."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, coro: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Start a task that :meth:`close` would end."""
        task = asyncio.create_task(coro, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Cancel everything that still runs and wait until it has ended."""
        while self._tasks:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


@dataclass(slots=True)
class Work:
    """A task of one edge; a cancelled one keeps its place until it has really ended."""

    task: asyncio.Task[None]
    cancelled: bool = False

    def cancel(self) -> None:
        """Ask the task to end."""
        if not self.cancelled:
            self.cancelled = True
            self.task.cancel()


class SharedCall(Generic[T]):
    """One call with several waiters, cancelled when none is left.

    The outcome is kept: a value for ever, an error until :meth:`forget_error`. A call that was
    cancelled leaves nothing behind and starts anew with the next waiter.
    """

    def __init__(self, tasks: TaskSet, name: str) -> None:
        self._tasks = tasks
        self._name = name
        self._task: asyncio.Task[None] | None = None
        self._waiters = 0
        self._value: list[T] = []
        self._error: BaseException | None = None

    @property
    def value(self) -> T | None:
        """The value, once there."""
        return self._value[0] if self._value else None

    def forget_error(self) -> None:
        """Let the next waiter try again."""
        self._error = None

    async def __call__(self, func: Callable[[], Awaitable[T]]) -> T:
        """Wait for the outcome, starting ``func`` if nobody has started one.

        Raises:
            asyncio.CancelledError: the waiter was cancelled.
        """
        while not self._value:
            if self._error is not None:
                raise self._error
            task = self._task
            if task is not None and self._waiters == 0:  # being cancelled: let it end first
                await asyncio.wait([task])
                continue
            if task is None:
                task = self._task = self._tasks.start(self._run(func), self._name)
                # Not in the task itself: one that is cancelled at once never gets to run.
                task.add_done_callback(self._ended)
            await self._join(task)
        return self._value[0]

    async def _join(self, task: asyncio.Task[None]) -> None:
        self._waiters += 1
        try:
            await asyncio.wait([task])
        finally:
            self._waiters -= 1
            if self._waiters == 0 and not task.done():
                task.cancel()
                await asyncio.wait([task])

    async def _run(self, func: Callable[[], Awaitable[T]]) -> None:
        try:
            self._value.append(await func())
        except asyncio.CancelledError:
            if self._waiters:  # not by us: the waiters must not wait or start over for ever
                self._error = WorkCancelledError("the step was cancelled", detail=self._name)
        except Exception as error:  # noqa: BLE001 - handed to every waiter
            self._error = error

    def _ended(self, _task: asyncio.Task[None]) -> None:
        self._task = None


class WorkCancelledError(BoxwrightError):
    """A step ended itself by cancellation although somebody still waited for it."""

    code = Code.CANCELLED
