"""Graphs of counted fake ops, for tests of the solver and of what stands on it.

Usage::

    graph = FakeGraph()
    base = graph.vertex("base", value="b")
    step = graph.vertex("step", base, slow={0: "content-of-base"})
    async with graph.solver() as solver:
        assert await graph.build(solver, "job", step) == "…"
    assert graph.calls["step"].exec == 1
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count

from boxwright.core.digest import Digest
from boxwright.llb.graph import Edge, Vertex, VertexOptions
from boxwright.solver.cachemanager import LocalCacheManager
from boxwright.solver.jobs import Job, Solver
from boxwright.solver.memorystorage import MemoryCacheStorage, MemoryResultStorage
from boxwright.solver.types import (
    CachedResult,
    CacheManager,
    CacheMap,
    CacheMapDep,
    JobContext,
    OpSlot,
    Result,
)
from boxwright.wire.pb import ops_pb2

_ids = count()


class CountedResult:
    """A result that knows how many owners it has."""

    def __init__(
        self, value: object, result_id: str = "", owners: list[int] | None = None
    ) -> None:
        self.id = result_id or f"result-{next(_ids)}"
        self.value = value
        self._owners = owners if owners is not None else [0]
        self._owners[0] += 1
        self._released = False

    @property
    def owners(self) -> int:
        """How many clones are not released."""
        return self._owners[0]

    def clone(self) -> CountedResult:
        """Return another owner."""
        assert not self._released, f"{self.id} cloned after its release"
        return CountedResult(self.value, self.id, self._owners)

    async def release(self) -> None:
        """Give up one share; a second time is a bug."""
        assert not self._released, f"{self.id} released twice"
        self._released = True
        self._owners[0] -= 1


@dataclass(slots=True)
class Calls:
    """How often an op was asked, and what must happen before it answers."""

    cache_map: int = 0
    exec: int = 0
    slow: Counter[int] = field(default_factory=Counter)
    preprocess: Counter[int] = field(default_factory=Counter)
    cancelled: int = 0


Hook = Callable[[JobContext], Awaitable[None]]


@dataclass(slots=True)
class FakeOp:
    """An op made of settings; counts everything under its vertex's name."""

    calls: Calls
    made: list[CountedResult]
    keys: Sequence[str]
    value: object
    selectors: Mapping[int, str]
    slow: Mapping[int, str | Callable[[object], str] | Exception]
    preprocess: frozenset[int]
    inputs: int
    outputs: int
    on_cache_map: Hook | None
    on_exec: Hook | None
    opts: Mapping[str, object]

    async def acquire(self) -> OpSlot | None:
        """Fake ops need nothing."""
        return None

    async def cache_map(self, ctx: JobContext, index: int) -> tuple[CacheMap, bool]:
        """Return the key made from the ``index``-th seed."""
        self.calls.cache_map += 1
        if self.on_cache_map is not None:
            await self._counted(self.on_cache_map(ctx))
        deps = tuple(
            CacheMapDep(
                selector=self.selectors.get(i, ""),
                compute=self._compute(i) if i in self.slow else None,
                preprocess=self._prepare(i) if i in self.preprocess else None,
            )
            for i in range(self.inputs)
        )
        key = self.keys[index]
        digest = key if key.startswith("random:") else Digest.of(f"seed:{key}".encode())
        return CacheMap(digest, deps, self.opts), index + 1 == len(self.keys)

    def _compute(self, index: int) -> Callable[[Result, JobContext], Awaitable[str]]:
        async def compute(result: Result, _ctx: JobContext) -> str:
            self.calls.slow[index] += 1
            answer = self.slow[index]
            if isinstance(answer, Exception):
                raise answer
            text = answer if isinstance(answer, str) else answer(result.value)
            return Digest.of(f"content:{text}".encode())

        return compute

    def _prepare(self, index: int) -> Callable[[Result, JobContext], Awaitable[None]]:
        async def prepare(_result: Result, _ctx: JobContext) -> None:
            self.calls.preprocess[index] += 1

        return prepare

    async def _counted(self, hook: Awaitable[None]) -> None:
        try:
            await hook
        except asyncio.CancelledError:
            self.calls.cancelled += 1
            raise

    async def exec(self, ctx: JobContext, inputs: Sequence[Result]) -> list[Result]:
        """Return the value, or what the value function makes of the inputs' values."""
        self.calls.exec += 1
        if self.on_exec is not None:
            await self._counted(self.on_exec(ctx))
        value = self.value
        if callable(value):
            value = value([r.value for r in inputs])
        if isinstance(value, Edge):
            found = await ctx.build(value)
            value = found.value
            await found.release()
        made = [
            CountedResult(value if self.outputs == 1 else (value, i)) for i in range(self.outputs)
        ]
        self.made.extend(made)
        return list(made)


class FakeGraph:
    """Makes vertices with fake ops, and solvers that run them."""

    def __init__(self) -> None:
        self.calls: dict[str, Calls] = {}
        self.made: list[CountedResult] = []
        self._ops: dict[Vertex, FakeOp] = {}
        self.storage = MemoryCacheStorage()
        self.results = MemoryResultStorage()
        self.cache = LocalCacheManager("main", self.storage, self.results)

    def vertex(
        self,
        name: str,
        *inputs: Edge,
        digest: str = "",
        key: str | Sequence[str] = "",
        value: object = None,
        selectors: Mapping[int, str] | None = None,
        slow: Mapping[int, str | Callable[[object], str] | Exception] | None = None,
        preprocess: Sequence[int] = (),
        outputs: int = 1,
        ignore_cache: bool = False,
        export_cache: bool | None = None,
        on_cache_map: Hook | None = None,
        on_exec: Hook | None = None,
        opts: Mapping[str, object] | None = None,
    ) -> Edge:
        """Return output 0 of a new vertex.

        Vertices of one ``digest`` (by default made from the name) are one vertex to the
        solver; those of one ``key`` (by default the name) may share results.
        """
        keys = [key or name] if isinstance(key, str) else list(key)
        vertex = Vertex(
            digest=Digest.of(f"vertex:{digest or name}".encode()),
            op=ops_pb2.Op(),
            inputs=inputs,
            options=VertexOptions(ignore_cache=ignore_cache, export_cache=export_cache),
            default_name=name,
        )
        self._ops[vertex] = FakeOp(
            calls=self.calls.setdefault(name, Calls()),
            made=self.made,
            keys=keys,
            value=f"value of {name}" if value is None else value,
            selectors=selectors or {},
            slow=slow or {},
            preprocess=frozenset(preprocess),
            inputs=len(inputs),
            outputs=outputs,
            on_cache_map=on_cache_map,
            on_exec=on_exec,
            opts=opts or {},
        )
        return Edge(vertex)

    @asynccontextmanager
    async def solver(self) -> AsyncIterator[Solver]:
        """Run a solver over this graph's cache; at its end nothing may be left over."""
        solver = Solver(self._ops.__getitem__, self.cache)
        try:
            yield solver
        finally:
            await solver.close()
        assert not solver.active_vertices
        assert solver.indexed_keys == 0

    async def build(
        self,
        solver: Solver,
        job: Job | str,
        edge: Edge,
        *,
        caches: Sequence[CacheManager] = (),
    ) -> object:
        """Return the value of an edge; a job given by name is discarded afterwards."""
        owned = solver.new_job(job) if isinstance(job, str) else job
        try:
            result: CachedResult = await owned.build(edge, caches=caches)
            value = result.value
            await result.release()
            return value
        finally:
            if isinstance(job, str):
                await owned.discard()

    def execs(self) -> dict[str, int]:
        """Return the vertices that ran, with how often."""
        return {name: calls.exec for name, calls in self.calls.items() if calls.exec}

    def reset(self) -> None:
        """Count from zero again."""
        for calls in self.calls.values():
            calls.cache_map = calls.exec = calls.cancelled = 0
            calls.slow.clear()
            calls.preprocess.clear()

    async def close(self) -> None:
        """Empty the cache; afterwards every result must have been released."""
        await self.results.close()
        leaked = [r.id for r in self.made if r.owners]
        assert not leaked, f"results never released: {leaked}"
