"""What sources resolved to in one build: each is resolved once, however often it is used.

What a frontend was told about a source (``ResolveSourceMeta``) is what the step gets, even if the
server has changed since. BuildKit keeps the same per job (solver/resolvercache.go).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Hashable, Sequence
from contextlib import AsyncExitStack
from typing import Any, TypeVar

T = TypeVar("T")

_Place = tuple[type[Any], Hashable]
_JOB_VALUE = "source resolutions"
_numbers = itertools.count()


class Resolutions:
    """The resolutions of one build. Used from the event loop only."""

    def __init__(self) -> None:
        self.number = next(_numbers)
        self._values: dict[_Place, list[Any]] = {}
        self._locks: dict[_Place, asyncio.Lock] = {}

    @classmethod
    def of(cls, job_values: dict[str, Any]) -> Resolutions:
        """Return the resolutions that a job remembers among its values."""
        found = job_values.setdefault(_JOB_VALUE, cls())
        assert isinstance(found, cls)
        return found

    def lock(self, place: _Place) -> asyncio.Lock:
        """Return the lock under which a source is resolved."""
        return self._locks.setdefault(place, asyncio.Lock())

    def known(self, place: _Place) -> Sequence[Any]:
        """Return what a source has resolved to so far."""
        return self._values.get(place, ())

    def add(self, place: _Place, found: object) -> None:
        """Remember what a source resolved to."""
        values = self._values.setdefault(place, [])
        if found not in values:
            values.append(found)


async def resolve_once(
    builds: Sequence[Resolutions],
    kind: type[T],
    key: Hashable,
    resolve: Callable[[], Awaitable[T]],
    accept: Callable[[T], bool] = lambda _: True,
) -> T:
    """Return what a source resolved to in any of the builds that want it, else resolve it.

    All of these builds remember the answer. A failure is not remembered.

    Args:
        builds: Those that want the source now.
        kind: The type of the resolution; sources of other kinds may have equal keys.
        key: Which source.
        resolve: Asks the source.
        accept: Whether a known resolution serves; another one is added if none does.
    """
    place = (kind, key)
    ordered = sorted(set(builds), key=lambda build: build.number)
    async with AsyncExitStack() as locks:
        for build in ordered:  # in one order, so that two builds never wait for each other
            await locks.enter_async_context(build.lock(place))
        found: T
        for found in itertools.chain.from_iterable(build.known(place) for build in ordered):
            if accept(found):
                break
        else:
            found = await resolve()
        for build in ordered:
            build.add(place, found)
        return found
