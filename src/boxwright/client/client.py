"""The client of an engine: builds, and what a daemon tells about itself.

Example::

    transport = await GrpcTransport.open("unix:///run/buildkit/buildkitd.sock")
    client = Client(transport)
    request = BuildRequest(
        frontend="dockerfile.v0",
        locals={"context": Path("."), "dockerfile": Path(".")},
        exports=(Export("oci", path=Path("out.tar")),),
    )
    result = await client.build(request, on_progress=print)
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterable
from types import TracebackType
from typing import Self

from boxwright.client.events import from_response
from boxwright.client.failedstep import failed_step
from boxwright.client.localcache import CacheWriters
from boxwright.client.request import BuildRequest, BuildResult
from boxwright.client.transport import Transport
from boxwright.core.workers import to_worker
from boxwright.errors import BoxwrightError
from boxwright.progress.events import Event
from boxwright.wire.pb import control_pb2, explain_pb2, gateway_pb2, worker_pb2
from boxwright.wire.status import to_pb, to_rpc_error

_STATUS_QUIET_S = 5.0
_GATEWAY_GRACE_S = 5.0
_SUBREQUEST_CAP = "moby.buildkit.frontend.subrequests"

ProgressCallback = Callable[[list[Event]], None]
"""Takes batches of progress events as they come; must not block."""


class Client:
    """Calls one engine over a transport, which it owns."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Give the transport up."""
        await self._transport.close()

    async def build(
        self, request: BuildRequest, on_progress: ProgressCallback | None = None
    ) -> BuildResult:
        """Run a build to its end; cancelling the call cancels the build.

        Args:
            request: What to build.
            on_progress: Told of the progress.

        Raises:
            BoxwrightError: the build failed, or the daemon or something of the client's own
                (a folder, a secret, an output) is not usable.
        """
        services = request.services()
        _add_cache_imports(request)
        message = request.message(services.id)
        with CacheWriters(request.cache_to) as writers:
            await writers.wait()
            async with self._transport.session(services):
                progress = _Progress(self._transport, request.ref, on_progress)
                following = asyncio.ensure_future(progress.follow())
                try:
                    if request.via_gateway:
                        return await self._build_via_gateway(request, message)
                    response = await self._transport.solve(message)
                    answer = dict(response.ExporterResponse)
                    await to_worker(request.publish_layouts, answer, writers)
                    return BuildResult(request.ref, answer)
                finally:
                    await progress.finish(following)

    async def _build_via_gateway(
        self, request: BuildRequest, message: control_pb2.SolveRequest
    ) -> BuildResult:
        """Act as the frontend's caller, as subrequests need it."""
        solving = asyncio.ensure_future(self._transport.solve(message))
        try:
            try:
                outcome = await self._run_frontend(request)
            except BoxwrightError:
                # The build itself fails too, and says more about it.
                await _settled(solving)
                raise
            if isinstance(outcome, BoxwrightError):
                with contextlib.suppress(BoxwrightError):  # the same one, as a status
                    await _settled(solving)
                raise outcome
            response = await solving
            return BuildResult(request.ref, dict(response.ExporterResponse), outcome)
        finally:
            solving.cancel()
            await asyncio.gather(solving, return_exceptions=True)

    async def _run_frontend(self, request: BuildRequest) -> dict[str, bytes] | BoxwrightError:
        """Return the frontend's metadata, or the error that the build was ended with.

        Raises:
            BoxwrightError: the daemon has no such build (any more).
        """
        opts = dict(request.opts)
        if "requestid" in opts:
            opts.setdefault("frontend.caps", _SUBREQUEST_CAP)
        inner = gateway_pb2.SolveRequest(
            Frontend=request.frontend,
            FrontendOpt=opts,
            Definition=request.definition,
            allowResultReturn=True,
            allowResultArrayRef=True,
            Evaluate=request.on_failed_step is not None,
        )
        try:
            answer = await self._transport.gateway_solve(request.ref, inner)
        except BoxwrightError as exc:
            step = failed_step(self._transport, request.ref, exc)
            if step is not None and request.on_failed_step is not None:
                await request.on_failed_step(step)
            failure = gateway_pb2.ReturnRequest(error=to_pb(to_rpc_error(exc)))
            await self._transport.gateway_return(request.ref, failure)
            return exc
        await self._transport.gateway_return(
            request.ref, gateway_pb2.ReturnRequest(result=answer.result)
        )
        return {key: bytes(value) for key, value in answer.result.metadata.items()}

    async def info(self) -> worker_pb2.BuildkitVersion:
        """Return the daemon's version."""
        return (await self._transport.info()).buildkitVersion

    async def workers(self, filters: Iterable[str] = ()) -> list[worker_pb2.WorkerRecord]:
        """Return the daemon's workers."""
        request = control_pb2.ListWorkersRequest(filter=filters)
        return list((await self._transport.workers(request)).record)

    async def disk_usage(self, filters: Iterable[str] = ()) -> list[control_pb2.UsageRecord]:
        """Return the records that take space, the smallest first."""
        request = control_pb2.DiskUsageRequest(filter=filters)
        found = (await self._transport.disk_usage(request)).record
        return sorted(found, key=lambda record: (record.Size, record.ID))

    def prune(self, request: control_pb2.PruneRequest) -> AsyncIterator[control_pb2.UsageRecord]:
        """Remove records and yield each."""
        return self._transport.prune(request)

    def history(
        self, request: control_pb2.BuildHistoryRequest
    ) -> AsyncIterator[control_pb2.BuildHistoryEvent]:
        """Yield the builds that the daemon remembers, and with ``ActiveOnly`` unset new ones."""
        return self._transport.history(request)

    async def update_history(self, request: control_pb2.UpdateBuildHistoryRequest) -> None:
        """Pin, unpin or delete a remembered build."""
        await self._transport.update_history(request)

    async def why(
        self, ref: str = "", *, step: str = "", against: str = ""
    ) -> explain_pb2.WhyResponse:
        """Return which steps of a finished build ran, and why.

        Args:
            ref: The build; the newest if empty.
            step: Part of a step's name, or the start of its digest; empty for all that ran.
            against: The build to compare with; the nearest earlier ones if empty.

        Raises:
            NotFoundError: no such build or step is remembered.
            UnimplementedError: the daemon is not one of ours.
        """
        return await self._transport.why(
            explain_pb2.WhyRequest(ref=ref, step=step, against=against)
        )

    async def space(self) -> explain_pb2.SpaceResponse | None:
        """Return what collection goes by besides the records; None if the daemon is not ours."""
        return await self._transport.space()

    async def follow(self, ref: str, on_progress: ProgressCallback) -> None:
        """Report the progress of a build that runs, or was, to its end.

        Raises:
            NotFoundError: no build has this ref.
        """
        request = control_pb2.StatusRequest(Ref=ref)
        async for response in self._transport.status(request):
            on_progress(from_response(response))

    def read_blob(self, digest: str) -> AsyncIterator[bytes]:
        """Yield a blob of the content store: a log, a trace, an attestation, an image's parts.

        Raises:
            NotFoundError: there is no such blob.
        """
        return self._transport.read_blob(digest)


class _Progress:
    """Follows the status of one build."""

    def __init__(
        self, transport: Transport, ref: str, on_progress: ProgressCallback | None
    ) -> None:
        self._transport = transport
        self._ref = ref
        self._on_progress = on_progress
        self._active = asyncio.Event()

    async def follow(self) -> None:
        request = control_pb2.StatusRequest(Ref=self._ref)
        async for response in self._transport.status(request):
            self._active.set()
            if self._on_progress is not None:
                self._on_progress(from_response(response))

    async def finish(self, following: asyncio.Future[None]) -> None:
        """Wait for the last events, as long as some come; what fails here fails nothing."""
        try:
            while not following.done():
                self._active.clear()
                woken = asyncio.ensure_future(self._active.wait())
                await asyncio.wait(
                    (following, woken),
                    timeout=_STATUS_QUIET_S,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                woken.cancel()
                await asyncio.gather(woken, return_exceptions=True)
                if not self._active.is_set():
                    break
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)


async def _settled(solving: asyncio.Future[control_pb2.SolveResponse]) -> None:
    """Wait for the end of a build whose frontend has failed; not for ever."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_GATEWAY_GRACE_S):
            await asyncio.shield(solving)


def _add_cache_imports(request: BuildRequest) -> None:
    """Tell the frontend of cache imports: it applies them to the graph that it makes."""
    if request.cache_from and (request.frontend or request.via_gateway):
        entries = [{"Type": spec.type, "Attrs": dict(spec.attrs)} for spec in request.cache_from]
        request.opts["cache-imports"] = json.dumps(entries, separators=(",", ":"))
