"""One Solve call: its job, its progress, its frontend, its exports and its record."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from boxwright.core.clock import Clock
from boxwright.core.dataclass import dataclass, field
from boxwright.engine.bridge import BuildBridge, SolveSpec
from boxwright.engine.errors import UnknownBuildError
from boxwright.engine.gateway import GatewayBridge
from boxwright.engine.recorder import StatusRecorder
from boxwright.engine.results import FrontendResult
from boxwright.progress.events import VertexEvent
from boxwright.progress.stream import ProgressStream
from boxwright.remotecache.attributes import CacheEntry
from boxwright.snapshots.refs import ImmutableRef
from boxwright.wire.pb import control_pb2

_log = logging.getLogger(__name__)


@dataclass
class Build:
    """The state of one running build; it ends when its Solve call does."""

    request: control_pb2.SolveRequest
    clock: Clock
    stream: ProgressStream = field(default_factory=ProgressStream)
    gateway: GatewayBridge | None = None
    recorder: StatusRecorder | None = None
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    _recording: asyncio.Task[None] | None = None
    _task: asyncio.Task[Any] | None = field(default_factory=asyncio.current_task)
    _gateway_ready: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def ref(self) -> str:
        """The client's name for this build."""
        return self.request.Ref

    @property
    def client_runs_frontend(self) -> bool:
        """Whether the client itself is the frontend, through the gateway."""
        return not self.request.Frontend and not self.request.HasField("Definition")

    def cancel(self) -> None:
        """Cancel the Solve call that runs this build."""
        if self._task is not None:
            self._task.cancel()

    async def wait_closed(self) -> None:
        """Wait until the Solve call has ended."""
        await self.closed.wait()

    def set_gateway(self, gateway: GatewayBridge) -> None:
        """Let frontend calls in."""
        self.gateway = gateway
        self._gateway_ready.set()

    async def wait_gateway(self, timeout_s: float) -> GatewayBridge:
        """Return the gateway once it is there.

        Raises:
            UnknownBuildError: this build has none.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._gateway_ready.wait()
        except TimeoutError:
            raise UnknownBuildError(self.ref) from None
        assert self.gateway is not None
        return self.gateway

    def start_recording(self, recorder: StatusRecorder) -> None:
        """Write every event to ``recorder`` until the stream is closed."""
        self.recorder = recorder
        self._recording = asyncio.ensure_future(self._record(recorder))

    async def _record(self, recorder: StatusRecorder) -> None:
        async for batch in self.stream.read():
            recorder.write(batch)

    async def finish_recording(self) -> None:
        """Close the stream and wait until everything is written."""
        self.stream.close()
        if self._recording is not None:
            await self._recording

    async def run_frontend(self, bridge: BuildBridge) -> FrontendResult:
        """Return the result of the definition, the frontend, or the client's own frontend."""
        if self.gateway is not None:
            return await self.gateway.outcome()
        request = self.request
        return await bridge.solve(
            SolveSpec(
                definition=request.Definition if request.HasField("Definition") else None,
                frontend=request.Frontend,
                options=dict(request.FrontendAttrs),
                inputs=dict(request.FrontendInputs),
                cache_imports=[
                    CacheEntry(item.Type, dict(item.Attrs)) for item in request.Cache.Imports
                ],
            )
        )

    def step_counts(self) -> tuple[int, int, int]:
        """Return how many vertices there are, how many ended, how many came from the cache."""
        vertices: tuple[VertexEvent, ...] = self.stream.vertices
        ended = [v for v in vertices if v.completed_ns is not None]
        return len(vertices), len(ended), sum(1 for v in ended if v.cached)


async def evaluate(result: FrontendResult) -> None:
    """Solve all refs of a result at the same time; the first failure ends the others.

    Raises:
        BoxwrightError: of the first step that failed.
    """
    refs = result.all_refs()
    tasks = [asyncio.ensure_future(ref.result()) for ref in refs]
    try:
        for task in asyncio.as_completed(tasks):
            await task
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def snapshots_of(
    result: FrontendResult,
) -> tuple[ImmutableRef | None, dict[str, ImmutableRef | None]]:
    """Return the snapshots behind a result that has been evaluated."""
    single = await result.ref.snapshot() if result.ref else None
    many = {
        key: (await ref.snapshot() if ref else None) for key, ref in (result.refs or {}).items()
    }
    return single, many
