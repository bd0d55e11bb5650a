"""The gateway of one build: ``LLBBridge`` in its own messages, for client-side frontends.

``buildx`` and ``buildctl`` drive every build this way: they open a Solve without definition
and frontend, then solve, read and resolve through this bridge, and end with Return.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Iterator
from functools import partial

from boxwright.core.digest import Digest
from boxwright.core.workers import to_worker
from boxwright.dockerfile.bridge import OciStore
from boxwright.engine import capabilities, reffiles
from boxwright.engine.bridge import BuildBridge, SolveSpec, definition_of, source_range, with_tree
from boxwright.engine.containerexec import ExecSession, ExecStream
from boxwright.engine.containers import Container, ContainerGoneError
from boxwright.engine.gatewayattests import fill_attestations, read_attestations
from boxwright.engine.policy import SourceRules
from boxwright.engine.policycheck import rules_of
from boxwright.engine.provenance import RequestScope
from boxwright.engine.results import FrontendResult, LazyRef
from boxwright.errors import (
    BoxwrightError,
    InvalidInputError,
    LimitExceededError,
    NotFoundError,
)
from boxwright.llb.graph import Vertex
from boxwright.llb.marshal import platform_from_pb
from boxwright.ops.result import ref_of
from boxwright.progress.events import WarningEvent
from boxwright.remotecache.attributes import CacheEntry
from boxwright.snapshots.refs import ImmutableRef
from boxwright.solver.failure import Failure, failure_of
from boxwright.wire import errdetails
from boxwright.wire.pb import errdefs_pb2, gateway_pb2, ops_pb2
from boxwright.wire.status import RpcError, StatusCode

_MAX_CONTAINERS = 256


class ReturnedError(RpcError):
    """The client's frontend ended the build with an error of its own."""


class GatewayBridge:
    """Serves one build's frontend calls. Refs belong to this object until the build ends."""

    def __init__(
        self,
        bridge: BuildBridge,
        inputs: dict[str, ops_pb2.Definition],
        *,
        rules: SourceRules | None = None,
        scope: RequestScope | None = None,
    ) -> None:
        self._bridge = bridge
        self._scope = scope or bridge.scope
        self._rules = rules or SourceRules()
        self._containers: dict[str, Container] = {}
        self._inputs = inputs
        self._refs: dict[str, LazyRef] = {}
        self._closed = False
        self._failed: dict[str, ImmutableRef] = {}
        self._outcome: asyncio.Future[FrontendResult] = asyncio.get_running_loop().create_future()

    async def outcome(self) -> FrontendResult:
        """Wait for Return and give its result.

        Raises:
            ReturnedError: the frontend returned an error.
        """
        return await asyncio.shield(self._outcome)

    async def close(self) -> None:
        """End all containers and release every ref that was handed out."""
        self._closed = True
        if not self._outcome.done():
            self._outcome.cancel()
        elif not self._outcome.cancelled():
            self._outcome.exception()
        containers, self._containers = list(self._containers.values()), {}
        for container in containers:
            await container.close()
        trees, self._failed = list(self._failed.values()), {}
        for tree in trees:
            await tree.release()
        refs, self._refs = list(self._refs.values()), {}
        for ref in refs:
            await ref.release()

    # --- the messages ------------------------------------------------------------------------

    async def ping(self, _request: gateway_pb2.PingRequest) -> gateway_pb2.PongResponse:
        """Tell what this gateway and its worker can do."""
        return gateway_pb2.PongResponse(
            FrontendAPICaps=capabilities.to_pb(capabilities.GATEWAY_CAPS),
            LLBCaps=capabilities.to_pb(capabilities.LLB_CAPS),
            Workers=[self._bridge.worker],
        )

    async def inputs(self, _request: gateway_pb2.InputsRequest) -> gateway_pb2.InputsResponse:
        """Return the definitions that the Solve request came with."""
        return gateway_pb2.InputsResponse(Definitions=self._inputs)

    async def solve(self, request: gateway_pb2.SolveRequest) -> gateway_pb2.SolveResponse:
        """Solve a definition or run a frontend; refs are returned by id.

        Raises:
            BoxwrightError: of the frontend, or of a step if ``Evaluate`` is set.
        """
        with self._failures():
            result = await self._bridge.solve(self._spec(request), self._scope)
        if result.refs is not None and not request.allowResultReturn:
            raise InvalidInputError("solve did not return default result")
        message = gateway_pb2.Result(metadata=result.metadata)
        response = gateway_pb2.SolveResponse()
        self._fill_refs(message, result, as_array=request.allowResultArrayRef)
        fill_attestations(message, result, self._register)
        if not request.allowResultReturn and result.ref is not None:
            response.ref = message.ref.id or message.refDeprecated
        response.result.CopyFrom(message)
        return response

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """Add to the error of a step what it left, for containers in its place."""
        try:
            yield
        except BoxwrightError as exc:
            failure = failure_of(exc)
            if failure.vertex is not None:
                self._describe(exc, failure.vertex, failure)
            raise

    def _describe(self, error: BoxwrightError, vertex: Vertex, failure: Failure) -> None:
        """Name the trees of a failed step (``errdefs.Solve``); clients mount them by id."""
        ids: dict[int, str] = {}
        for tree in (*failure.inputs, *failure.mounts):
            ref = ref_of(tree) if tree is not None else None
            if ref is not None and id(tree) not in ids:
                ids[id(tree)] = uuid.uuid4().hex
                self._failed[ids[id(tree)]] = ref.clone()
        fact = errdefs_pb2.Solve(
            inputIDs=[ids.get(id(tree), "") for tree in failure.inputs],
            mountIDs=[ids.get(id(tree), "") for tree in failure.mounts],
            op=vertex.op,
            description=vertex.options.description,
        )
        if failure.slow_input is not None:
            fact.cache.index = failure.slow_input
        elif failure.action is not None:
            fact.file.index = failure.action
        details = list(getattr(error, "rpc_details", ()))
        kept = [d for d in details if not isinstance(errdetails.unpack(d), errdefs_pb2.Solve)]
        error.__dict__["rpc_details"] = [*kept, errdetails.pack(fact)]

    def _spec(self, request: gateway_pb2.SolveRequest) -> SolveSpec:
        has_definition = request.HasField("Definition") and request.Definition.ByteSize() > 0
        return SolveSpec(
            definition=request.Definition if has_definition else None,
            frontend=request.Frontend,
            options=dict(request.FrontendOpt),
            inputs=dict(request.FrontendInputs),
            evaluate=request.Evaluate,
            rules=self._rules.plus(rules_of(request.SourcePolicies)),
            cache_imports=[
                CacheEntry(item.Type, dict(item.Attrs)) for item in request.CacheImports
            ],
        )

    def _fill_refs(
        self, message: gateway_pb2.Result, result: FrontendResult, *, as_array: bool
    ) -> None:
        if result.refs is not None:
            for key, ref in result.refs.items():
                ref_id = self._register(ref)
                if as_array:
                    message.refs.refs[key].CopyFrom(_ref_message(ref_id, ref))
                else:
                    message.refsDeprecated.refs[key] = ref_id
            if not result.refs:
                message.refs.SetInParent()
            return
        ref_id = self._register(result.ref)
        if as_array:
            message.ref.CopyFrom(_ref_message(ref_id, result.ref))
        else:
            message.refDeprecated = ref_id

    def ref_id(self, ref: LazyRef) -> str:
        """Return the id under which a ref can be read until the build ends."""
        known = next((key for key, each in self._refs.items() if each is ref), "")
        return known or self._register(ref.retain())

    def _register(self, ref: LazyRef | None) -> str:
        if ref is None:
            return ""
        ref_id = uuid.uuid4().hex
        self._refs[ref_id] = ref
        return ref_id

    def _ref(self, ref_id: str) -> LazyRef:
        ref = self._refs.get(ref_id)
        if ref is None:
            raise NotFoundError(f"no such ref: {ref_id}")
        return ref

    async def read_file(
        self, request: gateway_pb2.ReadFileRequest
    ) -> gateway_pb2.ReadFileResponse:
        """Return bytes of a file of a result."""
        with self._failures():
            data = await with_tree(
                self._ref(request.Ref),
                reffiles.read_file,
                request.FilePath,
                offset=request.Range.Offset,
                length=request.Range.Length,
            )
        return gateway_pb2.ReadFileResponse(Data=data)

    async def read_dir(self, request: gateway_pb2.ReadDirRequest) -> gateway_pb2.ReadDirResponse:
        """Return the entries of a folder of a result."""
        with self._failures():
            entries = await with_tree(
                self._ref(request.Ref), reffiles.read_dir, request.DirPath, request.IncludePattern
            )
        return gateway_pb2.ReadDirResponse(entries=entries)

    async def stat_file(
        self, request: gateway_pb2.StatFileRequest
    ) -> gateway_pb2.StatFileResponse:
        """Return what a path of a result is."""
        with self._failures():
            info = await with_tree(self._ref(request.Ref), reffiles.stat_file, request.Path)
        return gateway_pb2.StatFileResponse(stat=info)

    async def evaluate(self, request: gateway_pb2.EvaluateRequest) -> gateway_pb2.EvaluateResponse:
        """Solve a ref now."""
        with self._failures():
            await self._ref(request.Ref).result()
        return gateway_pb2.EvaluateResponse()

    async def resolve_image_config(
        self, request: gateway_pb2.ResolveImageConfigRequest
    ) -> gateway_pb2.ResolveImageConfigResponse:
        """Resolve an image to digest and config."""
        found = await self._bridge.resolve_image_config(
            request.Ref,
            platform=platform_from_pb(request.Platform) if request.HasField("Platform") else None,
            resolve_mode=request.ResolveMode,
            log_name=request.LogName,
            store=_oci_store(request.SessionID, request.StoreID),
            rules=self._rules.plus(rules_of(request.SourcePolicies)),
            scope=self._scope,
        )
        return gateway_pb2.ResolveImageConfigResponse(
            Digest=found.digest or "", Config=found.config, Ref=found.ref
        )

    async def resolve_source_meta(
        self, request: gateway_pb2.ResolveSourceMetaRequest
    ) -> gateway_pb2.ResolveSourceMetaResponse:
        """Resolve a source: an image, an OCI layout, a git repository or a URL.

        Raises:
            UnimplementedError: the source is of another kind.
            SourceDeniedError: the build may not use it.
        """
        rules = self._rules.plus(rules_of(request.SourcePolicies))
        return await self._bridge.resolve_source_meta(request, rules, self._scope)

    async def warn(self, request: gateway_pb2.WarnRequest) -> gateway_pb2.WarnResponse:
        """Show a warning on a vertex."""
        self._bridge.warn(
            WarningEvent(
                vertex=Digest(request.digest),
                level=request.level,
                short=bytes(request.short),
                detail=tuple(bytes(line) for line in request.detail),
                url=request.url,
                filename=request.info.filename,
                source=bytes(request.info.data),
                ranges=tuple(source_range(r) for r in request.ranges),
                language=request.info.language,
                definition=definition_of(request.info),
            )
        )
        return gateway_pb2.WarnResponse()

    # --- containers --------------------------------------------------------------------------

    async def new_container(
        self, request: gateway_pb2.NewContainerRequest
    ) -> gateway_pb2.NewContainerResponse:
        """Mount results for processes to come.

        Raises:
            InvalidInputError: the id is taken.
            BoxwrightError: a result can't be made, or the mounts can't be.
        """
        name = request.ContainerID
        if not name or name in self._containers:
            raise InvalidInputError(f"Container {name} already exists")
        if len(self._containers) >= _MAX_CONTAINERS:
            raise LimitExceededError(f"more than {_MAX_CONTAINERS} containers in one build")
        wanted = {mount.resultID for mount in request.Mounts if mount.resultID}
        trees = {each: await self._tree(each) for each in wanted}
        container = await Container.create(self._bridge.containers, request, trees)
        if name in self._containers or self._closed:
            await container.close()
            raise InvalidInputError(f"Container {name} already exists")
        self._containers[name] = container
        return gateway_pb2.NewContainerResponse()

    async def _tree(self, ref_id: str) -> ImmutableRef | None:
        """Return the tree of a ref, or what a failed command left under this id."""
        return self._failed.get(ref_id) or await self._ref(ref_id).snapshot()

    async def release_container(
        self, request: gateway_pb2.ReleaseContainerRequest
    ) -> gateway_pb2.ReleaseContainerResponse:
        """End a container and its processes.

        Raises:
            ContainerGoneError: there is none.
            RpcError: processes were killed; it is gone all the same.
        """
        container = self._containers.pop(request.ContainerID, None)
        if container is None:
            raise ContainerGoneError(request.ContainerID)
        if await container.close():
            raise RpcError(StatusCode.CANCELLED, "context canceled")
        return gateway_pb2.ReleaseContainerResponse()

    async def exec_process(self, stream: ExecStream) -> None:
        """Run processes in containers; see :mod:`boxwright.engine.containerexec`."""
        await ExecSession(stream, self._containers).run()

    def _container(self, name: str) -> Container:
        container = self._containers.get(name)
        if container is None:
            raise ContainerGoneError(name)
        return container

    async def read_file_container(
        self, request: gateway_pb2.ReadFileRequest
    ) -> gateway_pb2.ReadFileResponse:
        """Return bytes of a file in a container's mount."""
        folder = self._container(request.Ref).folder(request.MountIndex)
        data = await to_worker(
            partial(
                reffiles.read_file,
                folder,
                request.FilePath,
                offset=request.Range.Offset,
                length=request.Range.Length,
            )
        )
        return gateway_pb2.ReadFileResponse(Data=data)

    async def read_dir_container(
        self, request: gateway_pb2.ReadDirRequest
    ) -> gateway_pb2.ReadDirResponse:
        """Return the entries of a folder in a container's mount."""
        folder = self._container(request.Ref).folder(request.MountIndex)
        entries = await to_worker(
            reffiles.read_dir, folder, request.DirPath, request.IncludePattern
        )
        return gateway_pb2.ReadDirResponse(entries=entries)

    async def stat_file_container(
        self, request: gateway_pb2.StatFileRequest
    ) -> gateway_pb2.StatFileResponse:
        """Return what a path in a container's mount is."""
        folder = self._container(request.Ref).folder(request.MountIndex)
        info = await to_worker(reffiles.stat_file, folder, request.Path)
        return gateway_pb2.StatFileResponse(stat=info)

    # --- the end -----------------------------------------------------------------------------

    async def return_(self, request: gateway_pb2.ReturnRequest) -> gateway_pb2.ReturnResponse:
        """End the build with a result or an error.

        Raises:
            BoxwrightError: it has already ended.
        """
        if self._outcome.done():
            raise BoxwrightError("return was already called on this build")
        if request.HasField("error"):
            status = request.error
            error = ReturnedError(
                StatusCode(status.code), status.message, details=list(status.details)
            )
            self._outcome.set_exception(error)
            return gateway_pb2.ReturnResponse()
        result = request.result
        made = FrontendResult(metadata=dict(result.metadata))
        match result.WhichOneof("result"):
            case "refDeprecated":
                made.ref = self._take(result.refDeprecated)
            case "refsDeprecated":
                made.refs = {k: self._take(v) for k, v in result.refsDeprecated.refs.items()}
            case "ref":
                made.ref = self._take(result.ref.id)
            case "refs":
                made.refs = {k: self._take(v.id) for k, v in result.refs.refs.items()}
        made.attestations = read_attestations(result, self._take)
        self._outcome.set_result(made)
        return gateway_pb2.ReturnResponse()

    def _take(self, ref_id: str) -> LazyRef | None:
        return self._ref(ref_id).retain() if ref_id else None


def _ref_message(ref_id: str, ref: LazyRef | None) -> gateway_pb2.Ref:
    """Return a ref's message; its ``def`` field has a name that Python reserves."""
    if ref is None:
        return gateway_pb2.Ref(id=ref_id)
    fields: dict[str, ops_pb2.Definition] = {"def": ref.definition}
    return gateway_pb2.Ref(id=ref_id, **fields)


def _oci_store(session_id: str, store_id: str) -> OciStore | None:
    return OciStore(session_id, store_id) if store_id else None
