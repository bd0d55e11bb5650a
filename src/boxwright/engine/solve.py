"""From a Solve request to its response: frontend, evaluation, exports, record."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from sqlite3 import Cursor
from typing import TYPE_CHECKING, Any

from boxwright.core import onbehalf
from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.core.workers import to_worker
from boxwright.engine import systemusage
from boxwright.engine.attestations import Documents, Wanted, add_sbom, exported
from boxwright.engine.bridge import BuildBridge, SolveSpec, as_run
from boxwright.engine.build import Build, evaluate, snapshots_of
from boxwright.engine.cacheio import CacheExports, CacheImports
from boxwright.engine.containers import ContainerHost
from boxwright.engine.earlylayers import EarlyLayers
from boxwright.engine.entitlements import enabled_by, granted
from boxwright.engine.gateway import GatewayBridge
from boxwright.engine.history import History
from boxwright.engine.keyrecords import KeyRecord, KeyRecords
from boxwright.engine.parallel import gather_or_cancel, to_the_end
from boxwright.engine.policycheck import SourcePolicy, rules_of
from boxwright.engine.provenance import Provenance, RequestScope
from boxwright.engine.push import Pusher
from boxwright.engine.recorder import MEDIA_TYPE, StatusRecorder
from boxwright.engine.resultcheck import platform_warnings
from boxwright.engine.results import FrontendResult
from boxwright.engine.sessionexports import outputs_done, wanted_outputs
from boxwright.engine.status import timestamp
from boxwright.errors import BoxwrightError, InvalidInputError, UnimplementedError
from boxwright.exporters import resolve_exporter
from boxwright.exporters.attached import PREDICATE_TYPE
from boxwright.exporters.attestation import PREDICATE_SLSA_1
from boxwright.exporters.base import (
    ExportContext,
    Exporter,
    ExportResult,
    ExportSource,
    InlineCache,
)
from boxwright.oci import mediatypes
from boxwright.progress.events import WarningEvent
from boxwright.progress.step import StepProgress, step
from boxwright.remotecache.attributes import CacheEntry, CacheExport, Place, read_exports
from boxwright.remotecache.snapshotlayers import DamagedCacheError
from boxwright.solver.jobs import Job
from boxwright.store.leases import Lease
from boxwright.wire import errdetails
from boxwright.wire.pb import control_pb2, explain_pb2
from boxwright.wire.status import to_pb, to_rpc_error

if TYPE_CHECKING:
    from boxwright.engine.engine import Engine

_log = logging.getLogger(__name__)

_InlineFor = Callable[[Exporter, StepProgress], InlineCache]
_ERROR_TYPE = "application/vnd.googeapis.google.rpc.status+proto"  # misspelt on the wire
_EPOCH_ARG = "build-arg:SOURCE_DATE_EPOCH"
_LAST_DATE_S = 253_402_300_799  # year 9999
_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]+\Z")


class SolveRun:
    """Runs one build. Everything it opens is closed when :meth:`run` returns or raises."""

    def __init__(self, engine: Engine, build: Build) -> None:
        self._engine = engine
        self._build = build
        self._request = build.request
        self._warnings: list[str] = []
        self._cache_reports: list[explain_pb2.ExportState] = []
        self._wanted = Wanted()
        self._samples: list[dict[str, Any]] = []
        self._record: control_pb2.BuildHistoryRecord | None = None
        self._documents: Documents | None = None
        self._write_documents: Callable[[], Awaitable[dict[str, bytes]]] | None = None
        self._kept: dict[Digest, bytes] = {}
        self._started_ns = engine.clock.now_ns()

    async def run(self) -> control_pb2.SolveResponse:
        """Return the response of the exporters.

        Raises:
            BoxwrightError: of whatever failed first.
        """
        request, engine = self._request, self._engine
        onbehalf.work_for(lambda: (request.Session,))
        _translate_legacy(request)
        _refuse_unsupported(request)
        exporters = [
            resolve_exporter(item.Type, self._attributes(item)) for item in request.Exporters
        ]
        cache_exports = read_exports(
            [CacheEntry(item.Type, dict(item.Attrs)) for item in request.Cache.Exports]
        )
        rules = rules_of([request.SourcePolicy] if request.HasField("SourcePolicy") else [])
        entitled = granted(request.Entitlements, enabled_by(engine.settings.config))
        self._wanted = Wanted.of(request.FrontendAttrs)
        await self._sample()
        scope = RequestScope(
            root=as_run(
                SolveSpec(
                    frontend=request.Frontend,
                    options=dict(request.FrontendAttrs),
                    inputs=dict(request.FrontendInputs),
                )
            )
        )
        bridge = BuildBridge(
            self._new_job(),
            self._build.stream,
            engine.clock,
            engine.parts.images,
            engine.parts.source_metadata,
            session_id=request.Session,
            granted=entitled,
            devices=engine.parts.executor.devices,
            worker_platforms=engine.platforms,
            containers=ContainerHost(
                engine.parts.executor,
                engine.parts.mount_world,
                engine.sessions.group([request.Session]),
                entitled,
            ),
            worker=engine.worker_record(),
            policy=SourcePolicy(rules, engine.sessions, request.SourcePolicySession),
            imports=CacheImports(engine.parts, self._build.stream, engine.clock, request.Session),
            scope=scope,
            provenance=Provenance(scope, engine.parts.requests),
        )
        if self._build.client_runs_frontend:
            self._build.set_gateway(GatewayBridge(bridge, dict(request.FrontendInputs)))
        record = self._record = self._start_record()
        response: dict[str, str] = {}
        failure: BaseException | None = None
        try:
            response = await self._solve_twice(bridge, exporters, cache_exports)
        except BaseException as exc:
            failure = exc
            raise
        finally:
            # A client that leaves and a daemon that stops may both cancel this one call.
            await to_the_end(self._end(bridge, record, response, failure))
        return control_pb2.SolveResponse(ExporterResponse=response)

    async def _sample(self) -> None:
        """Note what the machine is doing at the beginning, for documents that tell it."""
        wanted = self._wanted.provenance
        if wanted is not None and wanted.with_usage and wanted.with_steps:
            self._samples.append(await to_worker(systemusage.sample, self._started_ns))

    def _new_job(self) -> Job:
        return self._engine.parts.solver.new_job(
            self._request.Ref, session_id=self._request.Session, stream=self._build.stream
        )

    async def _solve_twice(
        self,
        bridge: BuildBridge,
        exporters: list[Exporter],
        cache_exports: list[CacheExport],
    ) -> dict[str, str]:
        """Solve and export; once more if an imported cache turns out to be damaged.

        A client that runs the frontend itself must begin again itself.
        """
        try:
            return await self._solve_and_export(bridge, exporters, cache_exports)
        except DamagedCacheError as error:
            if self._build.gateway is not None:
                raise
            _log.warning("build %s begins again: %s", self._request.Ref, error)
        await bridge.job.discard()
        bridge.begin_again(self._new_job())
        return await self._solve_and_export(bridge, exporters, cache_exports)

    def _attributes(self, exporter: control_pb2.Exporter) -> dict[str, str]:
        attributes = dict(exporter.Attrs)
        epoch = self._request.FrontendAttrs.get(_EPOCH_ARG, "")
        # Otherwise it is the name of a context, whose date the frontend finds out.
        if _WHOLE_NUMBER.match(epoch) and "source-date-epoch" not in attributes:
            attributes["source-date-epoch"] = epoch
        return attributes

    async def _solve_and_export(
        self,
        bridge: BuildBridge,
        exporters: list[Exporter],
        cache_exports: list[CacheExport],
    ) -> dict[str, str]:
        parts = self._engine.parts
        early = EarlyLayers(parts.store, parts.early_slots, exporters, cache_exports)
        result = await self._build.run_frontend(bridge)
        try:
            early.expect(result)
            bridge.job.watch = early.completed
            await evaluate(result)
            await early.finish()
            await self._attest(bridge, result)
            exporters = [*exporters, *await self._client_exporters(result)]
            response = await self._export(result, exporters, cache_exports)
            await self._remember(result)
        finally:
            bridge.job.watch = None
            await early.close()
            await result.release()
        for key, value in result.metadata.items():
            if key.startswith("frontend."):
                response[key] = value.decode("utf-8", "replace")
        if self._request.EnableSessionExporter:
            await outputs_done(self._engine.sessions, self._request.Session, response)
        if self._build.client_runs_frontend:
            return response  # it has the answer of a subrequest already
        for key in ("result.json", "result.txt", "result.statuscode"):
            if key in result.metadata:
                response[key] = result.metadata[key].decode("utf-8", "replace")
        return response

    async def _client_exporters(self, result: FrontendResult) -> list[Exporter]:
        """Return the outputs that the client chooses, now that there is a result."""
        if not self._request.EnableSessionExporter:
            return []
        found = await wanted_outputs(
            self._engine.sessions, self._request.Session, result, self._build.gateway
        )
        return [resolve_exporter(item.type, dict(item.attributes)) for item in found]

    def _date_s(self) -> int:
        """Return the date of documents about the result: the epoch that is asked for, or now."""
        epoch = self._request.FrontendAttrs.get(_EPOCH_ARG, "")
        if not _WHOLE_NUMBER.match(epoch):
            return self._started_ns // 1_000_000_000
        return min(max(int(epoch), 0), _LAST_DATE_S)

    async def _attest(self, bridge: BuildBridge, result: FrontendResult) -> None:
        """Add the attestations that the request asks for."""
        assert bridge.provenance is not None
        self._documents = Documents(
            bridge.provenance,
            bridge.job,
            self._started_ns,
            self._engine.clock,
            self._engine.builder_facts,
            self._samples,
        )
        if self._wanted.sbom is not None:
            options = self._request.FrontendAttrs
            await add_sbom(bridge, result, self._wanted.sbom, options)
        if self._wanted.provenance is not None:
            self._documents.add(result, self._wanted.provenance)

    async def _export(
        self,
        result: FrontendResult,
        exporters: list[Exporter],
        cache_exports: list[CacheExport],
    ) -> dict[str, str]:
        warnings = platform_warnings(
            self._request.FrontendAttrs,
            result.metadata,
            len(result.all_refs()),
            is_map=bool(result.refs),
        )
        if warnings and not exporters:
            with step(self._build.stream, self._engine.clock, "Verifying build result") as shown:
                self._warn(shown, warnings)
        if not exporters and not cache_exports:
            return {}
        self._warnings = warnings
        single, many = await snapshots_of(result)
        attestations = await exported(result, self._date_s())
        source = ExportSource(single, many, result.metadata, attestations)
        lease = await to_worker(self._engine.parts.store.leases.create)
        engine = self._engine
        caches = CacheExports(
            engine.parts, self._build.stream, engine.clock, self._request.Session, lease
        )
        self._cache_reports = caches.reports
        inline = None
        if any(item.place is Place.INLINE for item in cache_exports):
            inline = partial(caches.inline, result)
        try:
            response = await self._export_all(source, exporters, lease, inline)
            response.update(await caches.run(cache_exports, result))
            return response
        finally:
            await to_worker(lease.release)

    async def _export_all(
        self,
        source: ExportSource,
        exporters: list[Exporter],
        lease: Lease,
        inline: _InlineFor | None,
    ) -> dict[str, str]:
        response: dict[str, str] = {}
        results: list[ExportResult] = []
        for number, exporter in enumerate(exporters):
            results.append(await self._export_one(source, exporter, number, lease, inline))
            response.update(results[-1].response)
            self._note_image(number, results[-1].descriptor)
        pending = [
            self._finalize(exporter, number, result.finalize)
            for number, (exporter, result) in enumerate(zip(exporters, results, strict=True))
            if result.finalize is not None
        ]
        await gather_or_cancel(pending)
        return response

    async def _finalize(
        self, exporter: Exporter, number: int, finalize: Callable[[], Awaitable[None]]
    ) -> None:
        """Run the rest of an export (a push), shown as the same step again."""
        identity = self._export_identity(number)
        with step(self._build.stream, self._engine.clock, exporter.name, identity=identity):
            await finalize()

    def _export_identity(self, number: int) -> str:
        return f"{self._request.Session}-export-{number}"

    async def _export_one(
        self,
        source: ExportSource,
        exporter: Exporter,
        number: int,
        lease: Lease,
        inline: _InlineFor | None,
    ) -> ExportResult:
        engine, session_id = self._engine, self._request.Session
        identity = self._export_identity(number)
        with step(self._build.stream, engine.clock, exporter.name, identity=identity) as shown:
            context = ExportContext(
                store=engine.parts.store,
                sessions=engine.sessions,
                session_id=session_id,
                step=shown,
                lease=lease,
                exporter_id=number,
                push=Pusher(
                    engine.parts.store,
                    engine.parts.registry_clients,
                    (session_id,),
                    engine.clock,
                ),
                inline_cache=inline(exporter, shown) if inline is not None else None,
                clock=engine.clock,
            )
            self._warn(shown, self._warnings)
            self._warnings = []
            return await exporter.export(source, context)

    def _warn(self, shown: StepProgress, warnings: Iterable[str]) -> None:
        for text in warnings:
            self._build.stream.write(WarningEvent(shown.digest, 0, text.encode()))

    # --- the record --------------------------------------------------------------------------

    def _note_image(self, number: int, image: Descriptor | None) -> None:
        """Note the image that an output has made in the record."""
        if self._record is None or image is None:
            return
        found = control_pb2.Descriptor(
            digest=image.digest,
            size=image.size,
            media_type=image.media_type,
            annotations=dict(image.annotations),
        )
        info = self._record.Result
        if not info.Results:
            info.ResultDeprecated.CopyFrom(found)
        info.Results[number].CopyFrom(found)

    async def _remember(self, result: FrontendResult) -> None:
        """Note what the results were made from, for the record of the build."""
        keeps = self._engine.settings.keeps_provenance
        if self._record is None or self._documents is None or not keeps:
            return
        wanted = self._wanted.provenance
        builder = wanted.builder_id if wanted is not None else ""
        self._write_documents = await self._documents.for_record(result, builder)

    async def _add_documents(self, record: control_pb2.BuildHistoryRecord) -> None:
        """Add the provenance of the results; a document that is lost loses no record."""
        if self._write_documents is None:
            return
        try:
            documents = await self._write_documents()
        except Exception:  # noqa: BLE001 - the build has its answer
            _log.exception("the provenance of build %s is lost", record.Ref)
            return
        for key, data in documents.items():
            info = record.Results[key] if key else record.Result
            digest = Digest.of(data)
            self._kept[digest] = data
            info.Attestations.add(
                digest=digest,
                size=len(data),
                media_type=mediatypes.IN_TOTO,
                annotations={PREDICATE_TYPE: PREDICATE_SLSA_1},
            )

    def _start_record(self) -> control_pb2.BuildHistoryRecord | None:
        if self._request.Internal:
            return None
        record = control_pb2.BuildHistoryRecord(
            Ref=self._request.Ref,
            Frontend=self._request.Frontend,
            FrontendAttrs=dict(self._request.FrontendAttrs),
            Exporters=self._request.Exporters,
        )
        record.CreatedAt.CopyFrom(timestamp(self._engine.clock.now_ns()))
        folder = self._engine.parts.store.root / "run"
        self._build.start_recording(StatusRecorder(folder, self._engine.log_quota_bytes))
        self._engine.history.started(record)
        return record

    async def _end(
        self,
        bridge: BuildBridge,
        record: control_pb2.BuildHistoryRecord | None,
        response: dict[str, str],
        failure: BaseException | None,
    ) -> None:
        if self._build.gateway is not None:
            await self._build.gateway.close()
        keys = await self._keys(bridge) if record is not None else None
        await bridge.close()
        bridge.job.finish_progress()
        await self._build.finish_recording()
        if record is None or self._build.recorder is None:
            return
        record.CompletedAt.CopyFrom(timestamp(self._engine.clock.now_ns()))
        record.ExporterResponse.update(response)
        total, completed, cached = self._build.step_counts()
        record.numTotalSteps = total
        record.numCompletedSteps = completed
        record.numCachedSteps = cached
        record.numWarnings = len(self._build.stream.warnings)
        if failure is not None:
            self._set_error(record, failure)
        self._engine.history.write_later(
            record.Ref, self._keep(record, self._build.recorder, keys)
        )

    async def _keep(
        self,
        record: control_pb2.BuildHistoryRecord,
        recorder: StatusRecorder,
        keys: KeyRecord | None,
    ) -> None:
        """Store the record. The client has its answer; whoever asks for records waits."""
        await self._add_documents(record)
        try:
            digest, size = await to_worker(recorder.publish, self._engine.parts.store.blobs)
            record.logs.media_type = MEDIA_TYPE
            record.logs.digest = digest
            record.logs.size = size
            await self._engine.history.completed(
                record, partial(_save_more, record, keys, self._kept)
            )
        except BoxwrightError as exc:
            # A full disk must not hide why the build failed, nor fail one that succeeded.
            _log.error("the record of build %s is lost: %s", record.Ref, exc)

    def _set_error(self, record: control_pb2.BuildHistoryRecord, failure: BaseException) -> None:
        """Note how the build failed; the details are a document, as they may be long."""
        # Not at start: most builds succeed.
        from boxwright.engine.errorstack import stacks_of

        status = to_pb(to_rpc_error(failure))
        status.details.extend(map(errdetails.pack, stacks_of(failure)))
        data = status.SerializeToString()
        digest = Digest.of(data)
        self._kept[digest] = data
        record.error.code, record.error.message = status.code, status.message
        record.externalError.CopyFrom(
            control_pb2.Descriptor(digest=digest, size=len(data), media_type=_ERROR_TYPE)
        )

    async def _keys(self, bridge: BuildBridge) -> KeyRecord | None:
        """Return what the keys of the build's steps were made of; a lost one fails no build."""
        imports = bridge.cache_imports
        sessions = self._engine.sessions.sessions
        shared = (each.shared_key for each in sessions if each.id == self._request.Session)
        try:
            kept = await self._engine.parts.keys.collect(
                bridge.job,
                bridge.frontends,
                imports.states() if imports is not None else [],
                next(shared, ""),
            )
            kept.add_times(self._build.stream.vertices)
            kept.keys.exports.extend(self._cache_reports)
        except Exception:  # noqa: BLE001 - an explanation must not cost a build its end
            _log.exception("what build %s was made of is lost", self._request.Ref)
            return None
        else:
            return kept


def _save_more(
    record: control_pb2.BuildHistoryRecord,
    keys: KeyRecord | None,
    documents: Mapping[Digest, bytes],
    cursor: Cursor,
) -> None:
    History.save_documents(cursor, record.Ref, documents)
    if keys is not None:
        KeyRecords.save(cursor, record.Ref, record.CreatedAt.ToNanoseconds(), keys)


def _translate_legacy(request: control_pb2.SolveRequest) -> None:
    """Turn the request's old single exporter and caches into lists."""
    if request.ExporterDeprecated and not request.Exporters:
        request.Exporters.add(
            Type=request.ExporterDeprecated, Attrs=dict(request.ExporterAttrsDeprecated)
        )
    cache = request.Cache
    if cache.ExportRefDeprecated:
        attrs = {**cache.ExportAttrsDeprecated, "ref": cache.ExportRefDeprecated}
        cache.Exports.add(Type="registry", Attrs=attrs)
    for ref in cache.ImportRefsDeprecated:
        cache.Imports.add(Type="registry", Attrs={"ref": ref})


def _refuse_unsupported(request: control_pb2.SolveRequest) -> None:
    """Refuse what would be left out silently otherwise.

    Raises:
        UnimplementedError: a proxy network is asked for.
        InvalidInputError: definition and frontend together.
    """
    if request.ProxyNetwork:
        raise UnimplementedError("the proxy network is not supported yet")
    if request.HasField("Definition") and request.Frontend:
        raise InvalidInputError("cannot solve with both Definition and Frontend specified")
