"""The composition root: everything below wired together, behind BuildKit's own messages.

An :class:`Engine` serves one state folder in one event loop. Fronts (the daemon's servicers, the
embedded client) call its methods with the messages of ``Control`` and ``LLBBridge``; no gRPC is
involved here. Life cycle: :meth:`Engine.open`, any number of calls, :meth:`Engine.close`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from boxwright.config.load import parse_duration_ns, parse_size
from boxwright.core.clock import Clock, SystemClock
from boxwright.core.digest import Digest
from boxwright.core.workers import to_worker
from boxwright.engine import worker
from boxwright.engine.builderfacts import builder_facts
from boxwright.engine.errors import DuplicateBuildError, EngineClosingError, UnknownBuildError
from boxwright.engine.history import History
from boxwright.engine.parts import Parts, open_parts
from boxwright.engine.settings import EngineSettings, gc_policies
from boxwright.engine.usage import PrunePolicy, Usage, to_message
from boxwright.errors import BoxwrightError, InvalidInputError
from boxwright.session.manager import SessionManager
from boxwright.wire.pb import control_pb2, explain_pb2, worker_pb2

if TYPE_CHECKING:
    from boxwright.engine.build import Build
    from boxwright.engine.gateway import GatewayBridge

_log = logging.getLogger(__name__)

_STATUS_WAIT_S = 6.0
_GATEWAY_WAIT_S = 3.0
_GC_DELAY_S = 1.0
# Between two collections, as many times what the last one took: with very many records builds
# that follow each other do not each pay for one. Never longer than BuildKit waits.
_GC_REST = 20
_GC_LONGEST_REST_S = 60.0
_STATUS_INTERVAL_S = 0.1


class Engine:
    """One state folder being served. Used from the event loop that opened it."""

    def __init__(
        self,
        settings: EngineSettings,
        parts: Parts,
        clock: Clock,
        builder_facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.settings = settings
        self.builder_facts = builder_facts or {}
        self.parts = parts
        self.clock = clock
        self.usage = Usage(
            parts.store,
            parts.snapshots,
            clock,
            is_idle=lambda: not self._builds and not self.history.is_writing,
            on_removed=parts.cache.release,
        )
        history = settings.config.history
        self.history = History(
            parts.store,
            clock,
            max_age_ns=parse_duration_ns(history.max_age),
            max_entries=history.max_entries,
        )
        self._builds: dict[str, Build] = {}
        self._build_added = asyncio.Event()
        self._closing = False
        self._gc_task: asyncio.Task[None] | None = None
        self._gc_rests_until_s = 0.0
        self._sync_task = asyncio.ensure_future(parts.snapshots.keep_synced())
        self._sync_task.add_done_callback(_report_end)
        self.log_quota_bytes = parse_size(
            settings.config.boxwright.log_quota, total_bytes=parts.disk_bytes
        )
        self._policies = gc_policies(settings.config.worker.oci, parts.disk_bytes)
        parts.store.room.evict = self._evict
        self.platforms = worker.platforms(settings.config.worker.oci.platforms)

    @classmethod
    async def open(cls, settings: EngineSettings, *, clock: Clock | None = None) -> Self:
        """Lock and recover the state folder and get ready to build.

        Raises:
            StoreLockedError: another process serves this folder.
            BoxwrightError: the folder or this machine can't be used; says why.
        """
        clock = clock or SystemClock()
        facts = await to_worker(builder_facts, Path(settings.config.provenance_env_dir))
        parts = await open_parts(settings, clock)
        return cls(settings, parts, clock, facts)

    @property
    def sessions(self) -> SessionManager:
        """The clients that are connected."""
        return self.parts.sessions

    @property
    def active_builds(self) -> int:
        """How many builds are running."""
        return len(self._builds)

    async def close(self, *, grace_s: float = 0.0) -> None:
        """Refuse new builds, wait up to ``grace_s`` for running ones, end the rest, close all."""
        self._closing = True
        waiting = [asyncio.ensure_future(b.closed.wait()) for b in self._builds.values()]
        if waiting and grace_s > 0:
            await asyncio.wait(waiting, timeout=grace_s)
        for task in waiting:
            task.cancel()
        background = [self._sync_task]
        if self._gc_task is not None:
            background.append(self._gc_task)
        for running in background:
            running.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        for build in list(self._builds.values()):
            build.cancel()
        for build in list(self._builds.values()):
            await build.wait_closed()
        await self.history.written()
        await self.parts.close()

    # --- builds ------------------------------------------------------------------------------

    async def solve(self, request: control_pb2.SolveRequest) -> control_pb2.SolveResponse:
        """Run one build to its end (``Control.Solve``).

        Raises:
            EngineClosingError: the engine is shutting down.
            DuplicateBuildError: a build of this ref runs already.
            BoxwrightError: of the step, frontend or export that failed.
        """
        if not request.Ref:
            raise InvalidInputError("a build needs a ref")
        await self.history.written(request.Ref)
        if self._closing:  # by now: closing waits for records, too, and then for nobody else
            raise EngineClosingError
        if request.Ref in self._builds:
            raise DuplicateBuildError(request.Ref)
        # Not at start: builds need much that a first answer does not (engine.preload).
        from boxwright.engine.build import Build
        from boxwright.engine.solve import SolveRun

        build = Build(request, self.clock)
        self._builds[request.Ref] = build
        self._build_added.set()
        self._build_added = asyncio.Event()
        try:
            return await SolveRun(self, build).run()
        finally:
            del self._builds[request.Ref]
            build.closed.set()
            self.history.ended(request.Ref)
            self._schedule_gc()

    async def _build(self, ref: str, timeout_s: float) -> Build:
        try:
            async with asyncio.timeout(timeout_s):
                while ref not in self._builds:
                    await self._build_added.wait()
        except TimeoutError:
            raise UnknownBuildError(ref) from None
        return self._builds[ref]

    async def status(
        self, request: control_pb2.StatusRequest
    ) -> AsyncIterator[control_pb2.StatusResponse]:
        """Yield a build's progress from its beginning (``Control.Status``).

        Raises:
            UnknownBuildError: no build of this ref runs, starts soon, or is remembered.
        """
        from boxwright.engine.recorder import read_record
        from boxwright.engine.status import to_responses

        record = await self.history.get(request.Ref)
        if record is not None and record.logs.digest:
            path = self.parts.store.blobs.path(Digest(record.logs.digest))
            messages = read_record(path)
            while (message := await to_worker(next, messages, None)) is not None:
                yield message
            return
        build = await self._build(request.Ref, _STATUS_WAIT_S)
        async for batch in build.stream.read():
            for message in to_responses(batch):
                yield message
            # Batches save messages, but the end of a build is told at once.
            await build.stream.wait_closed(_STATUS_INTERVAL_S)

    async def gateway(self, build_id: str) -> GatewayBridge:
        """Return the gateway of a running build, which may register a little late.

        Raises:
            UnknownBuildError: there is none.
        """
        build = await self._build(build_id, _GATEWAY_WAIT_S)
        return await build.wait_gateway(_GATEWAY_WAIT_S)

    # --- the rest of Control -----------------------------------------------------------------

    def worker_record(self) -> worker_pb2.WorkerRecord:
        """Return the one worker's record."""
        config = self.settings.config.worker.oci
        labels = worker.labels(
            config.labels,
            snapshotter=self.parts.snapshotter_name,
            network=self.parts.executor.network_mode,
        )
        policies = [
            worker_pb2.GCPolicy(
                all=rule.all,
                keepDuration=rule.keep_duration_ns,
                filters=rule.filters,
                reservedSpace=rule.reserved_space,
                maxUsedSpace=rule.max_used_space,
                minFreeSpace=rule.min_free_space,
            )
            for rule in self._policies
        ]
        return worker.record(
            self.parts.worker_id,
            labels,
            self.platforms,
            policies,
            self.parts.executor.devices.devices(),
        )

    async def list_workers(
        self, request: control_pb2.ListWorkersRequest
    ) -> control_pb2.ListWorkersResponse:
        """Return the worker, if it passes the filters."""
        record = self.worker_record()
        found = [record] if worker.matches(record, list(request.filter)) else []
        return control_pb2.ListWorkersResponse(record=found)

    async def info(self, _request: control_pb2.InfoRequest) -> control_pb2.InfoResponse:
        """Return the version."""
        return control_pb2.InfoResponse(buildkitVersion=worker.version_message())

    async def disk_usage(
        self, request: control_pb2.DiskUsageRequest
    ) -> control_pb2.DiskUsageResponse:
        """Return the records that take space."""
        await self.history.written()
        return await self.usage.disk_usage(request)

    async def prune(
        self, request: control_pb2.PruneRequest
    ) -> AsyncIterator[control_pb2.UsageRecord]:
        """Remove what the request lets go and yield it."""
        policy = PrunePolicy(
            all=request.all,
            filters=tuple(request.filter),
            keep_duration_ns=request.keepDuration,
            reserved_space=request.reservedSpace,
            max_used_space=request.maxUsedSpace,
            min_free_space=request.minFreeSpace,
        )
        await self.history.written()  # records tell of layers
        async for record in self.usage.prune(policy):
            yield to_message(record)

    def listen_history(
        self, request: control_pb2.BuildHistoryRequest
    ) -> AsyncIterator[control_pb2.BuildHistoryEvent]:
        """Yield running, finished and coming builds."""
        return self.history.listen(request)

    async def update_history(
        self, request: control_pb2.UpdateBuildHistoryRequest
    ) -> control_pb2.UpdateBuildHistoryResponse:
        """Pin, unpin or delete a finished build."""
        await self.history.update(request)
        return control_pb2.UpdateBuildHistoryResponse()

    async def why(self, request: explain_pb2.WhyRequest) -> explain_pb2.WhyResponse:
        """Return why steps of a finished build ran.

        Raises:
            UnknownBuildError: no such build is remembered.
            NotFoundError: it has no such step.
        """
        from boxwright.engine.explain import Explainer

        await self.history.written()
        return await to_worker(Explainer(self.parts.keys.records).why, request)

    async def space(self, _request: explain_pb2.SpaceRequest) -> explain_pb2.SpaceResponse:
        """Return what collection goes by besides the records."""
        store = self.parts.store
        blobs = await to_worker(store.usage)
        free = await to_worker(store.available_bytes)
        return explain_pb2.SpaceResponse(free=free, blobs=blobs.blobs)

    # --- garbage collection ------------------------------------------------------------------

    def _schedule_gc(self) -> None:
        if self._closing or not self.settings.config.worker.oci.gc:
            return
        if self._gc_task is None or self._gc_task.done():
            self._gc_task = asyncio.ensure_future(self._collect())

    async def _evict(self, wanted: int) -> None:
        """Make room for something that is being written."""
        if self.settings.config.worker.oci.gc:
            await self.usage.evict(wanted, self._policies)

    async def _collect(self) -> None:
        await asyncio.sleep(max(_GC_DELAY_S, self._gc_rests_until_s - time.monotonic()))
        started = time.monotonic()
        with contextlib.suppress(BoxwrightError):
            async for record in self.usage.collect(self._policies):
                _log.info("removed %s (%s bytes)", record.id, record.size_bytes)
        ended = time.monotonic()
        rest_s = min((ended - started) * _GC_REST, _GC_LONGEST_REST_S)
        self._gc_rests_until_s = ended + rest_s


def _report_end(task: asyncio.Task[None]) -> None:
    """Log why a task that runs as long as the engine ended before it."""
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("snapshots are no longer synced", exc_info=error)
