"""Drives edges: spreads knowledge upwards, demand downwards, and keeps the right work running.

After every event (an edge is asked for, work ends, a waiter leaves) the scheduler *settles*:
it lets edges draw their conclusions until nothing changes, then decides anew what each edge
wants of its inputs, and only then starts and cancels tasks. Settling never waits, so nothing
can happen in between, and work that a hit makes needless is not even started.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Iterable

from boxwright.core.clock import Clock
from boxwright.errors import BoxwrightError, Code
from boxwright.solver.active import ActiveVertex, attribute_error
from boxwright.solver.cachekey import CacheKey, ExportableKey
from boxwright.solver.edge import EdgeNode, Level
from boxwright.solver.exporter import CacheExporter, KeyExporter, MergedExporter
from boxwright.solver.failure import failure_of
from boxwright.solver.index import EdgeIndex
from boxwright.solver.plan import CACHE_MAP, EXEC, LOAD, SLOW, Plan, is_stuck, make_plan
from boxwright.solver.types import CachedResult, Result
from boxwright.solver.work import TaskSet, Work

logger = logging.getLogger(__name__)
_CACHE_KEY_FAILED = "failed to compute cache key: "
_CACHE_MAP_FAILED = "failed to load cache key: "


class SolverStalledError(BoxwrightError):
    """The solver found nothing to do although a result is wanted: a bug in its plan."""


class OutputMissingError(BoxwrightError):
    """An op returned fewer outputs than its consumers refer to."""

    code = Code.INVALID


class Waiter:
    """A build that waits for one edge."""

    def __init__(self) -> None:
        self.future: asyncio.Future[CachedResult] = asyncio.get_running_loop().create_future()

    async def drop(self) -> None:
        """Release a result that came too late."""
        future = self.future
        if future.done() and not future.cancelled() and future.exception() is None:
            await future.result().release()

    def resolve(self, node: EdgeNode) -> None:
        """Hand over the result, or the error."""
        if self.future.done():
            return
        if node.result is not None:
            self.future.set_result(node.result.clone())
        elif node.error is not None:
            self.future.set_exception(node.error)


class Scheduler:
    """Settles the graph of all edges that are being solved. Used from the event loop only."""

    def __init__(self, tasks: TaskSet, clock: Clock) -> None:
        self._tasks = tasks
        self._clock = clock
        self._index = EdgeIndex()
        self._to_observe: dict[EdgeNode, None] = {}
        self._to_plan: dict[EdgeNode, None] = {}
        self._settling = False
        self._settle_planned = False

    @property
    def indexed_keys(self) -> int:
        """The number of keys of live edges; none when nothing is being solved."""
        return len(self._index)

    async def wait_for(self, node: EdgeNode) -> CachedResult:
        """Want an edge's result until it is there; the caller releases it."""
        waiter = Waiter()
        node = node.resolved()
        node.demands[waiter] = Level.COMPLETE
        self._touch_inputs(node)
        try:
            self.settle()
            return await waiter.future
        except BaseException:
            await waiter.drop()
            raise
        finally:
            node = node.resolved()
            node.demands.pop(waiter, None)
            self._to_plan[node] = None
            self.settle()

    def forget(self, nodes: Iterable[EdgeNode]) -> None:
        """Take edges out of the graph that nobody wants any more."""
        for node in nodes:
            node.closed = True
            self._index.release(node)
            self._to_observe.pop(node, None)
            for inp in node.inputs:
                source = inp.node
                source.consumers.pop(node, None)
                if source.demands.pop(inp, None) is not None:
                    self._to_plan[source] = None
        self.settle()

    # -- settling -------------------------------------------------------------------------

    def settle(self) -> None:
        """Bring knowledge, demand and running work in line with each other."""
        if self._settling:
            return
        self._settling = True
        plans: dict[EdgeNode, Plan] = {}
        try:
            while self._to_observe or self._to_plan:
                while self._to_observe:
                    self._observe(_pop(self._to_observe))
                while self._to_plan and not self._to_observe:
                    node = _pop(self._to_plan)
                    plans[node] = self._plan(node)
        finally:
            self._settling = False
        for node, plan in plans.items():
            self._adjust_work(node, plan)

    def _settle_soon(self) -> None:
        """Settle once for all that ends in this turn of the loop."""
        if not self._settle_planned:
            self._settle_planned = True
            asyncio.get_running_loop().call_soon(self._settle_as_planned)

    def _settle_as_planned(self) -> None:
        self._settle_planned = False
        self.settle()

    def _touch_inputs(self, root: EdgeNode) -> None:
        """Have a new part of the graph looked at, inputs before consumers."""
        stack, seen = [root], set[EdgeNode]()
        order: list[EdgeNode] = []
        while stack:
            node = stack.pop()
            if node not in seen:
                seen.add(node)
                order.append(node)
                if not node.finished:
                    stack.extend(inp.node for inp in node.inputs)
        for node in reversed(order):
            self._to_observe[node] = None

    def _observe(self, node: EdgeNode) -> None:
        self._to_plan[node] = None
        try:
            changed = node.observe()
            if node.index_stale and not node.finished:
                node.index_stale = False
                self._look_for_twin(node)
        except Exception as error:  # noqa: BLE001 - a bug; those who wait must hear of it
            self._fail(node, attribute_error(error, node.active.vertex))
            return
        if changed or node.result or node.error:
            self._announce(node)

    def _learned(self, node: EdgeNode) -> None:
        """Have an edge draw its conclusions before anybody plans with what it knows now."""
        self._to_observe[node] = None
        self._announce(node)

    def _announce(self, node: EdgeNode) -> None:
        self._to_plan[node] = None
        for consumer in node.consumers:
            if not consumer.finished:
                self._to_observe[consumer] = None
        if node.result is not None or node.error is not None:
            for waiter in [w for w in node.demands if isinstance(w, Waiter)]:
                waiter.resolve(node)

    def _plan(self, node: EdgeNode) -> Plan:
        plan = make_plan(node)
        if is_stuck(node, plan):
            node.forced = True
            plan = make_plan(node)
            if is_stuck(node, plan):
                plan.error = SolverStalledError(
                    "the solver has stalled", detail=f"{node.active.vertex.name} {node.level!r}"
                )
        if plan.error is not None:
            self._fail(node, plan.error)
            plan = Plan(inputs=[Level.UNKNOWN] * len(node.inputs))
        for inp, wanted in zip(node.inputs, plan.inputs, strict=True):
            source = inp.node
            inp.demand = wanted
            if source.demands.get(inp, Level.UNKNOWN) != wanted:
                if wanted == Level.UNKNOWN:
                    del source.demands[inp]
                else:
                    source.demands[inp] = wanted
                self._to_plan[source] = None
        return plan

    def _fail(self, node: EdgeNode, error: BaseException) -> None:
        node.error = error
        self._index.release(node)
        self._announce(node)

    # -- merging --------------------------------------------------------------------------

    def _look_for_twin(self, node: EdgeNode) -> None:
        """Let one edge do the work of two that have the same key."""
        key = node.index_key()
        other = self._index.load_or_store(key, node) if key is not None else None
        if other is None or other.error is not None:
            return
        if _depends(node.active, other.active) or _depends(other.active, node.active):
            return
        source, target = node, other
        if _stands_in(target.active, source.active):
            source, target = target, source
        busy = {LOAD, EXEC} & source.work.keys()
        if busy or source.finished or (source.ignores_cache and not target.ignores_cache):
            return
        self._merge(source, target)

    def _merge(self, source: EdgeNode, target: EdgeNode) -> None:
        for inp in source.inputs:
            target.extra_keys.extend((inp.index, key) for key in inp.selected_keys())
        source.forward = target
        self._index.release(source)
        target.demands.update(source.demands)
        source.demands.clear()
        target.consumers.update(source.consumers)
        source.consumers.clear()
        for owner in list(source.active.owners):
            target.active.add_owner(owner)
        self._touch_inputs(target)
        self._to_plan[source] = None
        self._announce(target)

    # -- work -----------------------------------------------------------------------------

    def _adjust_work(self, node: EdgeNode, plan: Plan) -> None:
        for kind, work in node.work.items():
            if kind not in plan.work:
                work.cancel()
        for kind in plan.work - node.work.keys():
            name = f"{kind} {node.active.vertex.name}"
            work = node.work[kind] = Work(self._tasks.start(self._work(node, kind), name))
            # Not in the task itself: one that is cancelled at once never gets to run.
            work.task.add_done_callback(functools.partial(self._work_ended, node, kind))

    def _work_ended(self, node: EdgeNode, kind: str, _task: asyncio.Task[None]) -> None:
        del node.work[kind]
        self._to_observe[node] = None
        self._settle_soon()

    async def _work(self, node: EdgeNode, kind: str) -> None:
        work = node.work[kind]
        try:
            if kind == CACHE_MAP:
                await self._get_cache_map(node)
            elif kind == LOAD:
                await self._load(node)
            elif kind == EXEC:
                await self._exec(node)
            else:
                await self._get_slow_key(node, int(kind.removeprefix(SLOW)))
        except asyncio.CancelledError:
            if not work.cancelled:
                raise
        except Exception as error:  # noqa: BLE001 - it belongs to those who wait for the edge
            if not work.cancelled and not node.finished:
                self._fail(node, error)

    async def _get_cache_map(self, node: EdgeNode) -> None:
        index = len(node.cache_maps_seen)
        try:
            cache_map, done = await node.active.op.cache_map(index)
        except BoxwrightError as error:
            if not error.brief.startswith(_CACHE_MAP_FAILED):  # it may be shared by several edges
                error.brief = f"{_CACHE_MAP_FAILED}{error.brief}"
            raise
        if not node.finished:
            node.add_cache_map(cache_map, done=done)
            self._learned(node)

    async def _get_slow_key(self, node: EdgeNode, index: int) -> None:
        inp = node.inputs[index]
        result = inp.node.result
        assert result is not None
        try:
            digest = await node.active.op.slow_key(index, inp.dep, result.result)
        except BoxwrightError as error:
            if not error.brief.startswith(_CACHE_KEY_FAILED):  # it may be shared by several edges
                error.brief = f"{_CACHE_KEY_FAILED}{error.brief}"
            failure = failure_of(error)
            if failure.slow_input is None:
                content = result.result.clone()
                node.active.on_cleanup(content.release)
                failure.slow_input, failure.inputs = index, (content,)
            raise
        if not node.finished:
            node.add_slow_key(inp, digest)
            self._learned(node)

    async def _load(self, node: EdgeNode) -> None:
        """Load the best record that can be loaded; if none can, the edge has no records."""
        while node.records:
            record = min(node.records.values(), key=lambda r: (-r.created_at, -r.priority))
            try:
                result = await node.active.op.load(record)
            except Exception as error:  # noqa: BLE001 - a lost or corrupt record is a miss
                logger.info("cached result %s can't be used: %s", record.id, error)
                node.failed_records.add(record.id)
                node.records.pop(record.id, None)
                continue
            exporter = KeyExporter(record.key, record=record, node=node)
            keys = (ExportableKey(record.key, exporter),)
            await self._complete(node, result, keys, from_cache=True)
            return

    async def _exec(self, node: EdgeNode) -> None:
        if node.refresh():
            self._learned(node)
            return
        inputs = [i.node.result.result for i in node.inputs if i.node.result is not None]
        keys = node.commit_keys()
        outputs = await node.active.op.exec(inputs)
        if node.index >= len(outputs):
            raise OutputMissingError(
                f"invalid response from exec need {node.index} index "
                f"but {len(outputs)} results received"
            )
        result = outputs[node.index].clone()
        try:
            exporters = [await self._save(node, key, result) for key in keys]
            exporters.extend(k.exporter for k in node.active.sub_keys)
        except BaseException:
            await result.release()
            raise
        merged = MergedExporter(exporters)
        exportable = tuple(ExportableKey(key, merged) for key in keys)
        await self._complete(node, result, exportable, from_cache=False)

    async def _save(self, node: EdgeNode, key: CacheKey, result: Result) -> CacheExporter:
        """Save a result; a cache that can't take it costs a later build time, not this one."""
        try:
            saved = await node.cache.save(key, result, self._clock.now_ns())
        except Exception:
            logger.warning("can't cache %s", node.active.vertex.name, exc_info=True)
            return KeyExporter(key, node=node)
        if isinstance(saved.exporter, KeyExporter):
            saved.exporter.node = node
        return saved.exporter

    async def _complete(
        self, node: EdgeNode, result: Result, keys: tuple[ExportableKey, ...], *, from_cache: bool
    ) -> None:
        if node.finished:
            await result.release()
            return
        node.complete(CachedResult(result, keys), from_cache=from_cache)
        node.active.completed(node.index, result)
        self._announce(node)


def _pop(queue: dict[EdgeNode, None]) -> EdgeNode:
    node = next(iter(queue))
    del queue[node]
    return node


def _depends(active: ActiveVertex, other: ActiveVertex) -> bool:
    """Return whether ``active`` stands on ``other``, by inputs or by graphs that it solves."""
    pending, seen = [active], set[ActiveVertex]()
    while pending:
        current = pending.pop()
        if current is other:
            return True
        if current not in seen:
            seen.add(current)
            pending.extend(dep for dep, _ in current.inputs)
            pending.extend(current.owned)
    return False


def _stands_in(active: ActiveVertex, other: ActiveVertex) -> bool:
    """Return whether an output of ``other`` already does the work of one of ``active``.

    Merging the other way round as well would make both ops run.
    """
    pending, seen = [active], set[ActiveVertex]()
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        for node in current.nodes.values():
            if node.forward is not None:
                if node.forward.active is other:
                    return True
                pending.append(node.forward.active)
    return False
