"""Whole images from place to place: what belongs to one, copying it, making an index of several."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence

from boxwright.client.imageplaces import ImagePlace, ImageTarget
from boxwright.core.dataclass import dataclass, field, replace
from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.core.platform import Platform
from boxwright.engine.parallel import gather_or_cancel
from boxwright.engine.verify import ImageGraph
from boxwright.errors import InvalidInputError, LimitExceededError, NotFoundError
from boxwright.exporters.attached import REFERENCE_DIGEST
from boxwright.oci import mediatypes
from boxwright.oci.annotations import REFERENCE_TYPE
from boxwright.oci.manifest import Index, Manifest

_PARALLEL = 4
_MAX_MANIFESTS = 10_000
_MAX_DEPTH = 8

OnBlob = Callable[[Descriptor], None]


@dataclass(slots=True)
class ImageTree:
    """An image with all manifests.

    Attributes:
        root: What the name stands for.
        bodies: Manifests by digest, children before those that name them.
        blobs: What they refer to, by digest, with the place that has it.
    """

    root: Descriptor
    bodies: dict[Digest, tuple[Descriptor, bytes]] = field(default_factory=dict)
    blobs: dict[Digest, tuple[Descriptor, ImagePlace]] = field(default_factory=dict)

    @property
    def graph(self) -> ImageGraph:
        """The image as pushes take it."""
        return ImageGraph(
            {digest: blob for digest, (blob, _) in self.blobs.items()},
            [descriptor for descriptor, _ in self.bodies.values()],
        )

    def entries(self) -> tuple[Descriptor, ...]:
        """Return the entries of the root, or the root itself if it is one image."""
        if not mediatypes.is_index(self.root.media_type):
            return (self.root,)
        return Index.decode(self.bodies[self.root.digest][1]).manifests


def is_attestation(entry: Descriptor) -> bool:
    """Return whether an entry of an index says something about another one."""
    return REFERENCE_TYPE in entry.annotations


async def read_tree(place: ImagePlace) -> ImageTree:
    """Return an image with all manifests, of all platforms.

    Raises:
        BoxwrightError: a manifest is not there or malformed.
        LimitExceededError: there are too many.
    """
    root, body = await place.manifest(None)
    tree = ImageTree(root)
    await _visit(tree, place, root, body, 0)
    return tree


async def _visit(
    tree: ImageTree, place: ImagePlace, descriptor: Descriptor, body: bytes, depth: int
) -> None:
    if len(tree.bodies) >= _MAX_MANIFESTS or depth > _MAX_DEPTH:
        raise LimitExceededError("the image has too many manifests", detail=place.name)
    if mediatypes.is_index(descriptor.media_type):
        for child in Index.decode(body).manifests:
            if child.digest not in tree.bodies:
                found, child_body = await place.manifest(child.digest)
                await _visit(tree, place, found, child_body, depth + 1)
    else:
        for blob in Manifest.decode(body).children():
            if not blob.urls:
                tree.blobs[blob.digest] = (blob, place)
    tree.bodies.setdefault(descriptor.digest, (descriptor, body))


def only_platforms(tree: ImageTree, wanted: Sequence[Platform]) -> ImageTree:
    """Return an image with only some of its platforms, and what is said about those.

    Raises:
        NotFoundError: it has none for one of them.
    """
    kept: list[Descriptor] = []
    entries = tree.entries()
    for platform in wanted:
        found = [e for e in entries if e.platform is not None and platform.matches(e.platform)]
        if not found:
            offered = ", ".join(str(e.platform) for e in entries if not is_attestation(e))
            raise NotFoundError(f"no image for {platform}", detail=f"there are: {offered}")
        kept += [entry for entry in found if entry not in kept]
    digests = {str(entry.digest) for entry in kept}
    kept += [e for e in entries if e.annotations.get(REFERENCE_DIGEST) in digests]
    old = Index.decode(tree.bodies[tree.root.digest][1])
    return _under_index([(tree, kept)], old.media_type, old.annotations)


def _under_index(
    parts: Sequence[tuple[ImageTree, Sequence[Descriptor]]],
    media_type: str,
    annotations: Mapping[str, str],
) -> ImageTree:
    """Return an index over entries of other images."""
    entries = [entry for _, kept in parts for entry in kept]
    body = Index(tuple(entries), media_type, annotations).encode()
    tree = ImageTree(Descriptor(media_type, Digest.of(body), len(body)))
    for part, kept in parts:
        for entry in kept:
            _take(tree, part, entry.digest)
    tree.bodies[tree.root.digest] = (tree.root, body)
    return tree


def _take(tree: ImageTree, source: ImageTree, digest: Digest) -> None:
    descriptor, body = source.bodies[digest]
    if mediatypes.is_index(descriptor.media_type):
        for child in Index.decode(body).manifests:
            _take(tree, source, child.digest)
    else:
        for blob in Manifest.decode(body).children():
            if blob.digest in source.blobs:
                tree.blobs[blob.digest] = source.blobs[blob.digest]
    tree.bodies.setdefault(digest, (descriptor, body))


async def combine(trees: Sequence[ImageTree], annotations: Mapping[str, str]) -> ImageTree:
    """Return one index of several images; a later one replaces an earlier of its platform.

    Raises:
        InvalidInputError: an image does not say which platform it is for.
    """
    chosen: dict[str, tuple[ImageTree, Descriptor]] = {}
    said: list[tuple[ImageTree, Descriptor]] = []
    for tree in trees:
        for entry in tree.entries():
            if is_attestation(entry):
                said.append((tree, entry))
                continue
            with_platform = await _with_platform(tree, entry)
            chosen[str(with_platform.platform)] = (tree, with_platform)
    kept = {str(entry.digest) for _, entry in chosen.values()}
    pairs = list(chosen.values())
    seen: set[Digest] = set()
    for tree, entry in said:
        if entry.annotations.get(REFERENCE_DIGEST) in kept and entry.digest not in seen:
            seen.add(entry.digest)
            pairs.append((tree, entry))
    parts = [(tree, [entry]) for tree, entry in pairs]
    return _under_index(parts, mediatypes.OCI_INDEX, dict(annotations))


async def _with_platform(tree: ImageTree, entry: Descriptor) -> Descriptor:
    """Return an entry with its platform, from the image's config if it has none."""
    if entry.platform is not None:
        return entry
    manifest = Manifest.decode(tree.bodies[entry.digest][1])
    blob, place = tree.blobs[manifest.config.digest]
    with await place.open(blob) as file:
        config = json.loads(file.read())
    platform = Platform.from_json(config) if isinstance(config, dict) else Platform("", "")
    if not platform.os or not platform.architecture:
        raise InvalidInputError(f"{place.name} does not say which platform it is for")
    return replace(entry, platform=platform.normalized(), annotations={})


async def copy(
    tree: ImageTree, targets: Sequence[ImageTarget], on_blob: OnBlob | None = None
) -> None:
    """Bring an image to one or more places; each is complete before it gets its name.

    Raises:
        BoxwrightError: of a place.
    """
    slots = asyncio.Semaphore(_PARALLEL)

    async def one(target: ImageTarget, blob: Descriptor, source: ImagePlace) -> None:
        async with slots:
            await target.put_blob(blob, source)
        if on_blob is not None:
            on_blob(blob)

    for target in targets:
        try:
            await gather_or_cancel(
                [one(target, blob, source) for blob, source in tree.blobs.values()]
            )
            for digest, (descriptor, body) in tree.bodies.items():
                await target.put_manifest(descriptor, body, is_root=digest == tree.root.digest)
            await target.finish(tree.root, tree.graph)
        finally:
            await target.close()
