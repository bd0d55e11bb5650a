"""The solver: one graph of everything that is being built, wanted by any number of jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any

from boxwright.core.clock import Clock, SystemClock
from boxwright.core.digest import Digest
from boxwright.errors import InvalidInputError, NotFoundError
from boxwright.llb.graph import Edge, Vertex
from boxwright.progress.stream import ProgressStream
from boxwright.solver.active import ActiveVertex, Owner
from boxwright.solver.cachemanager import LocalCacheManager, new_key_id
from boxwright.solver.memorystorage import MemoryCacheStorage, MemoryResultStorage
from boxwright.solver.progress import JobProgress
from boxwright.solver.scheduler import Scheduler
from boxwright.solver.types import Admit, CachedResult, CacheManager, Op, Watch
from boxwright.solver.work import TaskSet

ResolveOp = Callable[[Vertex], Op]


class Job(Owner):
    """One build's claim on vertices. Ends with :meth:`discard`."""

    def __init__(
        self, solver: Solver, job_id: str, session_id: str, stream: ProgressStream
    ) -> None:
        super().__init__()
        self.id = job_id
        self.session_id = session_id
        self.progress = JobProgress(stream, solver.clock)
        self.admit: Admit | None = None
        """Turns definitions that steps of this job want solved into graphs; checks them."""
        self.watch: Watch | None = None
        """Told of results; must be quick, and must not raise."""
        self.values: dict[str, Any] = {}
        """What the engine and the ops want to remember with the job."""
        self._solver = solver
        self._cleanups: list[Callable[[], Awaitable[None]]] = []
        self._discarded = False

    @property
    def stream(self) -> ProgressStream:
        """The job's progress events."""
        return self.progress.stream

    def reports(self) -> Iterator[JobProgress]:
        """Return the job's progress."""
        yield self.progress

    def session_ids(self, seen: set[Owner]) -> Iterator[str]:
        """Yield the job's session, if it has one."""
        if self not in seen and self.session_id:
            seen.add(self)
            yield self.session_id

    def remembered(self, seen: set[Owner]) -> Iterator[dict[str, Any]]:
        """Yield the job's values."""
        if self not in seen:
            seen.add(self)
            yield self.values

    def admissions(self, seen: set[Owner]) -> Iterator[Admit]:
        """Yield the job's check of definitions, if it has one."""
        if self not in seen and self.admit is not None:
            seen.add(self)
            yield self.admit

    def watches(self, seen: set[Owner]) -> Iterator[Watch]:
        """Yield the job's own watch, if it has one."""
        if self not in seen and self.watch is not None:
            seen.add(self)
            yield self.watch

    async def build(self, edge: Edge, *, caches: Sequence[CacheManager] = ()) -> CachedResult:
        """Return the result of an edge; the caller releases it.

        Args:
            edge: What to build. Its vertices stay claimed until the job is discarded.
            caches: Imported caches to ask besides the solver's own.

        Raises:
            BoxwrightError: a step failed; ``error.vertex`` says which.
        """
        if self._discarded:
            raise InvalidInputError("the build has ended", detail=self.id)
        return await self._solver.build(edge, self, caches)

    def operations(self, edge: Edge) -> Iterator[tuple[Vertex, Op | None]]:
        """Yield the vertices of a graph that the job has built, each once, as they were run.

        The op is None where nothing was ever asked of it.
        """
        yield from self._solver.operations(edge.vertex)

    def on_cleanup(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Call back when the job is discarded."""
        self._cleanups.append(callback)

    async def discard(self) -> None:
        """Give up all claims; work that nobody else wants is cancelled and waited for."""
        if self._discarded:
            return
        self._discarded = True
        await self._solver.end_job(self)
        for callback in reversed(self._cleanups):
            await callback()

    def finish_progress(self) -> None:
        """End what is still shown as running, and the stream."""
        self.progress.finish()
        self.stream.close()


class Solver:
    """Solves graphs for jobs: each distinct vertex runs once, however many want it."""

    def __init__(
        self,
        resolve_op: ResolveOp,
        cache: LocalCacheManager | None = None,
        *,
        clock: Clock | None = None,
    ) -> None:
        self.resolve_op = resolve_op
        self.cache = cache or memory_cache()
        self.clock = clock or SystemClock()
        self.tasks = TaskSet()
        self._scheduler = Scheduler(self.tasks, self.clock)
        self._actives: dict[Digest, ActiveVertex] = {}
        self._jobs: dict[str, Job] = {}
        self._job_added = asyncio.Event()

    @property
    def active_vertices(self) -> tuple[ActiveVertex, ...]:
        """All vertices that some job wants."""
        return tuple(self._actives.values())

    @property
    def indexed_keys(self) -> int:
        """The number of keys of live edges; none when nothing is being solved."""
        return self._scheduler.indexed_keys

    def new_job(
        self, job_id: str, *, session_id: str = "", stream: ProgressStream | None = None
    ) -> Job:
        """Start a job.

        Raises:
            InvalidInputError: there is one with this id.
        """
        if job_id in self._jobs:
            raise InvalidInputError("a build with this id is running", detail=repr(job_id))
        job = Job(self, job_id, session_id, stream or ProgressStream())
        self._jobs[job_id] = job
        self._job_added.set()
        self._job_added = asyncio.Event()
        return job

    async def job(self, job_id: str, *, timeout_s: float = 6.0) -> Job:
        """Return a job, which may arrive a little after those who ask for it.

        Raises:
            NotFoundError: it did not arrive in time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while job_id not in self._jobs:
                    await self._job_added.wait()
        except TimeoutError:
            raise NotFoundError("no such build", detail=repr(job_id)) from None
        return self._jobs[job_id]

    async def build(
        self, edge: Edge, owner: Owner, caches: Iterable[CacheManager]
    ) -> CachedResult:
        """Return the result of an edge, claimed by ``owner``; the caller releases it."""
        active = self._load(edge.vertex)
        active.add_owner(owner, tuple(caches))
        return await self._scheduler.wait_for(active.node(edge.index))

    def operations(self, root: Vertex) -> Iterator[tuple[Vertex, Op | None]]:
        """Yield the active vertices from ``root`` down, each once, with their ops."""
        found, _ = self._find(root)
        pending = [found] if found is not None else []
        seen: set[ActiveVertex] = set()
        while pending:
            active = pending.pop()
            if active in seen:
                continue
            seen.add(active)
            yield active.vertex, active.op.resolved
            pending.extend(dep for dep, _ in reversed(active.inputs))

    async def end_job(self, job: Job) -> None:
        """Drop a job's claims and wait until what only it wanted has ended."""
        self._jobs.pop(job.id, None)
        closing = self._disown(job)
        if closing:
            task = self.tasks.start(_close_all(closing), f"discard {job.id}")
            await asyncio.shield(task)

    async def close(self) -> None:
        """End everything."""
        for job in list(self._jobs.values()):
            await job.discard()
        await self.tasks.close()

    def _disown(self, owner: Owner) -> list[ActiveVertex]:
        """Take an owner's claims away; return the vertices that nobody wants any more."""
        closing: list[ActiveVertex] = []
        pending: list[Owner] = [owner]
        while pending:
            current = pending.pop()
            lost = tuple(current.reports())
            for active in current.owned:
                active.owners.pop(current, None)
                kept = set(active.reports())
                for report in lost:
                    if report not in kept:
                        active.progress.disconnect(report)
                if not active.owners:
                    closing.append(active)
                    pending.append(active)
                    del self._actives[active.digest]
            current.owned.clear()
        self._scheduler.forget(node for active in closing for node in active.nodes.values())
        return closing

    def _load(self, root: Vertex) -> ActiveVertex:
        """Return the active vertex for ``root``, taking in what is new of its graph."""
        loaded: dict[Vertex, ActiveVertex] = {}
        stack: list[tuple[Vertex, bool]] = [(root, False)]
        while stack:
            vertex, expanded = stack.pop()
            if vertex in loaded:
                continue
            found, digest = self._find(vertex)
            if found is not None:
                loaded[vertex] = found
            elif not expanded:
                stack.append((vertex, True))
                stack.extend((e.vertex, False) for e in reversed(vertex.inputs))
            else:
                inputs = tuple((loaded[e.vertex], e.index) for e in vertex.inputs)
                active = ActiveVertex(self, digest, vertex, inputs)
                self._actives[digest] = loaded[vertex] = active
        return loaded[root]

    def _find(self, vertex: Vertex) -> tuple[ActiveVertex | None, Digest]:
        """Return the active vertex that serves for ``vertex``, else the digest for a new one.

        One that must run also serves those who would take it from the cache, but not the
        other way round: then both exist side by side.
        """
        running = Digest.of(f"{vertex.digest}-ignorecache".encode())
        found = self._actives.get(running)
        if found is not None:
            return found, running
        found = self._actives.get(vertex.digest)
        if found is None:
            return None, vertex.digest
        if vertex.options.ignore_cache and not found.vertex.options.ignore_cache:
            return None, running
        return found, vertex.digest


async def _close_all(actives: list[ActiveVertex]) -> None:
    for active in actives:
        await active.close()


def memory_cache() -> LocalCacheManager:
    """Return a cache that lives as long as the process."""
    return LocalCacheManager(new_key_id(), MemoryCacheStorage(), MemoryResultStorage())
