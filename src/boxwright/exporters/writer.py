"""Make an image of a build result: layers, config, manifest and, for several platforms, index.

Invariant: the bytes of config, manifest and index depend on the result and the options only,
and equal upstream's for equal layers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence

from boxwright.core.dataclass import dataclass, replace
from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.core.gojson import time_text
from boxwright.core.platform import Platform
from boxwright.core.workers import to_worker
from boxwright.errors import InvalidInputError
from boxwright.exporters.annotations import Annotations
from boxwright.exporters.attached import attach
from boxwright.exporters.base import ExportContext, ExportSource, source_epoch
from boxwright.exporters.layernotes import LayerNotes
from boxwright.exporters.options import ImageOptions
from boxwright.oci import mediatypes
from boxwright.oci.annotations import without_internal
from boxwright.oci.image import Image
from boxwright.oci.manifest import Index, Manifest
from boxwright.oci.patch import (
    LayerMeta,
    default_config,
    normalize_history,
    parse_history,
    patch_config,
)
from boxwright.oci.platforms import BASE_CONFIG_KEY, CONFIG_KEY, ResultPlatform, metadata_value
from boxwright.snapshots.layerblobs import SnapshotBlobs
from boxwright.snapshots.layers import ExportedLayer, LayerForm, ensure_blobs
from boxwright.snapshots.refs import ImmutableRef

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CommittedImage:
    """An image whose documents are all in the store.

    Attributes:
        descriptor: its manifest or index, with what exporters report of it.
        config: digest of the config; None for an index.
        manifests: the image manifests in it by platform id, in order.
        absent: delivers the layers that are not in the store; None if all are.
    """

    descriptor: Descriptor
    config: Digest | None
    manifests: dict[str, Manifest]
    absent: SnapshotBlobs | None = None


async def commit_image(
    source: ExportSource, options: ImageOptions, context: ExportContext, *, lazy: bool = False
) -> CommittedImage:
    """Store everything that the image consists of.

    Args:
        source: what was built.
        options: what the image is to be like.
        context: where it goes.
        lazy: layers that nobody has read may stay where they are (``CommittedImage.absent``).

    Raises:
        InvalidInputError: result and options contradict each other.
        BoxwrightError: a layer could not be made or fetched.
    """
    platforms = source.platforms()
    # An image without an index takes what is for all platforms and ignores the rest, as upstream.
    known = [item.id for item in platforms] if source.is_map else None
    options.annotations.check(known, oci_types=options.uses_oci_types)
    caches = await context.inline_cache() if context.inline_cache is not None else {}
    with context.step.part("exporting layers"):
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(_layers(source, platform, options, context, lazy=lazy))
                    for platform in platforms
                ]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
    layers = [task.result() for task in tasks]
    image = await _write_documents(source, options, context, platforms, layers, caches)
    return replace(image, absent=_absent(source, layers, context)) if lazy else image


def _absent(
    source: ExportSource, images: Sequence[Sequence[ExportedLayer]], context: ExportContext
) -> SnapshotBlobs | None:
    owners = {
        layer.descriptor.digest: layer.snapshot_id
        for layers in images
        for layer in layers
        if context.store.blobs.stat(layer.descriptor.digest) is None
    }
    refs = [ref for ref in (source.ref, *source.refs.values()) if ref is not None]
    return SnapshotBlobs(refs[0].manager, owners) if owners else None


async def _write_documents(
    source: ExportSource,
    options: ImageOptions,
    context: ExportContext,
    platforms: Sequence[ResultPlatform],
    layers: Sequence[list[ExportedLayer]],
    caches: Mapping[str, bytes],
) -> CommittedImage:
    """Store what names the layers of each platform."""
    writer = _Writer(source, options, context)
    attests = any(
        options.inline_attestations or not item.inline_only
        for platform in platforms
        for item in source.attestations.get(platform.id, ())
    )
    if not source.is_map and not attests:
        return await writer.single(platforms[0], layers[0], caches.get(""))
    if source.attestations and not options.uses_oci_types:
        raise InvalidInputError(
            'cannot export attestations with "oci-mediatypes=false"',
            hint="build without attestations, or leave oci-mediatypes out",
        )
    images = [
        await writer.manifest(
            platform,
            own,
            options.annotations.for_platform(platform.platform),
            caches.get(platform.id if source.is_map else ""),
        )
        for platform, own in zip(platforms, layers, strict=True)
    ]
    attached = [
        await attach(
            image,
            attestations,
            names=options.name,
            artifact=options.uses_oci_artifact,
            put=writer.put,
            step=context.step,
            notes=_notes(source.find(platform), own),
        )
        for platform, (image, _), own in zip(platforms, images, layers, strict=True)
        if (attestations := source.attestations.get(platform.id))
    ]
    return await writer.index(platforms, images, attached)


def _notes(ref: ImmutableRef | None, layers: Sequence[ExportedLayer]) -> LayerNotes | None:
    return LayerNotes(ref, [layer.descriptor.digest for layer in layers]) if ref else None


async def _layers(
    source: ExportSource,
    platform: ResultPlatform,
    options: ImageOptions,
    context: ExportContext,
    *,
    lazy: bool,
) -> list[ExportedLayer]:
    ref = source.find(platform)
    if ref is None:
        return []
    form = layer_form(source, platform, options)
    if options.rewrite_timestamp and form.epoch_s is None:
        _log.warning("rewrite-timestamp is specified, but no source-date-epoch was found")
    return await ensure_blobs(
        ref,
        store=context.store,
        lease=context.lease,
        compression=form.compression,
        epoch_s=form.epoch_s,
        keep_diff_ids=form.keep_diff_ids,
        lazy=lazy,
    )


def layer_forms(source: ExportSource, options: ImageOptions) -> dict[str, LayerForm]:
    """Return the form of the layers of each ref; the id of a single one is empty.

    Raises:
        InvalidInputError: result and options contradict each other.
    """
    platforms = source.platforms()
    if not source.is_map:
        return {"": layer_form(source, platforms[0], options)}
    return {item.id: layer_form(source, item, options) for item in platforms}


def layer_form(source: ExportSource, platform: ResultPlatform, options: ImageOptions) -> LayerForm:
    """Return the form that the layers of one platform are to have.

    Raises:
        InvalidInputError: a malformed SOURCE_DATE_EPOCH or base config in the metadata.
    """
    if not options.rewrite_timestamp:
        return LayerForm(options.compression)
    base = _base_image(source, platform)
    keep = tuple(base.diff_ids or ()) if base is not None else ()
    return LayerForm(options.compression, _epoch(source, platform, options), keep)


def _epoch(
    source: ExportSource, platform: ResultPlatform | None, options: ImageOptions
) -> int | None:
    return options.epoch_s if options.epoch_set else source_epoch(source, platform)


def _base_image(source: ExportSource, platform: ResultPlatform) -> Image | None:
    raw = metadata_value(source.metadata, BASE_CONFIG_KEY, platform)
    return Image.decode(raw) if raw else None


class _Writer:
    """Writes the documents of one export."""

    def __init__(
        self, source: ExportSource, options: ImageOptions, context: ExportContext
    ) -> None:
        self._source = source
        self._options = options
        self._context = context
        self._oci = options.uses_oci_types

    async def single(
        self, platform: ResultPlatform, layers: list[ExportedLayer], cache: bytes | None
    ) -> CommittedImage:
        annotations = self._options.annotations.for_platform(None)
        if annotations.index or annotations.index_descriptor:
            raise InvalidInputError("index annotations not supported for single platform export")
        descriptor, manifest = await self.manifest(platform, layers, annotations, cache)
        return CommittedImage(descriptor, manifest.config.digest, {platform.id: manifest})

    async def manifest(
        self,
        platform: ResultPlatform,
        layers: list[ExportedLayer],
        annotations: Annotations,
        cache: bytes | None,
    ) -> tuple[Descriptor, Manifest]:
        config = self._config(platform, layers, cache)
        config_type = mediatypes.OCI_CONFIG if self._oci else mediatypes.DOCKER_CONFIG
        manifest = Manifest(
            config=Descriptor(config_type, Digest.of(config), len(config)),
            layers=tuple(self._layer(layer.descriptor) for layer in layers),
            media_type=mediatypes.OCI_MANIFEST if self._oci else mediatypes.DOCKER_MANIFEST,
            annotations=annotations.manifest,
        )
        data = manifest.encode()
        digest = Digest.of(data)
        children = [item.digest for item in manifest.children()]
        with self._context.step.part(f"exporting manifest {digest}"):
            await self.put(data, children)
        with self._context.step.part(f"exporting config {manifest.config.digest}"):
            await self.put(config, ())
        descriptor = Descriptor(
            manifest.media_type,
            digest,
            len(data),
            annotations=annotations.manifest_descriptor,
            platform=platform.platform,
        )
        return descriptor, manifest

    async def index(
        self,
        platforms: Sequence[ResultPlatform],
        images: Sequence[tuple[Descriptor, Manifest]],
        attached: Sequence[Descriptor],
    ) -> CommittedImage:
        annotations = self._options.annotations.for_platform(None)
        index = Index(
            manifests=(*(descriptor for descriptor, _ in images), *attached),
            media_type=mediatypes.OCI_INDEX if self._oci else mediatypes.DOCKER_LIST,
            annotations=annotations.index,
        )
        data = index.encode()
        digest = Digest.of(data)
        with self._context.step.part(f"exporting manifest list {digest}"):
            await self.put(data, [item.digest for item in index.manifests])
        descriptor = Descriptor(
            index.media_type, digest, len(data), annotations=annotations.index_descriptor
        )
        manifests = {
            platform.id: manifest
            for platform, (_, manifest) in zip(platforms, images, strict=True)
        }
        return CommittedImage(descriptor, None, manifests)

    def _config(
        self, platform: ResultPlatform, layers: list[ExportedLayer], cache: bytes | None
    ) -> bytes:
        config = metadata_value(self._source.metadata, CONFIG_KEY, platform)
        if not config:
            config = default_config(Platform.host())
        base = _base_image(self._source, platform)
        metas = [
            LayerMeta(layer.description or "created by buildkit", time_text(layer.created_ns))
            for layer in layers
        ]
        return patch_config(
            config,
            diff_ids=[layer.diff_id for layer in layers],
            history=normalize_history(parse_history(config), metas),
            epoch_s=_epoch(self._source, platform, self._options),
            base_history=base.history if base is not None else None,
            inline_cache=cache,
        )

    def _layer(self, descriptor: Descriptor) -> Descriptor:
        media_type = mediatypes.convert_layer(descriptor.media_type, oci=self._oci)
        if not self._options.prefer_nondist:
            media_type = mediatypes.distributable(media_type)
        kept = without_internal(descriptor.annotations) if self._oci else {}
        return replace(descriptor, media_type=media_type, annotations=kept)

    async def put(self, data: bytes, children: Sequence[Digest]) -> None:
        """Store a document that refers to ``children``."""
        await to_worker(_put, self._context, data, children)


def _put(context: ExportContext, data: bytes, children: Sequence[Digest]) -> None:
    """Store a document, under the export's lease, with the blobs that it refers to."""
    context.lease.add_blob(Digest.of(data))
    digest = context.store.blobs.put(data)
    if children:
        context.store.blobs.add_refs(digest, children)
