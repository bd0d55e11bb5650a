"""Results as the engine hands them around: lazily solved refs, and whole frontend results."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from boxwright.core.dataclass import dataclass, field
from boxwright.exporters.attestation import Attestation
from boxwright.llb.graph import Edge
from boxwright.snapshots.refs import ImmutableRef
from boxwright.solver.types import CachedResult
from boxwright.wire.pb import ops_pb2


class LazyRef:
    """A definition that is solved when somebody first needs its result, and then kept.

    Owned by one build; :meth:`release` gives up its result, also one still being computed.
    """

    def __init__(
        self,
        definition: ops_pb2.Definition,
        edge: Edge,
        solve: Callable[[], Awaitable[CachedResult]],
    ) -> None:
        self.definition = definition
        self.edge = edge
        self._solve = solve
        self._task: asyncio.Task[CachedResult] | None = None
        self._waiters = 0
        self._owners = 1
        self.is_evaluated = False
        """Whether there was a result at some time, be it released by now."""

    def retain(self) -> LazyRef:
        """Add an owner; each releases once."""
        self._owners += 1
        return self

    async def result(self) -> CachedResult:
        """Return the result, owned by this object; solve if nobody has yet.

        Work is cancelled when the last waiter is; a later call starts it again.
        """
        if self._task is None or self._task.cancelled():
            self._task = asyncio.ensure_future(self._solve())
        task = self._task
        self._waiters += 1
        try:
            made = await asyncio.shield(task)
            self.is_evaluated = True
            return made
        except asyncio.CancelledError:
            if self._waiters == 1 and not task.done():
                task.cancel()
                await asyncio.wait([task])
            raise
        finally:
            self._waiters -= 1

    async def snapshot(self) -> ImmutableRef | None:
        """Return the snapshot behind the result; None is an empty root (scratch)."""
        value = (await self.result()).value
        assert value is None or isinstance(value, ImmutableRef)
        return value

    async def release(self) -> None:
        """Give up one owner's share; the last one releases the result."""
        self._owners -= 1
        if self._owners > 0 or self._task is None:
            return
        task, self._task = self._task, None
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
        if not task.cancelled() and task.exception() is None:
            await task.result().release()


@dataclass(frozen=True, slots=True)
class ResultAttestation:
    """An attestation of a result; ``ref`` has its content unless the form makes it."""

    form: Attestation
    ref: LazyRef | None = None


@dataclass
class FrontendResult:
    """What a frontend returns: one ref, or one for each platform, and metadata for exporters.

    ``attestations`` are by platform id, also where there is only one ref.
    """

    ref: LazyRef | None = None
    refs: dict[str, LazyRef | None] | None = None
    metadata: dict[str, bytes] = field(default_factory=dict)
    attestations: dict[str, list[ResultAttestation]] = field(default_factory=dict)

    def all_refs(self) -> list[LazyRef]:
        """Return every ref that is not empty, those of attestations last."""
        found = [self.ref] if self.ref else []
        found += [ref for ref in (self.refs or {}).values() if ref]
        return found + [
            item.ref for items in self.attestations.values() for item in items if item.ref
        ]

    async def release(self) -> None:
        """Give up all refs."""
        for ref in self.all_refs():
            await ref.release()
