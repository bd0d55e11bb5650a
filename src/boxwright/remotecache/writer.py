"""Write a remote cache: layers first, then the config, then the manifest that names them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from boxwright.core import gojson
from boxwright.core.dataclass import dataclass, field
from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.core.workers import to_worker
from boxwright.errors import BoxwrightError, Code, NotFoundError
from boxwright.oci import mediatypes
from boxwright.oci.manifest import Index, Manifest
from boxwright.progress.step import StepProgress
from boxwright.remotecache.chains import Blob, BlobLookup, CacheChains
from boxwright.remotecache.format import (
    CONFIG_MEDIA_TYPE,
    UPSTREAM_LIMIT_BYTES,
    CacheConfig,
)
from boxwright.remotecache.places import CacheTarget
from boxwright.store import trace
from boxwright.store.leases import Lease

_log = logging.getLogger(__name__)

MANIFEST_KEY = "cache.manifest"
_PARALLEL_LAYERS = 4
_GONE = frozenset((Code.NOT_FOUND, Code.SOURCE_NOT_FOUND, Code.DIGEST_MISMATCH))
"""What an error says of a layer that can't be had any more; others may be over the next time."""


@dataclass(slots=True)
class WrittenCache:
    """What an export did.

    Attributes:
        descriptor: the cache's root; None if there was nothing to export.
        layers: how many layers it has.
        sent_layers: how many of them were not there yet.
        sent_bytes: their size.
    """

    descriptor: Descriptor | None = None
    layers: int = 0
    sent_layers: int = 0
    sent_bytes: int = 0
    response: dict[str, str] = field(default_factory=dict)


async def write_cache(
    chains: CacheChains,
    target: CacheTarget,
    step: StepProgress,
    lease: Lease,
    *,
    oci_types: bool = True,
    image_manifest: bool = True,
) -> WrittenCache:
    """Write a graph of records with its layers; only what is new there is sent.

    A layer that can't be had any more (an import's that is gone or damaged) is left out with the
    results that consist of it.

    Raises:
        BoxwrightError: the place refused or can't be reached, a layer can't be made or fetched for
            another reason than that it is gone, or there is no room.
    """
    written = WrittenCache()
    config, layers = await _write_all_layers(chains, target, step, lease, written)
    if not layers:
        with step.part("skipping cache export for empty result"):
            _log.warning("no step of the build has layers: the cache export is empty")
        return written
    written.layers = len(layers)
    trace.point("cache-layers-written")
    document = await _write_config(config, target, step)
    trace.point("cache-config-written")
    descriptors = {blob.descriptor.digest: blob.descriptor for blob in layers}
    media_type, body = _manifest(
        # as often as the document: equal layers on different parents are several there
        [descriptors[layer.blob] for layer in config.layers],
        document,
        oci_types=oci_types,
        image_manifest=image_manifest,
    )
    root = Descriptor(media_type, Digest.of(body), len(body))
    kind = "cache image manifest" if image_manifest else "cache manifest"
    with step.part(f"writing {kind} {root.digest}"):
        await target.put_manifest(root, body)
    trace.point("cache-exported")
    written.descriptor = root
    written.response[MANIFEST_KEY] = gojson.dumps(root.to_json())
    cost = f"{written.sent_layers} of {written.layers} layers were new"
    with step.part(f"{cost}, {written.sent_bytes} bytes sent"):
        _log.info("cache export: %s, %d bytes sent", cost, written.sent_bytes)
    return written


async def _write_all_layers(
    chains: CacheChains,
    target: CacheTarget,
    step: StepProgress,
    lease: Lease,
    written: WrittenCache,
) -> tuple[CacheConfig, list[Blob]]:
    """Write the layers of a graph; return the document, and its layers without those lost."""
    lost: set[Digest] = set()
    done: set[Digest] = set()
    while True:
        config, blobs = await to_worker(chains.marshal, frozenset(lost))
        layers = [blobs[d] for d in dict.fromkeys(layer.blob for layer in config.layers)]
        fresh = [blob for blob in layers if blob.descriptor.digest not in done]
        found = await _write_layers(fresh, target, step, lease, written)
        done.update(blob.descriptor.digest for blob in fresh)
        if not found:
            return config, layers
        lost |= found


async def _write_layers(
    layers: list[Blob],
    target: CacheTarget,
    step: StepProgress,
    lease: Lease,
    written: WrittenCache,
) -> set[Digest]:
    """Write layers; return those that can't be had any more."""
    slots = asyncio.Semaphore(_PARALLEL_LAYERS)
    lost: set[Digest] = set()

    async def write(blob: Blob) -> None:
        descriptor = blob.descriptor

        async def ensure() -> None:
            try:
                await _fetch(blob)
            except BoxwrightError as error:
                if error.code in _GONE:
                    _log.warning("layer %s is not exported: %s", descriptor.digest, error)
                    lost.add(descriptor.digest)
                raise
            await to_worker(lease.add_blob, descriptor.digest)

        async with slots:
            label = f"writing layer {descriptor.digest}"
            with step.part(label):
                try:
                    is_new = await target.put_layer(
                        descriptor, ensure, _meter(step, label, descriptor), _origin(blob)
                    )
                except BoxwrightError:
                    if descriptor.digest not in lost:
                        raise
                    with step.part(f"layer {descriptor.digest} is gone: exporting without it"):
                        return
                if is_new:
                    written.sent_layers += 1
                    written.sent_bytes += descriptor.size

    try:
        async with asyncio.TaskGroup() as group:
            for blob in layers:
                group.create_task(write(blob))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return lost


def _origin(blob: Blob) -> Mapping[str, str]:
    return blob.provider.origin(blob.descriptor) if blob.provider is not None else {}


async def _fetch(blob: Blob) -> None:
    """Have a layer in the store; asked for first, as an import that fails is given up."""
    provider = blob.provider
    if provider is None:
        return
    if isinstance(provider, BlobLookup) and not await provider.is_there(blob.descriptor):
        raise NotFoundError("a layer of the cache is gone", detail=str(blob.descriptor.digest))
    await provider.ensure(blob.descriptor)


def _meter(step: StepProgress, label: str, descriptor: Descriptor) -> Callable[[int], None]:
    def on_progress(sent: int) -> None:
        step.status(label, current=sent, total=descriptor.size)

    return on_progress


async def _write_config(
    config: CacheConfig, target: CacheTarget, step: StepProgress
) -> Descriptor:
    data = await to_worker(config.encode)
    if len(data) > UPSTREAM_LIMIT_BYTES:
        _log.warning("the cache config has %d bytes: BuildKit reads up to 1 MiB", len(data))
    descriptor = Descriptor(CONFIG_MEDIA_TYPE, Digest.of(data), len(data))
    with step.part(f"writing config {descriptor.digest}"):
        await target.put_bytes(descriptor, data)
    return descriptor


def _manifest(
    layers: list[Descriptor], config: Descriptor, *, oci_types: bool, image_manifest: bool
) -> tuple[str, bytes]:
    """Return media type and bytes of the cache's root."""
    converted = tuple(
        Descriptor(
            mediatypes.convert_layer(layer.media_type, oci=oci_types),
            layer.digest,
            layer.size,
            layer.annotations,
        )
        for layer in layers
    )
    if image_manifest:
        manifest = Manifest(config, converted)
        return manifest.media_type, gojson.encode(manifest.to_json())
    media_type = mediatypes.OCI_INDEX if oci_types else mediatypes.DOCKER_LIST
    index = Index((*converted, config), media_type)
    return media_type, index.encode(indent=None)
