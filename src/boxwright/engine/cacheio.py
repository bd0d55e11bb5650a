"""Remote caches of one build: imports for its solves, exports of its result.

An import that fails is a step with an error, and the build goes on without it. An export that
fails fails the build, unless it says ``ignore-error``.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

from boxwright.core import gojson, onbehalf
from boxwright.core.clock import Clock
from boxwright.core.dataclass import dataclass, field
from boxwright.core.digest import Digest
from boxwright.engine.cachelayers import make_layers
from boxwright.engine.parts import Parts
from boxwright.engine.results import FrontendResult
from boxwright.errors import BoxwrightError
from boxwright.exporters.base import Exporter, InlineCache
from boxwright.fsutil.compress import Compression
from boxwright.oci.annotations import UNCOMPRESSED
from boxwright.ops.result import RefResult, ref_of
from boxwright.progress.step import StepProgress, step
from boxwright.progress.stream import ProgressStream
from boxwright.remotecache import reader
from boxwright.remotecache.attributes import (
    CacheEntry,
    CacheExport,
    CacheImport,
    Place,
    import_id,
    read_import,
)
from boxwright.remotecache.chains import CacheChains
from boxwright.remotecache.format import CacheFormatError
from boxwright.remotecache.inline import records_for_image
from boxwright.remotecache.keys import ImportedKeys
from boxwright.remotecache.places import CacheSource, CacheTarget, FolderCache, RegistryCache
from boxwright.remotecache.results import ImportedResults
from boxwright.remotecache.snapshotlayers import SourceBlobs, make_remote, open_layers
from boxwright.remotecache.writer import WrittenCache, write_cache
from boxwright.snapshots.refs import ImmutableRef
from boxwright.solver.cachemanager import LocalCacheManager
from boxwright.solver.exporter import ExportMode, ExportOptions, ExportWalk
from boxwright.solver.types import CachedResult, Remote, Result
from boxwright.store import trace
from boxwright.store.leases import Lease
from boxwright.wire.pb import explain_pb2

if TYPE_CHECKING:
    from boxwright.registry.client import RegistryClient

_log = logging.getLogger(__name__)


@dataclass
class _Import:
    """One import, resolved by whoever needs it first."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    managers: list[LocalCacheManager] | None = None
    error: str = ""


class CacheImports:
    """The imported caches of one build, each read once."""

    def __init__(
        self, parts: Parts, stream: ProgressStream, clock: Clock, session_id: str
    ) -> None:
        self._parts = parts
        self._stream = stream
        self._clock = clock
        self._session_id = session_id
        self._known: dict[str, _Import] = {}
        self._providers: list[SourceBlobs] = []

    async def managers(self, entries: Sequence[CacheEntry]) -> list[LocalCacheManager]:
        """Return the caches of those imports that can be read, in their order."""
        wanted = {import_id(entry): entry for entry in entries}
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._resolve(name, entry)) for name, entry in wanted.items()
            ]
        return [manager for task in tasks for manager in task.result()]

    def states(self) -> list[tuple[str, str]]:
        """Return the names of all imports that were asked for, with what made them useless."""
        return [(name, known.error) for name, known in self._known.items()]

    def forget(self) -> None:
        """Read all imports again when they are needed next."""
        self._known.clear()

    def close(self) -> None:
        """Give up what was imported and not read; the build has ended."""
        for provider in self._providers:
            provider.close()

    async def _resolve(self, name: str, entry: CacheEntry) -> list[LocalCacheManager]:
        known = self._known.setdefault(name, _Import())
        async with known.lock:
            if known.managers is None:
                known.managers = []  # one try for each build
                try:
                    known.managers = await self._read(name, entry)
                except BoxwrightError as error:
                    known.error = str(error)
                    _log.warning("cache import from %s is skipped: %s", name, error)
            return known.managers

    async def _read(self, name: str, entry: CacheEntry) -> list[LocalCacheManager]:
        with step(self._stream, self._clock, f"importing cache manifest from {name}") as shown:
            source = self._source(read_import(entry))
            provider = SourceBlobs(name, source, self._parts.fetcher, self._parts.snapshots)
            self._providers.append(provider)
            damaged = self._parts.damaged_caches

            def on_root(digest: Digest, kind: str) -> None:
                if digest in damaged:
                    raise CacheFormatError("this cache was found damaged", detail=digest)
                provider.on_damage = lambda: damaged.add(digest)
                with shown.part(f"inferred cache manifest type: {kind}"):
                    pass

            chains = await reader.read_cache(source, provider, on_root=on_root)
            trace.point("cache-import-read")
            return [
                self._manager(f"{name}#{number}" if number else name, name, graph)
                for number, graph in enumerate(chains)
            ]

    def _source(self, wanted: CacheImport) -> CacheSource:
        parts, sessions = self._parts, (self._session_id,)
        if wanted.ref is not None:
            return RegistryCache(
                wanted.ref, self._clients, sessions, parts.store, insecure=wanted.insecure
            )
        return FolderCache(
            parts.sessions, sessions, wanted.folder, parts.store, digest=wanted.digest
        )

    def _clients(self, session_ids: Sequence[str]) -> AbstractAsyncContextManager[RegistryClient]:
        """Log in as this build, or as those that want its layers when it has ended."""
        known = {each.id for each in self._parts.sessions.sessions}
        wanted = dict.fromkeys((*session_ids, *onbehalf.session_ids()))
        present = [each for each in wanted if each in known]
        return self._parts.registry_clients(present or session_ids)

    def _manager(self, manager_id: str, name: str, graph: CacheChains) -> LocalCacheManager:
        async def open_remote(remote: Remote) -> Result:
            return RefResult(
                await open_layers(
                    remote, self._parts.snapshots, description=f"imported from {name}"
                )
            )

        keys = ImportedKeys(graph)
        return LocalCacheManager(manager_id, keys, ImportedResults(keys, open_remote))


class CacheExports:
    """The cache exports of one build.

    Args:
        parts: of the engine.
        stream: progress of the build.
        clock: of the engine.
        session_id: whose logins and folders are used.
        lease: keeps what is made or fetched.
    """

    def __init__(
        self,
        parts: Parts,
        stream: ProgressStream,
        clock: Clock,
        session_id: str,
        lease: Lease,
    ) -> None:
        self._parts = parts
        self._stream = stream
        self._clock = clock
        self._session_id = session_id
        self._lease = lease
        self.reports: list[explain_pb2.ExportState] = []

    async def run(self, exports: Sequence[CacheExport], result: FrontendResult) -> dict[str, str]:
        """Make all exports that are places of their own and return their response.

        Raises:
            BoxwrightError: one failed that must not.
        """
        response: dict[str, str] = {}
        for number, export in enumerate(exports):
            if export.place is Place.INLINE:
                continue
            identity = f"{self._session_id}-cache-{number}"
            report = explain_pb2.ExportState(name=export.name)
            self.reports.append(report)
            began_ns = self._clock.now_ns()
            try:
                with step(self._stream, self._clock, export.name, identity=identity) as shown:
                    written = await self._run_one(export, result, shown)
                response.update(written.response)
                report.layers = written.layers
                report.sent_layers = written.sent_layers
                report.sent_bytes = written.sent_bytes
            except BoxwrightError as error:
                report.error = str(error)
                if not export.ignore_error:
                    raise
                _log.warning("%s failed, which the request ignores: %s", export.name, error)
            finally:
                report.took_ns = self._clock.now_ns() - began_ns
        return response

    async def _run_one(
        self, export: CacheExport, result: FrontendResult, shown: StepProgress
    ) -> WrittenCache:
        chains = CacheChains()
        with shown.part("preparing build cache for export"):
            walk = ExportWalk(chains)
            results = [await ref.result() for ref in result.all_refs()]
            store = self._parts.store
            await make_layers(results, store, export.compression, export.mode, self._lease)
            for each in results:
                await self._walk(walk, each, export.compression, export.mode)
        with shown.part("sending cache export"):
            return await write_cache(
                chains,
                self._target(export),
                shown,
                self._lease,
                oci_types=export.oci_types,
                image_manifest=export.image_manifest,
            )

    async def _walk(
        self, walk: ExportWalk, result: CachedResult, compression: Compression, mode: ExportMode
    ) -> None:
        if not result.cache_keys:
            return

        async def resolve_remotes(made: Result) -> list[Remote]:
            ref = ref_of(made)
            if ref is None:
                return []
            remote = await make_remote(ref, self._parts.store, compression, self._lease)
            return [remote] if remote.descriptors else []

        options = ExportOptions(resolve_remotes, mode, context=compression)
        await walk.export(result.cache_keys[0].exporter, options)

    def _target(self, export: CacheExport) -> CacheTarget:
        parts, sessions = self._parts, (self._session_id,)
        if export.ref is not None:
            return RegistryCache(
                export.ref,
                parts.registry_clients,
                sessions,
                parts.store,
                insecure=export.insecure,
            )
        return FolderCache(parts.sessions, sessions, export.folder, parts.store)

    # --- inline ----------------------------------------------------------------------------

    def inline(
        self, result: FrontendResult, exporter: Exporter, shown: StepProgress
    ) -> InlineCache:
        """Return what an image exporter calls for the caches to embed, by platform id."""

        async def make() -> dict[str, bytes]:
            options = getattr(exporter, "options", None)
            compression = getattr(options, "compression", None) or Compression()
            refs = result.refs if result.refs is not None else {"": result.ref}
            found: dict[str, bytes] = {}
            with shown.part("preparing layers for inline cache"):
                for key, ref in refs.items():
                    if ref is None:
                        continue
                    data = await self._inline(await ref.result(), compression)
                    if data is not None:
                        found[key] = data
            return found

        return make

    async def _inline(self, result: CachedResult, compression: Compression) -> bytes | None:
        snapshot = result.value
        if not isinstance(snapshot, ImmutableRef):
            return None
        remote = await make_remote(snapshot, self._parts.store, compression, self._lease)
        layers = [(d.digest, Digest(d.annotations[UNCOMPRESSED])) for d in remote.descriptors]
        chains = CacheChains()
        await self._walk(ExportWalk(chains), result, compression, ExportMode.MIN)
        records = records_for_image(chains, layers)
        if records is None:
            _log.warning("no step of the build has layers of the image: no inline cache")
            return None
        return gojson.encode(base64.b64encode(records).decode("ascii"))
