"""Vertices that somebody wants right now: who wants them, their op, and their outputs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from boxwright.core import onbehalf
from boxwright.core.digest import Digest
from boxwright.errors import BoxwrightError
from boxwright.llb.definition import load
from boxwright.llb.graph import Edge, Vertex
from boxwright.progress.events import IMPORTED, LOCAL
from boxwright.solver.cachekey import ExportableKey
from boxwright.solver.cachemanager import CombinedCacheManager
from boxwright.solver.edge import EdgeNode, InputState
from boxwright.solver.failure import failure_of
from boxwright.solver.progress import JobProgress, VertexProgress
from boxwright.solver.types import (
    Admit,
    CachedResult,
    CacheManager,
    CacheMap,
    CacheMapDep,
    CacheRecord,
    Op,
    Result,
    Watch,
)
from boxwright.solver.work import SharedCall

if TYPE_CHECKING:
    from boxwright.solver.jobs import Solver
    from boxwright.wire.pb.ops_pb2 import Definition

logger = logging.getLogger(__name__)


class VertexInternalError(BoxwrightError):
    """An op failed in a way that nobody expected: a bug, shown without its traceback."""


class Owner:
    """Somebody that keeps vertices alive: a job, or a vertex that solves a graph of its own."""

    def __init__(self) -> None:
        self.owned: dict[ActiveVertex, None] = {}

    def reports(self) -> Iterator[JobProgress]:
        """Return the progress of all jobs behind this owner."""
        raise NotImplementedError

    def session_ids(self, seen: set[Owner]) -> Iterator[str]:
        """Yield the sessions of all jobs behind this owner."""
        raise NotImplementedError

    def remembered(self, seen: set[Owner]) -> Iterator[dict[str, Any]]:
        """Yield what is remembered with the jobs behind this owner."""
        raise NotImplementedError

    def admissions(self, seen: set[Owner]) -> Iterator[Admit]:
        """Yield how the jobs behind this owner check definitions."""
        raise NotImplementedError

    def watches(self, seen: set[Owner]) -> Iterator[Watch]:
        """Yield what the jobs behind this owner want to have told."""
        raise NotImplementedError


class ActiveVertex(Owner):
    """One vertex with everything that its jobs share. Also the :class:`JobContext` of its op."""

    def __init__(
        self,
        solver: Solver,
        digest: Digest,
        vertex: Vertex,
        inputs: tuple[tuple[ActiveVertex, int], ...],
    ) -> None:
        super().__init__()
        self.solver = solver
        self.digest = digest
        """The vertex's own, or another if it runs beside one that may use the cache."""
        self.vertex = vertex
        self.inputs = inputs
        self.owners: dict[Owner, None] = {}
        self.nodes: dict[int, EdgeNode] = {}
        self.progress = VertexProgress(
            digest, vertex, tuple(a.digest for a, _ in inputs), solver.clock
        )
        self.op = ActiveOp(self)
        self.origin = ""
        """Where a cached result came from (see :class:`boxwright.progress.events.VertexEvent`)."""
        self.load_failures: list[str] = []
        """Why records that keys led to could not be loaded."""
        self.sub_keys: list[ExportableKey] = []
        """Keys of the graphs that the op has solved; exported with its own."""
        self._imported: dict[str, CacheManager] = {}
        self._cache: CacheManager = solver.cache
        self._cleanups: list[Callable[[], Awaitable[None]]] = []
        for source, output in inputs:
            source.node(output)  # now, so that making a node never reaches deeper than one step

    # -- what ops see (JobContext) --------------------------------------------------------

    def sessions(self) -> tuple[str, ...]:
        """Ids of the sessions of all jobs that want the vertex now, oldest first."""
        return tuple(dict.fromkeys(self.session_ids(set())))

    def job_values(self) -> tuple[dict[str, Any], ...]:
        """What is remembered with each of the jobs that want the vertex now, oldest first."""
        return tuple(self.remembered(set()))

    def on_cleanup(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Call back when no job wants the vertex any more."""
        self._cleanups.append(callback)

    def cache_opts(self, key: str, *, include_inputs: bool = True) -> object | None:
        """Return the nearest ``CacheMap.opts[key]`` of this vertex or of its inputs."""
        pending: list[ActiveVertex] = [self]
        seen: set[ActiveVertex] = set()
        while pending:
            active = pending.pop()
            if active in seen:
                continue
            seen.add(active)
            for cache_map in active.op.cache_maps():
                if key in cache_map.opts:
                    return cache_map.opts[key]
            if include_inputs:
                pending.extend(dep for dep, _ in active.inputs)
        return None

    async def admit(self, definition: Definition) -> Edge:
        """Return the graph of a definition as a job that wants this vertex may have it.

        Raises:
            BoxwrightError: it is malformed, or no job may build it.
        """
        failure: BoxwrightError | None = None
        for check in tuple(self.admissions(set())):
            try:
                return await check(definition)
            except BoxwrightError as exc:
                failure = failure or exc
        if failure is not None:
            raise failure
        return load(definition)

    async def build(self, edge: Edge) -> CachedResult:
        """Solve another graph on behalf of this vertex; the caller releases the result."""
        result = await self.solver.build(edge, self, tuple(self._imported.values()))
        self.sub_keys.extend(result.cache_keys[:1])
        return result

    # -- owners ---------------------------------------------------------------------------

    def reports(self) -> Iterator[JobProgress]:
        """Return the progress of all jobs that want the vertex."""
        for owner in self.owners:
            yield from owner.reports()

    def session_ids(self, seen: set[Owner]) -> Iterator[str]:
        """Yield the sessions of jobs that want the vertex directly, then of the others."""
        if self in seen:
            return
        seen.add(self)
        for owner in sorted(self.owners, key=lambda o: isinstance(o, ActiveVertex)):
            yield from owner.session_ids(seen)

    def remembered(self, seen: set[Owner]) -> Iterator[dict[str, Any]]:
        """Yield the values of all jobs that want the vertex."""
        if self in seen:
            return
        seen.add(self)
        for owner in self.owners:
            yield from owner.remembered(seen)

    def admissions(self, seen: set[Owner]) -> Iterator[Admit]:
        """Yield how jobs that want the vertex directly check definitions, then the others."""
        if self in seen:
            return
        seen.add(self)
        for owner in sorted(self.owners, key=lambda o: isinstance(o, ActiveVertex)):
            yield from owner.admissions(seen)

    def watches(self, seen: set[Owner]) -> Iterator[Watch]:
        """Yield what jobs that want the vertex want to have told."""
        if self not in seen:
            seen.add(self)
            for owner in self.owners:
                yield from owner.watches(seen)

    def completed(self, index: int, result: Result) -> None:
        """Tell all who watch that an output is there."""
        edge = Edge(self.vertex, index)
        for watch in tuple(self.watches(set())):
            watch(edge, result)

    def add_owner(self, owner: Owner, caches: Iterable[CacheManager] = ()) -> None:
        """Let one more want this vertex, all it stands on, and all that stand in for it."""
        pending, seen = [self], set[ActiveVertex]()
        while pending:
            active = pending.pop()
            if active in seen:
                continue
            seen.add(active)
            pending.extend(reversed([dep for dep, _ in active.inputs]))
            pending.extend(n.resolved().active for n in active.nodes.values() if n.forward)
        for active in _inputs_first(seen):
            active.adopt(owner, caches)

    def adopt(self, owner: Owner, caches: Iterable[CacheManager]) -> None:
        """Let one more want this vertex alone."""
        self.import_caches(caches)
        if owner is self or owner in self.owners:
            return
        self.owners[owner] = None
        owner.owned[self] = None
        self._forget_failures()
        self._connect(tuple(owner.reports()))

    def _connect(self, reports: tuple[JobProgress, ...]) -> None:
        pending: list[ActiveVertex] = [self]
        seen: set[ActiveVertex] = set()
        while pending:
            active = pending.pop()
            if active not in seen:
                seen.add(active)
                pending.extend(active.owned)
                for report in reports:
                    active.progress.connect(report)

    def _forget_failures(self) -> None:
        """An error is final for those who waited for it; one who comes later tries again."""
        for node in self.nodes.values():
            if node.error is not None and not node.demands:
                node.error = None
                self.op.forget_errors()

    # -- caches ---------------------------------------------------------------------------

    @property
    def cache(self) -> CacheManager:
        """The solver's cache, with the imported ones of all builds behind it."""
        return self._cache

    def import_caches(self, caches: Iterable[CacheManager]) -> None:
        """Add imported caches to those that are asked."""
        main = self.solver.cache
        new = {c.id: c for c in caches if c.id != main.id and c.id not in self._imported}
        if new:
            self._imported.update(new)
            self._cache = CombinedCacheManager(main, tuple(self._imported.values()))

    # -- outputs --------------------------------------------------------------------------

    def node(self, index: int) -> EdgeNode:
        """Return the node of one output, which may have been merged into another."""
        node = self.nodes.get(index)
        if node is None:
            node = self.nodes[index] = EdgeNode(self, index)
            for number, (active, output) in enumerate(self.inputs):
                source = active.node(output)
                node.inputs.append(InputState(number, node, source))
                source.consumers[node] = None
        return node.resolved()

    async def close(self) -> None:
        """End all work, then release results and what ops wanted to have kept."""
        running = [w for node in self.nodes.values() for w in node.work.values()]
        for work in running:
            work.cancel()
        if running:
            await asyncio.wait([work.task for work in running])
        for node in self.nodes.values():
            if node.result is not None:
                await node.result.release()
                node.result = None
        await self.op.close()
        for callback in reversed(self._cleanups):
            try:
                await callback()
            except Exception:
                logger.exception("cleaning up after %s", self.vertex.name)


def _inputs_first(actives: set[ActiveVertex]) -> list[ActiveVertex]:
    """Return the vertices so that each comes after its inputs."""
    done: set[ActiveVertex] = set()
    order: list[ActiveVertex] = []
    for root in actives:
        stack: list[tuple[ActiveVertex, bool]] = [(root, False)]
        while stack:
            active, expanded = stack.pop()
            if expanded:
                order.append(active)
            elif active not in done:
                done.add(active)
                stack.append((active, True))
                stack.extend((d, False) for d, _ in active.inputs if d in actives)
    return order


class ActiveOp:
    """The op of an active vertex; whatever it computes is computed once for all outputs."""

    def __init__(self, active: ActiveVertex) -> None:
        self._active = active
        self._op: Op | None = None
        self._maps: list[SharedCall[tuple[CacheMap, bool]]] = []
        self._slow: dict[int, SharedCall[str]] = {}
        self._exec: SharedCall[list[Result]] = SharedCall(active.solver.tasks, "exec")

    def get(self) -> Op:
        """Return the op, resolving it on first use."""
        if self._op is None:
            self._op = self._active.solver.resolve_op(self._active.vertex)
        return self._op

    @property
    def resolved(self) -> Op | None:
        """The op, if anything was asked of it yet."""
        return self._op

    def cache_maps(self) -> list[CacheMap]:
        """Return the cache maps that are known."""
        return [call.value[0] for call in self._maps if call.value is not None]

    def forget_errors(self) -> None:
        """Let what failed be tried again."""
        self._exec.forget_error()
        for cache_map in self._maps:
            cache_map.forget_error()
        for slow in self._slow.values():
            slow.forget_error()

    async def cache_map(self, index: int) -> tuple[CacheMap, bool]:
        """Return the ``index``-th cache map and whether it is the last."""
        while len(self._maps) <= index:
            self._maps.append(SharedCall(self._active.solver.tasks, "cache map"))
        return await self._maps[index](lambda: self._load_cache_map(index))

    async def _load_cache_map(self, index: int) -> tuple[CacheMap, bool]:
        # Resolving a source takes time that users should see; other cache maps are instant.
        async with _Reported(self._active, quiet=bool(self._active.inputs)):
            return await self.get().cache_map(self._active, index)

    async def slow_key(self, index: int, dep: CacheMapDep, result: Result) -> str:
        """Prepare an input's result and return the digest of its content, if wanted."""
        call = self._slow.setdefault(
            index, SharedCall(self._active.solver.tasks, "content digest")
        )
        return await call(lambda: self._compute(dep, result.clone()))

    async def _compute(self, dep: CacheMapDep, result: Result) -> str:
        try:
            async with _Reported(self._active, quiet=True):
                if dep.preprocess is not None:
                    await dep.preprocess(result, self._active)
                return await dep.compute(result, self._active) if dep.compute else ""
        finally:
            await result.release()

    async def load(self, record: CacheRecord) -> Result:
        """Load a cached result. Any error is the caller's reason to do without it."""
        active = self._active
        origin = ""
        active.progress.started(cached=True)
        try:
            result = await active.cache.load(record)
            origin = active.origin = _origin(record, active.solver.cache)
        except Exception as error:
            active.load_failures.append(str(error))
            raise
        finally:
            active.progress.ended(cached=bool(origin), origin=origin)
        return result

    async def exec(self, inputs: list[Result]) -> list[Result]:
        """Run the op once and return its outputs, which stay owned by this object."""
        return await self._exec(lambda: self._run([r.clone() for r in inputs]))

    async def _run(self, inputs: list[Result]) -> list[Result]:
        try:
            slot = await self.get().acquire()
            try:
                async with _Reported(self._active):
                    return await self.get().exec(self._active, inputs)
            finally:
                if slot is not None:
                    slot.release()
        finally:
            for result in inputs:
                await result.release()

    @property
    def has_run(self) -> bool:
        """Whether the op has run, and succeeded."""
        return self._exec.value is not None

    def content_digest(self, index: int) -> str:
        """Return the digest of an input's content; empty if it was never computed."""
        call = self._slow.get(index)
        return (call.value or "") if call is not None else ""

    async def close(self) -> None:
        """Release the outputs."""
        for result in self._exec.value or ():
            await result.release()


def _origin(record: CacheRecord, main: CacheManager) -> str:
    """Return where a record is; managers of imports are named ``NAME`` or ``NAME#NUMBER``."""
    if record.manager is main:
        return LOCAL
    name, _, number = record.manager.id.rpartition("#")
    return IMPORTED + (name if name and number.isdecimal() else record.manager.id)


class _Reported:
    """Shows a stretch of work in the vertex's progress and names the vertex in its errors."""

    def __init__(self, active: ActiveVertex, *, quiet: bool = False) -> None:
        self._active = active
        self._quiet = quiet

    async def __aenter__(self) -> None:
        onbehalf.work_for(self._active.sessions)
        if not self._quiet:
            self._active.progress.started()

    async def __aexit__(self, _type: object, error: BaseException | None, _tb: object) -> None:
        progress = self._active.progress
        if error is None:
            if not self._quiet:
                progress.ended()
            return
        if isinstance(error, asyncio.CancelledError):
            if not self._quiet:
                progress.ended(error="context canceled")
            return
        named = attribute_error(error, self._active.vertex)
        if self._quiet:
            progress.started()
        progress.ended(error=str(named))
        if named is not error:
            raise named from error


def attribute_error(error: BaseException, vertex: Vertex) -> BoxwrightError:
    """Return the error with the digest of the vertex that failed, first one kept."""
    if not isinstance(error, BoxwrightError):
        detail = f"{vertex.name}: {type(error).__name__}: {error}"
        error = VertexInternalError("internal error in a build step", detail=detail)
    if not error.vertex:
        error.vertex = vertex.digest
        failure_of(error).vertex = vertex
    return error
