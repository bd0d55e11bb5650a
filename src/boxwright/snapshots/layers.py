"""The layers of a snapshot as blobs: made once, in one pass, and found again.

For each layer: changes → tar → sha256 (diff id) → compression → sha256 (digest) → blob store,
all in one streaming pass on a worker thread, compression on threads of its own. What a layer
became is noted with the snapshot under a *variant* that names compressor, version and
options, so the second export of a layer does nothing, and an equal layer has an equal digest
whatever was exported before.

Layers that came from a registry keep their blob; with ``force`` they are recompressed from
it, never from the unpacked tree, as their diff id must not change.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Sequence
from typing import Self

from boxwright.core.dataclass import dataclass, replace
from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.core.workers import to_worker
from boxwright.fsutil.compress import (
    Compression,
    Compressor,
    compressor_version,
    open_compressor,
    open_decompressor,
)
from boxwright.fsutil.estargz import (
    TOC_DIGEST,
    UNCOMPRESSED_SIZE,
    EstargzCompressor,
    EstargzTarWriter,
)
from boxwright.fsutil.pipeline import HashThread, SinkThread
from boxwright.fsutil.tar import TarReader, TarWriter
from boxwright.oci import mediatypes
from boxwright.oci.annotations import COMPRESSOR, UNCOMPRESSED
from boxwright.snapshots.diff import changes
from boxwright.snapshots.errors import LayerMissingError
from boxwright.snapshots.layertar import write_changes
from boxwright.snapshots.manager import (
    SOURCE_VARIANT,
    WHOLE_PREFIX,
    SnapshotManager,
)
from boxwright.snapshots.refs import ImmutableRef, Layer, LayerTree
from boxwright.store import BlobNotFoundError, Lease, Store

_log = logging.getLogger(__name__)

# upstream leaves this one in manifests, so equal manifests need it
REWRITTEN = "buildkit/rewritten-timestamp"
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class LayerForm:
    """In which form an output wants the layers of a snapshot; see :func:`ensure_blobs`."""

    compression: Compression
    epoch_s: int | None = None
    keep_diff_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ExportedLayer:
    """One layer as an image has it; its blob is in the store unless it was to be lazy.

    Attributes:
        descriptor: the blob; ``containerd.io/uncompressed`` in its annotations is ``diff_id``.
        diff_id: digest of the uncompressed archive.
        description: what made the layer.
        created_ns: when, nanoseconds since the epoch.
        snapshot_id: whose layer it is.
    """

    descriptor: Descriptor
    diff_id: Digest
    description: str = ""
    created_ns: int = 0
    snapshot_id: str = ""


async def ensure_blobs(
    ref: ImmutableRef,
    *,
    store: Store,
    compression: Compression,
    lease: Lease | None = None,
    epoch_s: int | None = None,
    keep_diff_ids: Sequence[str] = (),
    on_layer: Callable[[Layer], None] | None = None,
    lazy: bool = False,
    hurry: threading.Event | None = None,
) -> list[ExportedLayer]:
    """Return the layers of ``ref`` from the base up, making and fetching what is missing.

    Args:
        ref: the snapshot.
        store: where blobs go.
        compression: of layers that were made here, and with ``force`` of all.
        lease: keeps the blobs.
        epoch_s: no file time in a layer may be later (``rewrite-timestamp``).
        keep_diff_ids: diff ids of the base image; as long as layers agree with them from the
            base up, their times are left alone.
        on_layer: called for every layer that is ready.
        lazy: image layers that stay as they are need not be in the store; ``fetch_layer``
            of the manager brings them when they are wanted.
        hurry: until it is set nobody waits for the layers: they are made one at a time and
            yield to other work.

    Raises:
        LayerMissingError: the blob of an image layer can no longer be fetched.
        DiskFullError: there is no room.
    """
    layers = await ref.layers()
    kept = 0
    while kept < min(len(layers), len(keep_diff_ids)):
        if layers[kept].diff_id != keep_diff_ids[kept]:
            break
        kept += 1
    limit = asyncio.Semaphore(1 if hurry is not None else os.cpu_count() or 1)

    async def one(index: int, layer: Layer) -> ExportedLayer:
        limit_s = None if index < kept else epoch_s
        job = _LayerJob(ref.manager, store, layer, compression, limit_s, lazy=lazy, hurry=hurry)
        async with limit:
            exported = await job.run()
        here = not lazy or store.blobs.stat(exported.descriptor.digest) is not None
        if lease is not None and here:
            await to_worker(lease.add_blob, exported.descriptor.digest)
        if on_layer is not None:
            on_layer(layer)
        return exported

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(*item)) for item in enumerate(layers)]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


class _Stopped(Exception):  # noqa: N818  # not an error: the caller was cancelled
    """Ends the work of a thread whose caller was cancelled."""


class _LayerJob:
    """Finds or makes the blob of one layer in one form."""

    def __init__(
        self,
        manager: SnapshotManager,
        store: Store,
        layer: Layer,
        compression: Compression,
        epoch_s: int | None,
        *,
        lazy: bool = False,
        hurry: threading.Event | None = None,
    ) -> None:
        self._lazy = lazy
        self._hurry = hurry
        self._manager = manager
        self._store = store
        self._layer = layer
        self._compression = compression
        self._epoch_s = epoch_s
        self._stop = threading.Event()
        suffix = "" if epoch_s is None else f"@{epoch_s}"
        prefix = WHOLE_PREFIX if layer.is_whole else ""
        self._variant = prefix + compressor_version(compression) + suffix

    async def run(self) -> ExportedLayer:
        source = self._layer.blobs.get(SOURCE_VARIANT)
        if source is not None and self._fits(source):
            return await self._from_source(source)
        # One export at a time makes it; the others then find it.
        async with self._manager.layer_locks((self._layer.snapshot_id, self._variant)):
            found = await self._find()
            if found is not None:
                return found
            if source is not None:
                await self._fetch(source)
                return await self._note(await self._work(self._convert, source))
            async with self._manager.layer_tree(
                self._layer.snapshot_id, is_whole=self._layer.is_whole
            ) as tree:
                return await self._note(await self._work(self._make, tree))

    def _fits(self, source: Descriptor) -> bool:
        """Return whether an image layer may stay as it is."""
        if self._epoch_s is not None:
            return False
        if not self._compression.force or not mediatypes.is_layer(source.media_type):
            return True
        kind = mediatypes.layer_compression(source.media_type)
        if TOC_DIGEST in source.annotations:
            kind = "estargz"
        return kind == self._compression.algorithm

    async def _from_source(self, source: Descriptor) -> ExportedLayer:
        if not self._lazy:
            await self._fetch(source)
        diff_id = self._layer.diff_id
        if diff_id is None:
            raise LayerMissingError(source.digest)
        annotations = {**source.annotations, UNCOMPRESSED: str(diff_id)}
        return self._exported(replace(source, annotations=annotations), diff_id)

    async def _fetch(self, source: Descriptor) -> None:
        if self._store.blobs.stat(source.digest) is None:
            await self._manager.fetch_layer(self._layer.snapshot_id)

    async def _find(self) -> ExportedLayer | None:
        found = await self._manager.get_blob(self._layer.snapshot_id, self._variant)
        if found is None:
            return None
        diff_id = found.annotations.get(UNCOMPRESSED)
        return self._exported(found, Digest(diff_id)) if diff_id else None

    async def _note(self, made: ExportedLayer) -> ExportedLayer:
        own_archive = self._compression.algorithm != "estargz"
        if self._epoch_s is None and not self._layer.is_whole and own_archive:
            await self._manager.set_blob(
                self._layer.snapshot_id, made.descriptor, made.diff_id, self._variant
            )
        else:
            # The layer's own diff id is that of its unchanged times, of its folder only, and
            # without a table of contents.
            self._manager.table.add_blob(self._layer.snapshot_id, self._variant, made.descriptor)
        return made

    def _exported(self, descriptor: Descriptor, diff_id: Digest) -> ExportedLayer:
        layer = self._layer
        return ExportedLayer(
            descriptor, diff_id, layer.description, layer.created_ns, layer.snapshot_id
        )

    async def _work(
        self, function: Callable[[LayerTree | Descriptor], ExportedLayer], argument: object
    ) -> ExportedLayer:
        """Run ``function`` in a worker; when cancelled, end it at its next piece of data."""
        task = asyncio.ensure_future(to_worker(function, argument))  # type: ignore[arg-type]
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self._stop.set()
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()
            raise

    # -- in a worker -----------------------------------------------------------------

    def _make(self, tree: LayerTree | Descriptor) -> ExportedLayer:
        assert isinstance(tree, LayerTree)

        def fill(tar: TarWriter) -> None:
            write_changes(tar, changes(tree), tree.upper, epoch_s=self._epoch_s)

        return self._write(fill)

    def _convert(self, source: LayerTree | Descriptor) -> ExportedLayer:
        """Recompress a blob, with times cut off if that is wanted."""
        assert isinstance(source, Descriptor)
        try:
            file = self._store.blobs.open(source.digest)
        except BlobNotFoundError as error:
            raise LayerMissingError(source.digest) from error
        with file:
            _, plain = open_decompressor(file)
            to_estargz = self._compression.algorithm == "estargz"
            if self._epoch_s is None and not to_estargz:
                return self._write_bytes(plain.read)
            reader, limit = TarReader(plain), self._epoch_s

            def fill(tar: TarWriter) -> None:
                for entry in reader:
                    if limit is not None and entry.mtime >= limit:
                        entry.mtime, entry.mtime_nsec = limit, 0
                    tar.add_header(entry)
                    size = 0
                    for piece in reader.chunks():
                        tar.write(bytes(piece))
                        size += len(piece)
                    tar.end_content(size)
                reader.drain()

            return self._write(fill)

    def _pipe(self) -> _BlobPipe:
        return _BlobPipe(
            self._store,
            self._compression,
            self._epoch_s,
            self._stop,
            hurry=self._hurry,
        )

    def _write_bytes(self, read: Callable[[int], bytes]) -> ExportedLayer:
        with self._pipe() as pipe:
            while data := read(_CHUNK):
                pipe.write(data)
            return self._exported(*pipe.commit())

    def _write(self, fill: Callable[[TarWriter], None]) -> ExportedLayer:
        with self._pipe() as pipe:
            tar = pipe.archive()
            fill(tar)
            tar.close()
            return self._exported(*pipe.commit())


class _BlobPipe:
    """Uncompressed bytes in, a blob out."""

    def __init__(
        self,
        store: Store,
        compression: Compression,
        epoch_s: int | None,
        stop: threading.Event,
        *,
        hurry: threading.Event | None,
    ) -> None:
        self._compression = compression
        self._epoch_s = epoch_s
        self._stop = stop
        self._writer = store.blobs.writer()
        # uncompressed, the writer's own digest is the diff id
        self._hash = None if compression.algorithm == "uncompressed" else HashThread()
        self._staged = SinkThread(self._writer.write)
        self._compressor: Compressor | EstargzCompressor
        if compression.algorithm == "estargz":
            self._compressor = EstargzCompressor(compression, self._staged.write, hurry=hurry)
        else:
            self._compressor = open_compressor(compression, self._staged.write, hurry=hurry)

    def __enter__(self) -> Self:
        self._staged.__enter__()
        if self._hash is not None:
            self._hash.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self._hash is not None:
            self._hash.__exit__()
        self._staged.__exit__()
        self._writer.abort()

    def archive(self) -> TarWriter:
        """Return what writes the layer's archive into this."""
        if isinstance(self._compressor, EstargzCompressor):
            return EstargzTarWriter(self.write, self._compressor)
        return TarWriter(self.write)

    def write(self, data: bytes) -> None:
        if self._stop.is_set():
            raise _Stopped
        if self._hash is not None:
            self._hash.write(data)
        self._compressor.write(data)

    def commit(self) -> tuple[Descriptor, Digest]:
        noted: dict[str, str] = {}
        if isinstance(self._compressor, EstargzCompressor):
            assert self._hash is not None
            self._hash.write(self._compressor.finish())
            noted[TOC_DIGEST] = str(self._compressor.toc_digest)
            noted[UNCOMPRESSED_SIZE] = str(self._compressor.uncompressed_size)
        else:
            self._compressor.close()
        self._staged.finish()
        labels = {COMPRESSOR: compressor_version(self._compression)}
        if self._hash is not None:
            labels[UNCOMPRESSED] = str(self._hash.digest())
        digest, size = self._writer.commit(labels)
        diff_id = Digest(labels.get(UNCOMPRESSED, digest))
        media_type = mediatypes.layer_media_type(self._compression.algorithm)
        annotations = {**noted, UNCOMPRESSED: str(diff_id)}
        if self._epoch_s is not None:
            annotations[REWRITTEN] = str(self._epoch_s)
        return Descriptor(media_type, digest, size, annotations), diff_id
