"""Bring a whole image from a registry into the store, under its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from boxwright.core.descriptor import Descriptor
from boxwright.core.platform import Platform
from boxwright.core.reference import Reference
from boxwright.core.workers import to_worker
from boxwright.engine.parallel import gather_or_cancel
from boxwright.engine.parts import Parts
from boxwright.oci.manifest import Manifest
from boxwright.sources.fetch import BlobFetcher
from boxwright.sources.image import resolve_manifest

OnBlob = Callable[[Descriptor], None]


async def pull(
    parts: Parts, name: str, platform: Platform | None = None, on_blob: OnBlob | None = None
) -> Descriptor:
    """Fetch the image for one platform and name it; return its manifest's descriptor.

    Everything is fetched and verified before the name is set. A lease keeps the blobs until
    then.

    Args:
        parts: of the engine.
        name: a tag or a digest of a registry.
        platform: which image of an index; this machine's by default.
        on_blob: told of each blob that has arrived.

    Raises:
        BoxwrightError: not found, unreachable, damaged, or no room.
    """
    ref = Reference.parse(name).with_default_tag()
    remote, root, body = await parts.images.open(ref, "pull", ())
    resolved = await resolve_manifest(
        remote, ref.familiar, root, body, platform or Platform.host()
    )
    _, manifest_body = await remote.manifest(resolved.manifest.digest)
    manifest = Manifest.decode(manifest_body)
    store = parts.store
    wanted = [manifest.config, *manifest.layers]
    fetcher = BlobFetcher(store.blobs)
    lease = await to_worker(store.leases.create)
    try:
        await to_worker(lease.add_blobs, [blob.digest for blob in wanted])

        async def fetch(blob: Descriptor) -> None:
            await fetcher.fetch(remote, blob)
            if on_blob is not None:
                on_blob(blob)

        await gather_or_cancel([fetch(blob) for blob in wanted])
        await to_worker(_name, parts, ref, resolved.manifest, manifest_body, wanted)
    finally:
        await to_worker(lease.release)
    return resolved.manifest


def _name(
    parts: Parts,
    ref: Reference,
    manifest: Descriptor,
    body: bytes,
    children: list[Descriptor],
) -> None:
    digest = parts.store.blobs.put(body, expected=manifest.digest)
    parts.store.blobs.add_refs(digest, [child.digest for child in children])
    parts.store.images.set(str(ref), replace(manifest, size=len(body)))
