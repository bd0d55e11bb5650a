"""What a frontend may ask of its build: solve, resolve, read, warn.

One :class:`BuildBridge` belongs to one build. The built-in Dockerfile frontend calls it
directly; frontends of clients and of containers reach it through the gateway messages in
:mod:`boxwright.engine.gateway`.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from boxwright._version import __version__
from boxwright.core.clock import Clock
from boxwright.core.dataclass import dataclass, field, replace
from boxwright.core.digest import Digest
from boxwright.core.platform import Platform
from boxwright.core.reference import Reference
from boxwright.core.workers import to_worker
from boxwright.dockerfile import bridge as frontend_api
from boxwright.engine import capabilities, entitlements, reffiles
from boxwright.engine.attestationchain import AttestationChain, ChainQuestion
from boxwright.engine.cacheio import CacheImports
from boxwright.engine.containers import ContainerHost
from boxwright.engine.keyfacts import FrontendRuns
from boxwright.engine.located import locate
from boxwright.engine.policy import SourceRules
from boxwright.engine.policycheck import MetaResolver, SourcePolicy
from boxwright.engine.provenance import ImageMaterial, Provenance, RequestScope
from boxwright.engine.results import FrontendResult, LazyRef, ResultAttestation
from boxwright.engine.scanning import from_frontend
from boxwright.engine.sourcemeta import (
    HttpAnswerMetadata,
    SourceMetadataResolver,
    SourceQuestion,
    fill_response,
)
from boxwright.errors import BoxwrightError, InvalidInputError, UnimplementedError, named
from boxwright.executor.cdi import CdiRegistry
from boxwright.llb.definition import assemble, decode, pruned_cache_ids
from boxwright.llb.graph import Edge
from boxwright.llb.marshal import platform_from_pb, platform_to_pb
from boxwright.progress.events import SourceRange, WarningEvent
from boxwright.progress.step import step
from boxwright.progress.stream import ProgressStream
from boxwright.remotecache.attributes import CacheEntry
from boxwright.solver.jobs import Job
from boxwright.solver.types import CachedResult
from boxwright.sources.bloblocator import BLOB_SCHEMES
from boxwright.sources.git import GitMetadata
from boxwright.wire.pb import fsutil_pb2, gateway_pb2, ops_pb2, worker_pb2

_log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

_IMAGE_SCHEME = "docker-image://"
_LAYOUT_SCHEME = "oci-layout://"

DOCKERFILE_FRONTEND = "dockerfile.v0"
GATEWAY_FRONTEND = "gateway.v0"


@dataclass(frozen=True)
class SolveSpec:
    """One solve: a definition, or a frontend with its options."""

    definition: ops_pb2.Definition | None = None
    frontend: str = ""
    options: Mapping[str, str] | None = None
    inputs: Mapping[str, ops_pb2.Definition] | None = None
    evaluate: bool = False
    cache_imports: Sequence[CacheEntry] = ()
    rules: SourceRules = field(default_factory=SourceRules)


def as_run(spec: SolveSpec) -> SolveSpec:
    """Return a request as it is run: by the built-in frontend where its image is asked for."""
    options = dict(spec.options or {})
    if spec.frontend != GATEWAY_FRONTEND or "source" not in options:
        return spec
    source = options.pop("source")
    if source != DOCKERFILE_FRONTEND:
        # Not at start: see boxwright.engine.preload.
        from boxwright.dockerfile.frontend import is_own_syntax

        if not is_own_syntax(source):
            return spec
    return replace(spec, frontend=DOCKERFILE_FRONTEND, options=options)


class ImageResolver(Protocol):
    """Resolves an image name to its digest and config (the engine's image source)."""

    async def resolve_config(
        self,
        ref: str,
        *,
        platform: Platform | None,
        resolve_mode: str,
        sessions: Sequence[str],
        store: frontend_api.OciStore | None = None,
    ) -> tuple[str, Digest | None, bytes]:
        """Return the name, the digest of manifest or index, and the config's bytes."""
        ...

    async def attestation_chain(
        self, question: ChainQuestion, *, resolve_mode: str, sessions: Sequence[str]
    ) -> tuple[Digest, AttestationChain]:
        """Return the root's digest and what leads to the statements about an image."""
        ...


class BuildBridge:
    """The frontend's side of one build. Used from the event loop."""

    def __init__(
        self,
        job: Job,
        stream: ProgressStream,
        clock: Clock,
        images: ImageResolver,
        source_metadata: SourceMetadataResolver,
        *,
        session_id: str,
        granted: frozenset[str],
        devices: CdiRegistry | None = None,
        worker_platforms: Sequence[Platform],
        policy: SourcePolicy,
        containers: ContainerHost,
        worker: worker_pb2.WorkerRecord,
        imports: CacheImports | None = None,
        scope: RequestScope | None = None,
        provenance: Provenance | None = None,
    ) -> None:
        self.provenance = provenance
        self.containers = containers
        self.worker = worker
        self.job = job
        self._policy = policy
        job.admit = self._admit
        self.cache_imports = self._imports = imports
        self._stream = stream
        self._clock = clock
        self._images = images
        self._source_metadata = source_metadata
        self._granted = granted
        self._devices = devices
        self.frontends = FrontendRuns()
        self.session_id = session_id
        self.worker_platforms = worker_platforms
        self.scope = scope or RequestScope()

    def begin_again(self, job: Job) -> None:
        """Go on with a fresh job, the old one discarded; imported caches are read again."""
        self.job = job
        self.scope.clear()
        job.admit = self._admit
        if self._imports is not None:
            self._imports.forget()

    async def close(self) -> None:
        """Give up all claims of the build, then what it imported."""
        await self.job.discard()
        if self.provenance is not None:
            self.provenance.close()
        if self._imports is not None:
            self._imports.close()

    async def solve(self, spec: SolveSpec, scope: RequestScope | None = None) -> FrontendResult:
        """Return what a definition or a frontend makes; refs are solved when needed.

        Args:
            spec: What to solve.
            scope: Who asks; the client if it is not a frontend.

        Raises:
            InvalidInputError: both, or neither usable.
            BoxwrightError: of the frontend, or of a step if ``evaluate`` is set.
        """
        scope = scope or self.scope
        if spec.definition is not None and spec.definition.ByteSize() > 0:
            if spec.frontend:
                raise InvalidInputError("cannot solve with both Definition and Frontend specified")
            made_in = scope
            result = FrontendResult(ref=await self._lazy(spec.definition, spec))
            scope.results.append(result)
        elif spec.frontend:
            spec = as_run(spec)
            made_in = scope.child(spec)
            result = await self._run_frontend(spec, made_in)
            made_in.results.append(result)
            scope.children.append(made_in)
        else:
            return FrontendResult()
        if self.provenance is not None:
            self.provenance.register(made_in, result)
        if spec.evaluate:
            try:
                for ref in result.all_refs():
                    await ref.result()
            except BaseException:
                await result.release()
                raise
        return result

    async def _lazy(self, definition: ops_pb2.Definition, spec: SolveSpec) -> LazyRef | None:
        if len(getattr(definition, "def")) == 0:
            return None  # an empty file system
        renamed: dict[str, str] = {}
        try:
            edge = await self._admit(definition, spec.rules, renamed)
        except BoxwrightError as exc:
            locate(exc, definition)
            raise

        async def run() -> CachedResult:
            caches = await self._imports.managers(spec.cache_imports) if self._imports else ()
            if emptied := pruned_cache_ids(edge):
                await self.containers.world.cache_mounts.forget(emptied)
            try:
                return await self.job.build(edge, caches=caches)
            except BoxwrightError as exc:
                locate(exc, definition, renamed)
                raise

        return LazyRef(definition, edge, run)

    async def _admit(
        self,
        definition: ops_pb2.Definition,
        rules: SourceRules | None = None,
        renamed: dict[str, str] | None = None,
    ) -> Edge:
        """Return the graph of a definition as this build may have it.

        Args:
            definition: Of a frontend, or of a step that builds (``BuildOp``).
            rules: Source rules of this solve alone.
            renamed: Receives the digests of converted ops: those in the definition, by the new.

        Raises:
            SourceDeniedError: a source may not be used.
            EntitlementError: a step needs a privilege that the build does not have.
            BoxwrightError: it is malformed, or needs what this engine does not have.
        """
        ops = decode(definition)
        changes = await self._policy.apply(ops, rules or SourceRules(), self._meta_for_policy)
        if renamed is not None:
            renamed.update(changes)
        edge = assemble(ops, capabilities=frozenset(capabilities.LLB_CAPS))
        entitlements.check_graph(edge, self._granted, self._devices)
        return edge

    async def _run_frontend(self, spec: SolveSpec, scope: RequestScope) -> FrontendResult:
        # Not at start: see boxwright.engine.preload.
        from boxwright.dockerfile import frontend as dockerfile_frontend

        options = dict(spec.options or {})
        if spec.frontend == GATEWAY_FRONTEND:
            return await self._run_image(options.get("source", ""), spec, options, scope)
        if spec.frontend != DOCKERFILE_FRONTEND:
            raise InvalidInputError(f"invalid frontend: {spec.frontend}", hint="use dockerfile.v0")
        self.frontends.add(f"built in, {__version__}", options)
        run = _FrontendRun(self, options, dict(spec.inputs or {}), spec.rules, scope)
        try:
            made = await dockerfile_frontend.build(run)
            return run.finish(made)
        finally:
            await run.close()

    async def _run_image(
        self, source: str, spec: SolveSpec, options: Mapping[str, str], scope: RequestScope
    ) -> FrontendResult:
        """Run the frontend in an image, as a container with a gateway of its own."""
        # Not at start, and not while this module is being imported: it needs the gateway.
        from boxwright.engine import frontendimage
        from boxwright.engine.gateway import GatewayBridge

        if not source:
            raise InvalidInputError("no source specified for gateway", hint="add --opt source=…")
        inputs = dict(spec.inputs or {})

        async def solve(definition: ops_pb2.Definition) -> LazyRef | None:
            asked = SolveSpec(definition=definition, rules=spec.rules)
            return (await self.solve(asked, scope)).ref

        asking = _FrontendRun(self, dict(options), inputs, spec.rules, scope)
        frontend = await frontendimage.load_frontend(asking, source, solve)
        self.frontends.add(frontend.name, options)
        gateway = GatewayBridge(self, inputs, rules=spec.rules, scope=scope)
        try:
            frontendimage.check_capabilities(frontend, options, has_inputs=bool(inputs))
            container = frontendimage.FrontendContainer(
                self.containers,
                frontend,
                gateway,
                options=options,
                session_id=self.session_id,
                worker=self.worker,
            )
            return await container.run()
        finally:
            await gateway.close()
            await frontend.tree.release()

    # --- what frontends call -----------------------------------------------------------------

    async def resolve_image_config(
        self,
        ref: str,
        *,
        platform: Platform | None,
        resolve_mode: str,
        log_name: str,
        store: frontend_api.OciStore | None = None,
        rules: SourceRules | None = None,
        scope: RequestScope | None = None,
    ) -> frontend_api.ResolvedImage:
        """Resolve an image, or what the policy has in its place.

        Raises:
            SourceDeniedError: the build may not use it.
            BoxwrightError: it can't be resolved.
        """
        op = ops_pb2.SourceOp(identifier=(_LAYOUT_SCHEME if store else _IMAGE_SCHEME) + ref)
        if store is not None:
            op.attrs["oci.session"], op.attrs["oci.store"] = store.session_id, store.store_id
        request = gateway_pb2.ResolveSourceMetaRequest(
            Source=op, ResolveMode=resolve_mode, LogName=log_name
        )
        if platform is not None:
            request.Platform.CopyFrom(platform_to_pb(platform))
        with named(f"failed to resolve source metadata for {ref}"):
            answer = await self.resolve_source_meta(request, rules, scope)
        name = answer.Source.identifier.partition("://")[2]
        if answer.Source.identifier.startswith(_IMAGE_SCHEME):
            name = str(Reference.parse(name).with_default_tag())
        if not answer.HasField("Image"):
            raise frontend_api.NotAnImageError(ref, answer.Source.identifier)
        digest = Digest(answer.Image.Digest) if answer.Image.Digest else None
        return frontend_api.ResolvedImage(name, digest, answer.Image.Config)

    async def resolve_source_meta(
        self,
        request: gateway_pb2.ResolveSourceMetaRequest,
        rules: SourceRules | None = None,
        scope: RequestScope | None = None,
    ) -> gateway_pb2.ResolveSourceMetaResponse:
        """Resolve a source, or what the policy has in its place (``ResolveSourceMeta``).

        Raises:
            SourceDeniedError: the build may not use it.
            UnimplementedError: nothing can be told about sources of its kind.
        """
        answer = await self._resolve_meta(request, rules, self._meta_for_policy)
        if answer.HasField("Image"):
            scheme, _, ref = answer.Source.identifier.partition("://")
            platform = platform_from_pb(request.Platform) if request.HasField("Platform") else None
            (scope or self.scope).images.append(
                ImageMaterial(ref, platform, answer.Image.Digest, scheme != "docker-image")
            )
        return answer

    async def _meta_for_policy(
        self, request: gateway_pb2.ResolveSourceMetaRequest
    ) -> gateway_pb2.ResolveSourceMetaResponse:
        """Answer a question of the client's policy, which is not asked about it again."""
        return await self._resolve_meta(request, None, None)

    async def _resolve_meta(
        self,
        request: gateway_pb2.ResolveSourceMetaRequest,
        rules: SourceRules | None,
        resolve: MetaResolver | None,
    ) -> gateway_pb2.ResolveSourceMetaResponse:
        response = gateway_pb2.ResolveSourceMetaResponse(Source=request.Source)
        source = response.Source
        platform = request.Platform if request.HasField("Platform") else None
        await self._policy.check(source, platform, resolve, rules)
        scheme = source.identifier.partition("://")[0]
        if scheme in {"docker-image", "oci-layout"}:
            response.Image.CopyFrom(await self._image_meta(request, source))
        elif scheme in {"git", "http", "https"}:
            wanted = request.HTTP.ChecksumRequest
            question = SourceQuestion(
                source,
                git_object=request.Git.ReturnObject,
                http_checksum=wanted if request.HTTP.HasField("ChecksumRequest") else None,
            )
            found = await self._resolve_source(question, log_name=request.LogName)
            fill_response(response, found, wanted.Suffix)
        elif scheme != "local" and scheme not in BLOB_SCHEMES:
            raise UnimplementedError(f"metadata of {scheme} sources is not supported")
        return response

    async def _image_meta(
        self, request: gateway_pb2.ResolveSourceMetaRequest, source: ops_pb2.SourceOp
    ) -> gateway_pb2.ResolveSourceImageResponse:
        """Return an image's digest and what is wanted of its config and attestations."""
        response = gateway_pb2.ResolveSourceImageResponse()
        scheme, _, ref = source.identifier.partition("://")
        platform = platform_from_pb(request.Platform) if request.HasField("Platform") else None
        log_name = request.LogName or f"resolve image config for {request.Source.identifier}"
        wanted, is_layout = request.Image, scheme == "oci-layout"
        wants_chain = wanted.AttestationChain or bool(wanted.ResolveAttestations)
        if is_layout or not (wanted.NoConfig and wants_chain):
            store = source.attrs.get("oci.store", "")
            _, digest, config = await self._image_config(
                ref,
                platform=platform,
                resolve_mode=request.ResolveMode,
                log_name=log_name,
                store=frontend_api.OciStore(source.attrs.get("oci.session", ""), store)
                if is_layout
                else None,
            )
            response.Digest = digest or ""
            response.Config = b"" if wanted.NoConfig else config
            if digest is not None and not is_layout:  # both are to be of one image
                ref = str(Reference.parse(ref).with_digest(digest))
        if wants_chain and not is_layout:
            question = ChainQuestion(
                ref, platform or Platform.host(), frozenset(wanted.ResolveAttestations)
            )
            with step(self._stream, self._clock, log_name, identity=f"{log_name}{platform}"):
                root, chain = await self._images.attestation_chain(
                    question, resolve_mode=request.ResolveMode, sessions=(self.session_id,)
                )
            response.Digest = root
            response.AttestationChain.CopyFrom(chain.to_pb())
        return response

    async def _image_config(
        self,
        ref: str,
        *,
        platform: Platform | None,
        resolve_mode: str,
        log_name: str,
        store: frontend_api.OciStore | None = None,
    ) -> tuple[str, Digest | None, bytes]:
        name = log_name or f"resolve image config for {ref}"
        identity = f"{ref}{platform or Platform.host()}"
        with step(self._stream, self._clock, name, identity=identity):
            return await self._images.resolve_config(
                ref,
                platform=platform,
                resolve_mode=resolve_mode,
                sessions=(self.session_id,),
                store=store,
            )

    async def resolve_source(
        self, question: SourceQuestion, *, log_name: str, rules: SourceRules | None = None
    ) -> GitMetadata | HttpAnswerMetadata:
        """Resolve a git or http source, or what the policy has in its place."""
        op = ops_pb2.SourceOp()
        op.CopyFrom(question.op)
        await self._policy.check(op, None, self._meta_for_policy, rules)
        return await self._resolve_source(replace(question, op=op), log_name=log_name)

    async def _resolve_source(
        self, question: SourceQuestion, *, log_name: str
    ) -> GitMetadata | HttpAnswerMetadata:
        identifier = question.op.identifier
        name = log_name or f"resolve source metadata for {identifier}"
        with step(self._stream, self._clock, name, identity=f"{name}{identifier}") as shown:
            return await self._source_metadata.resolve(question, self.job, self.session_id, shown)

    def warn(self, warning: WarningEvent) -> None:
        """Show a warning."""
        self._stream.write(warning)

    def announce(self, name: str) -> None:
        """Show a step that is done as soon as it is named."""
        with step(self._stream, self._clock, name):
            pass


class _FrontendRun:
    """The built-in frontend's :class:`FrontendBridge`: one run of it in one build."""

    def __init__(
        self,
        bridge: BuildBridge,
        options: dict[str, str],
        inputs: dict[str, ops_pb2.Definition],
        rules: SourceRules,
        scope: RequestScope,
    ) -> None:
        self._bridge = bridge
        self._rules = rules
        self._scope = scope
        self._open: list[LazyRef] = []
        self._forwarded: dict[str, list[ResultAttestation]] = {}
        self._inputs = inputs
        self.opts: Mapping[str, str] = options
        self.session_id = bridge.session_id
        self.worker_platforms: Sequence[Platform] = bridge.worker_platforms
        self.llb_caps = frozenset(capabilities.LLB_CAPS)

    async def solve(
        self,
        definition: ops_pb2.Definition,
        *,
        evaluate: bool = False,
        cache_imports: Sequence[frontend_api.CacheImport] = (),
    ) -> frontend_api.FrontendRef | None:
        entries = [CacheEntry(item.type, item.attrs) for item in cache_imports]
        result = await self._bridge.solve(
            SolveSpec(
                definition=definition,
                evaluate=evaluate,
                cache_imports=entries,
                rules=self._rules,
            ),
            self._scope,
        )
        if result.ref is None:
            return None
        self._open.append(result.ref)
        return EngineRef(result.ref)

    async def resolve_image_config(
        self,
        ref: str,
        *,
        platform: Platform | None,
        resolve_mode: str,
        log_name: str,
        store: frontend_api.OciStore | None = None,
    ) -> frontend_api.ResolvedImage:
        return await self._bridge.resolve_image_config(
            ref,
            platform=platform,
            resolve_mode=resolve_mode,
            log_name=log_name,
            store=store,
            rules=self._rules,
            scope=self._scope,
        )

    async def forward(self, source: str, opts: Mapping[str, str]) -> frontend_api.FrontendResult:
        spec = SolveSpec(
            frontend=GATEWAY_FRONTEND,
            options={**opts, "source": source},
            inputs=self._inputs,
            rules=self._rules,
        )
        made = await self._bridge.solve(spec, self._scope)
        single = EngineRef(made.ref) if made.ref else None
        refs = {key: EngineRef(ref) if ref else None for key, ref in (made.refs or {}).items()}
        result = frontend_api.FrontendResult(single, dict(refs), dict(made.metadata))
        self._forwarded = made.attestations
        return result

    async def resolve_source_metadata(
        self,
        op: ops_pb2.SourceOp,
        *,
        log_name: str,
        return_object: bool = False,
    ) -> frontend_api.SourceMetadata:
        if not op.identifier.startswith(("git://", "http://", "https://")):
            return frontend_api.SourceMetadata()
        question = SourceQuestion(op, git_object=return_object)
        found = await self._bridge.resolve_source(question, log_name=log_name, rules=self._rules)
        if isinstance(found, GitMetadata):
            git = frontend_api.GitMetadata(commit_object=found.commit_object)
            return frontend_api.SourceMetadata(git=git)
        modified = found.found.modified
        if modified is None:
            return frontend_api.SourceMetadata()
        seconds = int(modified.timestamp())
        return frontend_api.SourceMetadata(http_last_modified_ns=seconds * 1_000_000_000)

    async def inputs(self) -> Mapping[str, ops_pb2.Definition]:
        for name, definition in self._inputs.items():
            if not definition.ByteSize():
                raise InvalidInputError(
                    "invalid nil input definition to definition op", detail=f"input {name!r}"
                )
        return self._inputs

    async def announce(self, name: str) -> None:
        self._bridge.announce(name)

    async def warn(
        self,
        vertex: str,
        message: str,
        *,
        level: int = 1,
        detail: Sequence[bytes] = (),
        url: str = "",
        source: ops_pb2.SourceInfo | None = None,
        ranges: Sequence[ops_pb2.Range] = (),
    ) -> None:
        self._bridge.warn(
            WarningEvent(
                Digest(vertex),
                level,
                message.encode(),
                tuple(detail),
                url,
                source.filename if source else "",
                source.data if source else b"",
                tuple(source_range(r) for r in ranges),
                source.language if source else "",
                definition_of(source) if source else b"",
            )
        )

    def finish(self, made: frontend_api.FrontendResult) -> FrontendResult:
        """Take the frontend's refs over."""

        def unwrap(ref: frontend_api.FrontendRef | None) -> LazyRef | None:
            assert ref is None or isinstance(ref, EngineRef)
            return ref.lazy if ref else None

        refs = {key: unwrap(ref) for key, ref in made.refs.items()} if made.refs else None
        single = None if refs is not None else unwrap(made.ref)
        attestations = self._forwarded or from_frontend(made.scans, unwrap)
        found = FrontendResult(single, refs, dict(made.metadata), attestations)
        taken = found.all_refs()
        self._open = [ref for ref in self._open if ref not in taken]
        return found

    async def close(self) -> None:
        """Release what was only read, such as the Dockerfile's own folder."""
        for ref in self._open:
            await ref.release()


def source_range(message: ops_pb2.Range) -> SourceRange:
    """Return a range of a source file as progress carries it."""
    return SourceRange(
        message.start.line, message.start.character, message.end.line, message.end.character
    )


def definition_of(info: ops_pb2.SourceInfo) -> bytes:
    """Return what a source file was read from as progress carries it; empty if that is not said."""
    return info.definition.SerializeToString() if info.HasField("definition") else b""


class EngineRef:
    """A build result as a frontend sees it: a tree to read from."""

    def __init__(self, lazy: LazyRef) -> None:
        self.lazy = lazy

    async def read_file(self, path: str, *, offset: int = 0, length: int = 0) -> bytes:
        """Return the bytes of a file; see :func:`reffiles.read_file`."""
        return await with_tree(self.lazy, reffiles.read_file, path, offset=offset, length=length)

    async def read_dir(self, path: str, include: str = "") -> list[fsutil_pb2.Stat]:
        """Return a folder's entries; see :func:`reffiles.read_dir`."""
        return await with_tree(self.lazy, reffiles.read_dir, path, include)

    async def stat_file(self, path: str) -> fsutil_pb2.Stat:
        """Return what a path is; see :func:`reffiles.stat_file`."""
        return await with_tree(self.lazy, reffiles.stat_file, path)


async def with_tree(
    lazy: LazyRef,
    read: Callable[Concatenate[Path, str, P], R],
    path: str,
    *args: P.args,
    **kwargs: P.kwargs,
) -> R:
    """Call a function of :mod:`reffiles` on the tree of a result, in a worker thread."""
    snapshot = await lazy.snapshot()
    if snapshot is None:  # a result of nothing is an empty folder
        return await to_worker(partial(_read_empty, read, path, *args, **kwargs))
    async with snapshot.mounted() as root:
        return await to_worker(read, root, path, *args, **kwargs)


def _read_empty(
    read: Callable[Concatenate[Path, str, P], R], path: str, *args: P.args, **kwargs: P.kwargs
) -> R:
    with tempfile.TemporaryDirectory(prefix="boxwright-empty-") as root:
        return read(Path(root), path, *args, **kwargs)
