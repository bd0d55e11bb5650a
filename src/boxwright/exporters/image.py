"""The ``image`` output: an image in the store under its names, and pushed if asked for."""

from __future__ import annotations

import base64
import logging
from collections.abc import Mapping, Sequence

from boxwright.core import gojson
from boxwright.core.dataclass import dataclass, field, replace
from boxwright.core.descriptor import Descriptor
from boxwright.core.reference import Reference
from boxwright.core.workers import to_worker
from boxwright.errors import InvalidInputError, UnimplementedError
from boxwright.exporters.annotations import AnnotationSet
from boxwright.exporters.base import (
    CONFIG_DIGEST_KEY,
    DESCRIPTOR_KEY,
    DIGEST_KEY,
    NAME_KEY,
    ExportContext,
    ExportResult,
    ExportSource,
    parse_bool,
)
from boxwright.exporters.options import ImageOptions, check_names
from boxwright.exporters.writer import CommittedImage, commit_image, layer_forms
from boxwright.snapshots.layers import LayerForm
from boxwright.store import trace

_log = logging.getLogger(__name__)
_FLAGS = {
    "push": "push",
    "push-by-digest": "push_by_digest",
    "registry.insecure": "insecure",
    "unpack": "unpack",
    "store": "store",
    "danging-name-empty-only": "dangling_empty_only",
    "name-canonical": "name_canonical",
}


@dataclass(slots=True)
class ImageExporter:
    """One ``image`` output.

    Attributes:
        options: what all image outputs share.
        push: send the image to the registry of each name.
        push_by_digest: without writing a tag.
        insecure: plain HTTP and unverified TLS are allowed for the push.
        unpack: accepted; our store needs no unpacking.
        store: keep the image under its names. None is yes, unless a pushed image has layers
            that are in a registry only: they are not fetched just for that.
        dangling_prefix: also name the image ``PREFIX@DIGEST``.
        dangling_empty_only: but only if it has no other name.
        name_canonical: also name the image ``NAME@DIGEST``.
        metadata: attributes that are not ours; added to the frontend's metadata.
    """

    options: ImageOptions
    push: bool = False
    push_by_digest: bool = False
    insecure: bool = False
    unpack: bool = False
    store: bool | None = None
    dangling_prefix: str = ""
    dangling_empty_only: bool = False
    name_canonical: bool = False
    metadata: dict[str, str] = field(default_factory=dict)
    type: str = "image"
    name: str = "exporting to image"

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, str]) -> ImageExporter:
        """Read the attributes of an ``image`` output.

        Raises:
            InvalidInputError: a value is malformed.
        """
        options, rest = ImageOptions.take(attributes)
        options.inline_attestations = True
        exporter = cls(options)
        for key, attribute in _FLAGS.items():
            if key in rest:
                setattr(exporter, attribute, parse_bool(key, rest.pop(key), empty=True))
        if exporter.push:
            check_names(options.name, "push")
        exporter.dangling_prefix = rest.pop("dangling-name-prefix", "")
        exporter.metadata = rest
        return exporter

    def layer_forms(self, source: ExportSource) -> dict[str, LayerForm]:
        """Return in which form each platform's layers will be wanted.

        Raises:
            BoxwrightError: the result can't be exported with these attributes.
        """
        return layer_forms(*with_attributes(source, self.options, self.metadata))

    async def export(self, source: ExportSource, context: ExportContext) -> ExportResult:
        """Make the image, name it, and return how to push it.

        Raises:
            UnimplementedError: a push is wanted where nothing can push.
            BoxwrightError: the image could not be made.
        """
        if self.push and context.push is None:
            raise UnimplementedError("this builder can't push images")
        source, options = with_attributes(source, self.options, self.metadata)
        lazy = await self._may_be_lazy(source, context)
        image = await commit_image(source, options, context, lazy=lazy)
        trace.point("image-committed")
        names = self._names(source, image.descriptor)
        result = ExportResult(image_response(image), image.descriptor)
        if names:
            result.response[NAME_KEY] = ",".join(names)
        if image.absent is not None:
            if self.store is None and names:
                with context.step.part("not stored: has layers that only a registry has"):
                    _log.info("%s is not stored: store=true would", ",".join(names))
        elif self.store is not False:
            for name in (each for each in names if each != "*"):  # the frontend gave none
                await self._tag(name, image.descriptor, context)
        if self.push and names:
            result.finalize = lambda: self._push(names, image, context)
        return result

    async def _may_be_lazy(self, source: ExportSource, context: ExportContext) -> bool:
        """Return whether layers may stay in the registry that they would come from.

        A name that is stored already goes on to mean what was built last.
        """
        if self.store is not None or not self.push:
            return self.store is False
        names = [*filter(None, map(_full_name, image_names(source, self.options)))]
        return not await to_worker(lambda: any(map(context.store.images.get, names)))

    def _names(self, source: ExportSource, descriptor: Descriptor) -> list[str]:
        names = image_names(source, self.options)
        if self.dangling_prefix and not (self.dangling_empty_only and names):
            names.append(f"{self.dangling_prefix}@{descriptor.digest}")
        return names

    async def _tag(self, name: str, descriptor: Descriptor, context: ExportContext) -> None:
        full = _full_name(name)
        if full is None:
            with context.step.part(f"not stored: {name} is no name that an image could have"):
                return
        with context.step.part(f"naming to {name}"):
            await to_worker(context.store.images.set, full, descriptor)
            trace.point("image-named")
            if self.name_canonical and "@" not in name:
                pinned = f"{full}@{descriptor.digest}"
                await to_worker(context.store.images.set, pinned, descriptor)

    async def _push(
        self, names: Sequence[str], image: CommittedImage, context: ExportContext
    ) -> None:
        assert context.push is not None
        for name in names:
            await context.push.push(
                name,
                image.descriptor,
                insecure=self.insecure,
                by_digest=self.push_by_digest,
                step=context.step,
                absent=image.absent,
            )


def with_attributes(
    source: ExportSource, options: ImageOptions, attributes: Mapping[str, str]
) -> tuple[ExportSource, ImageOptions]:
    """Add attributes to the frontend's metadata, and the annotations in it to the options.

    Raises:
        InvalidInputError: the frontend sent a malformed annotation.
    """
    metadata = {**source.metadata, **{key: value.encode() for key, value in attributes.items()}}
    texts = {
        key: value.decode("utf-8", "replace")
        for key, value in metadata.items()
        if key.startswith("annotation")
    }
    found, _ = AnnotationSet.take(texts)
    return (
        replace(source, metadata=metadata),
        replace(options, annotations=options.annotations.merged(found)),
    )


def image_names(source: ExportSource, options: ImageOptions) -> list[str]:
    """Return the names that the image is to get, as they were written."""
    text = options.name
    if text == "*" and NAME_KEY in source.metadata:
        text = source.metadata[NAME_KEY].decode("utf-8", "replace")
    return [name for name in text.split(",") if name]


def image_response(image: CommittedImage) -> dict[str, str]:
    """Return what the client is told of an image."""
    encoded = gojson.encode(image.descriptor.to_json())
    response = {
        DIGEST_KEY: str(image.descriptor.digest),
        DESCRIPTOR_KEY: base64.b64encode(encoded).decode("ascii"),
    }
    if image.config is not None:
        response[CONFIG_DIGEST_KEY] = str(image.config)
    return response


def _full_name(name: str) -> str | None:
    """Return a name as the store keeps it; a dangling one that is no reference stays as it is.

    None is for others: upstream takes any text for a name that nothing is pushed under, and nothing
    could ask for the image by it.
    """
    try:
        return str(Reference.parse(name).with_default_tag())
    except InvalidInputError:
        return name if "@" in name else None
