"""Images whose bytes are in this store, wholly or in part."""

from __future__ import annotations

from collections.abc import Mapping

from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.core.workers import to_worker
from boxwright.sources.fetch import AsyncSink, ImageRemote
from boxwright.sources.image import manifest_media_type
from boxwright.sources.registry import SOURCE_LABEL, origin_labels
from boxwright.store.errors import BlobNotFoundError
from boxwright.store.store import Store

_PIECE_BYTES = 1 << 20
_KEPT_CONFIG_BYTES = 1 << 20


class StoredImage:
    """An image that lies in this store under a tag (:class:`ImageRemote`)."""

    def __init__(self, store: Store, descriptor: Descriptor) -> None:
        self._store = store
        self._descriptor = descriptor

    @property
    def source_labels(self) -> Mapping[str, str]:
        """Nothing: the blobs are here."""
        return {}

    async def manifest(self, digest: Digest | None) -> tuple[Descriptor, bytes]:
        """Return the tag's root, or another manifest by digest."""
        if digest is None:
            body = await to_worker(self._store.blobs.read, self._descriptor.digest)
            return self._descriptor, body
        return await stored_manifest(self._store, digest)

    async def blob(self, descriptor: Descriptor, sink: AsyncSink) -> None:
        """Read a blob from the store."""
        with self._store.blobs.open(descriptor.digest) as file:
            while data := await to_worker(file.read, _PIECE_BYTES):
                await sink.write(data)


class KeptImage:
    """Another remote, whose manifests and configs are kept in the store and read from there.

    What is named by a digest never changes, so a repository is asked for it once: a pinned image
    that was used before under this name resolves without any network.
    """

    def __init__(self, store: Store, remote: ImageRemote) -> None:
        self._store = store
        self._remote = remote

    @property
    def source_labels(self) -> Mapping[str, str]:
        """Those of the remote."""
        return self._remote.source_labels

    async def manifest(self, digest: Digest | None) -> tuple[Descriptor, bytes]:
        """Return the remote's root, or another manifest, which may be here already."""
        if digest is not None and await to_worker(self._is_from_there, digest):
            try:
                return await stored_manifest(self._store, digest)
            except BlobNotFoundError:
                pass  # damaged, or collected a moment ago
        descriptor, body = await self._remote.manifest(digest)
        labels = {**self._remote.source_labels, **self._origin()}
        await to_worker(self._store.blobs.put, body, labels, expected=descriptor.digest)
        return descriptor, body

    def _origin(self) -> dict[str, str]:
        """Return the labels that say that a manifest was seen at the remote."""
        labels: dict[str, str] = {}
        for name, path in self._remote.source_labels.items():
            labels |= origin_labels(name.removeprefix(SOURCE_LABEL), path)
        return labels

    def _is_from_there(self, digest: Digest) -> bool:
        """Return whether a manifest is here because this remote had it.

        What only another repository had must be asked for: a name that does not exist, or that
        the client may not read, must not lead to an image.
        """
        try:
            return self._origin().items() <= self._store.blobs.labels(digest).items()
        except BlobNotFoundError:
            return False

    async def blob(self, descriptor: Descriptor, sink: AsyncSink) -> None:
        """Stream a blob; small ones (configs) are kept."""
        blobs = self._store.blobs
        if descriptor.size > _KEPT_CONFIG_BYTES:
            await self._remote.blob(descriptor, sink)
            return
        if await to_worker(blobs.stat, descriptor.digest) == descriptor.size:
            try:
                data = await to_worker(blobs.read, descriptor.digest)
            except BlobNotFoundError:
                pass
            else:
                await to_worker(blobs.touch, descriptor.digest)
                await sink.write(data)
                return
        copy = _Copy(sink)
        await self._remote.blob(descriptor, copy)
        if descriptor.digest.matches(copy.data):
            labels = dict(self._remote.source_labels)
            await to_worker(blobs.put, bytes(copy.data), labels, expected=descriptor.digest)


class _Copy:
    """Passes bytes on and remembers them."""

    def __init__(self, sink: AsyncSink) -> None:
        self._sink = sink
        self.data = bytearray()

    async def write(self, data: bytes) -> None:
        self.data += data
        await self._sink.write(data)


async def stored_manifest(store: Store, digest: Digest) -> tuple[Descriptor, bytes]:
    """Return a manifest that is in the store.

    Raises:
        BlobNotFoundError: it is not.
        MalformedImageError: it is no manifest.
    """
    body = await to_worker(store.blobs.read, digest)
    await to_worker(store.blobs.touch, digest)
    return Descriptor(manifest_media_type(body), digest, len(body)), body
