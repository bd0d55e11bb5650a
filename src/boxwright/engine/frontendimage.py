"""Frontends in images: ``gateway.v0`` with a source, ``# syntax=`` of another image.

The image runs as a container whose standard input and output are a connection on which the
build's ``LLBBridge`` is served. Its ``Return`` is the result; what it writes to standard error
is told when it fails.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack

from boxwright.core import gobool
from boxwright.core.dataclass import dataclass
from boxwright.core.reference import Reference
from boxwright.dockerfile.bridge import FrontendBridge
from boxwright.engine.containers import ContainerHost
from boxwright.engine.gateway import GatewayBridge
from boxwright.engine.gatewayserver import serve_gateway
from boxwright.engine.results import FrontendResult, LazyRef
from boxwright.errors import BoxwrightError, Code, InvalidInputError, UnimplementedError
from boxwright.executor.executor import Attached
from boxwright.executor.process import DataMount, NetworkMode, ProcessSpec
from boxwright.oci.image import Image
from boxwright.wire import errdetails
from boxwright.wire.pb import errdefs_pb2, ops_pb2, worker_pb2

_DEFAULT_COMMAND = ("/run",)
_METADATA = "/run/config/buildkit/metadata/frontend.bin"
_NETWORK_LABEL = "moby.buildkit.frontend.network.none"
_CAPS_LABEL = "moby.buildkit.frontend.caps"
_CAPS_OPTION = "frontend.caps"
_INPUTS_CAP = "moby.buildkit.frontend.inputs"
_STDERR_BYTES = 16 << 10
_END_GRACE_S = 10.0
_MAX_OPTIONS_BYTES = 1 << 20


class FrontendFailedError(BoxwrightError):
    """A frontend ended without a result; the detail is what it said last."""

    code = Code.EXEC_FAILED

    def __init__(self, source: str, reason: str, said: str) -> None:
        detail = f"{reason}: {said}" if said else reason
        super().__init__(f"frontend {source} failed", detail=detail)
        self.source = source


class FrontendCapabilityError(UnimplementedError):
    """The build needs something that the frontend's image does not say it can do."""

    def __init__(self, source: str, capability: str) -> None:
        super().__init__(
            f"requested experimental feature {capability} is not supported by "
            f"the frontend {source}"
        )
        fact = errdefs_pb2.FrontendCap(name=capability)
        self.rpc_details = [errdetails.pack(fact)]


SolveTree = Callable[[ops_pb2.Definition], Awaitable[LazyRef | None]]


@dataclass(frozen=True)
class LoadedFrontend:
    """An image that is a frontend.

    Attributes:
        name: Its image with the digest, or the named context that it is.
        definition: What its tree is built from; the frontend may read it.
        tree: Its root file system, to be released by the owner.
        image: Its config.
    """

    source: str
    name: str
    definition: ops_pb2.Definition
    tree: LazyRef
    image: Image


async def load_frontend(run: FrontendBridge, source: str, solve: SolveTree) -> LoadedFrontend:
    """Find the image of a frontend: a named context of the build, or in a registry.

    Raises:
        InvalidInputError: it is no image name, or the image is empty.
        BoxwrightError: it can't be resolved, or the build may not use it.
    """
    from boxwright.dockerfile.contexts import BuildContexts
    from boxwright.dockerfile.options import parse_options
    from boxwright.llb.source_op import image

    contexts = BuildContexts(run, parse_options({}, run.worker_platforms[0]))
    named = contexts.named(source)
    if named is not None:
        state, config = await named.load()
        identity = source
    else:
        name = str(Reference.parse(source).with_default_tag())
        resolved = await run.resolve_image_config(
            name,
            platform=None,
            resolve_mode="default",
            log_name=f"resolve image config for docker-image://{name}",
        )
        config = Image.decode(resolved.config)
        pinned = Reference.parse(resolved.ref)
        if resolved.digest is not None:
            pinned = pinned.with_digest(resolved.digest)
        identity = str(pinned)
        state = image(str(pinned), internal=True, name=f"frontend {source}")
    definition = state.marshal()
    tree = await solve(definition)
    if tree is None:
        raise InvalidInputError("the frontend's image is empty", detail=source)
    return LoadedFrontend(source, identity, definition, tree, config or Image())


class FrontendContainer:
    """One run of a frontend."""

    def __init__(
        self,
        host: ContainerHost,
        frontend: LoadedFrontend,
        gateway: GatewayBridge,
        *,
        options: Mapping[str, str],
        session_id: str,
        worker: worker_pb2.WorkerRecord,
    ) -> None:
        self._host = host
        self._frontend = frontend
        self._gateway = gateway
        self._options = dict(options)
        self._session_id = session_id
        self._worker = worker
        self._said = bytearray()

    async def run(self) -> FrontendResult:
        """Run it and return what it returned. Cancelling kills it.

        Raises:
            ReturnedError: its own error.
            FrontendFailedError: it ended without a result.
            BoxwrightError: it could not be run.
        """
        outcome = asyncio.ensure_future(self._gateway.outcome())
        running = asyncio.ensure_future(self._run())
        try:
            await asyncio.wait({outcome, running}, return_when=asyncio.FIRST_COMPLETED)
            if outcome.done() and not running.done():
                # It has said what it wants; it may still tidy up, but not for ever.
                await asyncio.wait({running}, timeout=_END_GRACE_S)
            if running.done():
                await asyncio.sleep(0)  # a Return in its last bytes has been handled by now
                return self._result(outcome, running.exception())
            return outcome.result()
        finally:
            for task in (running, outcome):
                task.cancel()
            await asyncio.wait({running, outcome})

    def _result(
        self, outcome: asyncio.Future[FrontendResult], failure: BaseException | None
    ) -> FrontendResult:
        returned = outcome.exception() if outcome.done() else None
        if returned is not None:
            raise returned
        said = bytes(self._said).decode("utf-8", "replace").strip()
        source = self._frontend.source
        if failure is not None:
            if isinstance(failure, BoxwrightError) and failure.code is not Code.EXEC_FAILED:
                raise failure
            raise FrontendFailedError(source, str(failure), said) from failure
        if not outcome.done():
            raise FrontendFailedError(source, "it ended without a result", said)
        return outcome.result()

    async def _run(self) -> None:
        """Run the container until it has ended and everything it sent is handled."""
        host = self._host
        snapshot = await self._frontend.tree.snapshot()
        if snapshot is None:
            raise InvalidInputError("the frontend's image is empty", detail=self._frontend.source)
        ours, theirs = socket.socketpair()
        async with AsyncExitStack() as stack:
            stack.callback(theirs.close)
            tree = host.world.snapshots.new(
                snapshot, description=f"frontend {self._frontend.source}"
            )
            stack.push_async_callback(tree.release)
            root = await stack.enter_async_context(tree.mounted())
            serving = asyncio.ensure_future(serve_gateway(self._gateway, ours))
            try:
                await host.executor.run(
                    f"frontend-{secrets.token_hex(12)}",
                    root,
                    self._process(),
                    stdout=_ignore,
                    stderr=self._hear,
                    attached=Attached(channel=theirs.fileno(), on_started=theirs.close),
                )
                theirs.close()
                await asyncio.wait({serving}, timeout=_END_GRACE_S)
            finally:
                serving.cancel()
                await asyncio.wait({serving})

    def _hear(self, data: bytes) -> None:
        self._said += data
        del self._said[:-_STDERR_BYTES]

    def _process(self) -> ProcessSpec:
        config = self._frontend.image.config
        network = NetworkMode.DEFAULT
        if (config.labels or {}).get(_NETWORK_LABEL) in gobool.TRUE:
            network = NetworkMode.NONE
        options = [
            f"BUILDKIT_FRONTEND_OPT_{number}={key}={value}"
            for number, (key, value) in enumerate(self._options.items())
        ]
        if sum(map(len, options)) > _MAX_OPTIONS_BYTES:
            raise InvalidInputError("too many options for a frontend in an image")
        return ProcessSpec(
            args=tuple(config.entrypoint or _DEFAULT_COMMAND),
            env=(
                *(config.env or ()),
                *options,
                f"BUILDKIT_SESSION_ID={self._session_id}",
                f"BUILDKIT_WORKERS={_workers_json([self._worker])}",
                "BUILDKIT_EXPORTEDPRODUCT=buildkit",
            ),
            cwd=config.working_dir or "/",
            network=network,
            remove_mount_stubs_recursive=True,
            mounts=(DataMount(_METADATA, self._frontend.definition.SerializeToString()),),
        )


def check_capabilities(
    frontend: LoadedFrontend, options: Mapping[str, str], *, has_inputs: bool
) -> None:
    """Refuse a build that needs what the image's label does not name.

    Raises:
        FrontendCapabilityError: naming the first one.
    """
    labels = frontend.image.config.labels or {}
    offered = _caps(labels.get(_CAPS_LABEL, ""))
    wanted = _caps(options.get(_CAPS_OPTION, "")) | ({_INPUTS_CAP} if has_inputs else set())
    for name in sorted(wanted - offered):
        raise FrontendCapabilityError(frontend.source, name)


def _caps(text: str) -> set[str]:
    return {name for item in text.split(",") if (name := item.partition("+")[0])}


def _workers_json(workers: Sequence[worker_pb2.WorkerRecord]) -> str:
    """Return workers as BuildKit's clients encode them (client.WorkerInfo)."""
    return json.dumps(
        [
            {
                "id": worker.ID,
                "labels": dict(worker.Labels),
                "platforms": [_platform_json(platform) for platform in worker.platforms],
                "gcPolicy": None,
                "buildkitVersion": {"package": "", "version": "", "revision": ""},
                "cdiDevices": None,
            }
            for worker in workers
        ],
        separators=(",", ":"),
    )


def _platform_json(platform: ops_pb2.Platform) -> dict[str, str]:
    found = {"architecture": platform.Architecture, "os": platform.OS}
    if platform.Variant:
        found["variant"] = platform.Variant
    return found


def _ignore(_data: bytes) -> None:
    """Standard output is the connection; nothing comes here."""
