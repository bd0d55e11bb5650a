"""The misbehaving registry of ``boxwright.testing`` on a thread, for programs of their own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, Self

from boxwright.testing.registry import FakeRegistry


class ServedRegistry:
    """A :class:`FakeRegistry` with a loop of its own; a context manager.

    Its ``faults`` and what it recorded may be looked at and changed while it runs.
    """

    def __init__(self, **options: Any) -> None:
        self.fake: FakeRegistry
        self._options = options
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._end = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=[self._run()])

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(120)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(120)
        self._loop.close()

    @property
    def host(self) -> str:
        """Its address."""
        return self.fake.host

    async def _run(self) -> None:
        async with FakeRegistry(**self._options) as self.fake:
            self._ready.set()
            await self._end.wait()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run something on its loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)
