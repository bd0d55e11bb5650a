"""Read a remote cache: from a manifest to graphs of records. No layer is fetched."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from boxwright.core.dataclass import dataclass
from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.errors import BoxwrightError
from boxwright.oci import mediatypes
from boxwright.oci.annotations import CREATED, REFERENCE_TYPE, UNCOMPRESSED
from boxwright.oci.manifest import Index, Manifest, detect_media_type
from boxwright.remotecache.chains import Blob, BlobProvider, CacheChains, build_chains
from boxwright.remotecache.format import (
    CONFIG_MEDIA_TYPE,
    INLINE_KEY,
    MAX_CONFIG_BYTES,
    CacheConfig,
    CacheFormatError,
    CacheLayer,
    decode_inline,
)
from boxwright.remotecache.places import CacheSource

DESCRIPTION = "buildkit/description"
_MAX_MANIFESTS = 200
_MAX_DEPTH = 4


@dataclass(slots=True)
class _Found:
    """The config and layers of a cache that is one of its own, not inside an image."""

    config: Descriptor
    layers: list[Descriptor]


async def read_cache(
    source: CacheSource,
    provider: BlobProvider,
    *,
    on_root: Callable[[Digest, str], None] = lambda _digest, _kind: None,
) -> list[CacheChains]:
    """Return the graphs of a cache: one, or one for each image with an inline cache.

    Args:
        source: where the cache is.
        provider: delivers its layers later.
        on_root: told digest and media type of what was found; may raise.

    Raises:
        CacheFormatError: what is there is not a cache.
        BoxwrightError: it is not there, or the place can't be reached.
    """
    root, body = await source.manifest(None)
    kind = detect_media_type(body)
    on_root(root.digest, kind)
    found = _own_cache(kind, body)
    if found is None:
        return await _read_images(source, provider, kind, body)
    config = CacheConfig.decode(await read_blob(source, found.config))
    blobs = {layer.digest: Blob(layer, provider) for layer in found.layers}
    return [build_chains(config, blobs)]


def _own_cache(kind: str, body: bytes) -> _Found | None:
    if mediatypes.is_index(kind):
        items = Index.decode(body).manifests
        configs = [item for item in items if item.media_type == CONFIG_MEDIA_TYPE]
        layers = [item for item in items if item.media_type != CONFIG_MEDIA_TYPE]
        return _Found(configs[-1], layers) if configs else None
    if not mediatypes.is_manifest(kind):
        raise CacheFormatError("this is neither a cache nor an image", detail=kind[:200])
    manifest = Manifest.decode(body)
    if manifest.config.media_type != CONFIG_MEDIA_TYPE:
        return None
    return _Found(manifest.config, list(manifest.layers))


async def read_blob(source: CacheSource, descriptor: Descriptor) -> bytes:
    """Return a small blob, verified.

    Raises:
        CacheFormatError: it is too large or not what its digest says.
    """
    if descriptor.size > MAX_CONFIG_BYTES:
        raise CacheFormatError(
            "a blob of the cache is too large", detail=f"{descriptor.digest}: {descriptor.size}"
        )
    sink = _Memory(descriptor.size)
    await source.blob(descriptor, sink)
    if not descriptor.digest.matches(sink.data):
        raise CacheFormatError("a blob of the cache is damaged", detail=str(descriptor.digest))
    return bytes(sink.data)


class _Memory:
    def __init__(self, limit: int) -> None:
        self.data = bytearray()
        self._limit = limit

    async def write(self, data: bytes) -> None:
        self.data += data
        if len(self.data) > self._limit:
            raise CacheFormatError("a blob of the cache is larger than it says")


# --- inline --------------------------------------------------------------------------------


async def _read_images(
    source: CacheSource, provider: BlobProvider, kind: str, body: bytes
) -> list[CacheChains]:
    chains = []
    for manifest in await _image_manifests(source, kind, body):
        found = await _read_image(source, provider, manifest)
        if found is not None:
            chains.append(found)
    return chains


async def _image_manifests(source: CacheSource, kind: str, body: bytes) -> list[Manifest]:
    """Return the manifests of all images in an index, or of the only one."""
    found: list[Manifest] = []
    pending: list[tuple[str, bytes, int]] = [(kind, body, 0)]
    seen: set[Digest] = set()
    while pending:
        kind, body, depth = pending.pop()
        if mediatypes.is_manifest(kind):
            found.append(Manifest.decode(body))
            continue
        if not mediatypes.is_index(kind) or depth >= _MAX_DEPTH:
            continue
        for item in Index.decode(body).manifests:
            if item.digest in seen or REFERENCE_TYPE in item.annotations:
                continue
            seen.add(item.digest)
            if len(seen) > _MAX_MANIFESTS:
                raise CacheFormatError("the image index has too many manifests")
            child, child_body = await source.manifest(item.digest)
            pending.append((child.media_type or item.media_type, child_body, depth + 1))
    return found


async def _read_image(
    source: CacheSource, provider: BlobProvider, manifest: Manifest
) -> CacheChains | None:
    """Return the graph inside an image; None if it has none."""
    if not manifest.layers or not mediatypes.is_config(manifest.config.media_type):
        return None
    image = _object(await read_blob(source, manifest.config))
    text = image.get(INLINE_KEY)
    diff_ids = (image.get("rootfs") or {}).get("diff_ids") or []
    if not isinstance(text, str) or len(diff_ids) != len(manifest.layers):
        return None
    config = CacheConfig(records=decode_inline(text))
    blobs: dict[Digest, Blob] = {}
    for number, (layer, diff_id) in enumerate(zip(manifest.layers, diff_ids, strict=True)):
        noted = {**layer.annotations, UNCOMPRESSED: str(_digest(diff_id))}
        noted.update(_history_of(image, number))
        blobs[layer.digest] = Blob(
            Descriptor(layer.media_type, layer.digest, layer.size, noted, urls=layer.urls),
            provider,
        )
        config.layers.append(CacheLayer(layer.digest, number - 1))
    return build_chains(config, blobs)


def _history_of(image: dict[str, Any], number: int) -> Iterator[tuple[str, str]]:
    """Yield what the image says about one of its layers, as annotations."""
    history = image.get("history")
    if not isinstance(history, list):
        return
    entries = [h for h in history if isinstance(h, dict) and not h.get("empty_layer")]
    if number < len(entries):
        for key, annotation in (
            ("created", CREATED),
            ("created_by", DESCRIPTION),
        ):
            if isinstance(entries[number].get(key), str):
                yield annotation, entries[number][key]


def _digest(value: object) -> Digest:
    try:
        return Digest(str(value))
    except BoxwrightError as error:
        raise CacheFormatError("the image has a bad diff id", detail=str(error)) from None


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CacheFormatError("the image config is not JSON", detail=str(error)) from None
    if not isinstance(value, dict) or not isinstance(value.get("rootfs") or {}, dict):
        raise CacheFormatError("the image config is malformed")
    return value
