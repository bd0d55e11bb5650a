"""Where caches are: repositories of registries, and folders that clients serve.

An object store would be one more pair of classes here: something with ``manifest`` and ``blob``
to read from, something with ``put_layer``, ``put_bytes`` and ``put_manifest`` to write to.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.core.reference import Reference
from boxwright.core.workers import to_worker
from boxwright.errors import BoxwrightError, UnimplementedError
from boxwright.oci.manifest import detect_media_type
from boxwright.remotecache.format import CacheFormatError
from boxwright.session.base import Session
from boxwright.session.manager import SessionManager
from boxwright.sources.fetch import AsyncSink
from boxwright.sources.registry import SOURCE_LABEL, Clients
from boxwright.store.store import Store

_CHUNK_BYTES = 1 << 20
_MANIFEST_LIMIT_BYTES = 8 << 20
Ensure = Callable[[], Awaitable[None]]


class CacheSource(Protocol):
    """A place that a cache is read from (an :class:`~boxwright.sources.image.ImageRemote`)."""

    async def manifest(self, digest: Digest | None) -> tuple[Descriptor, bytes]:
        """Return the cache's verified root, or a manifest in it.

        Raises:
            BoxwrightError: it is not there, or the place can't be reached.
        """
        ...

    async def blob(self, descriptor: Descriptor, sink: AsyncSink) -> None:
        """Stream a blob into ``sink``; its caller verifies the digest."""
        ...

    async def has(self, descriptor: Descriptor) -> bool:
        """Return whether a blob is there, without reading it."""
        ...

    @property
    def source_labels(self) -> Mapping[str, str]:
        """Labels for blobs that come from here."""
        ...


class CacheTarget(Protocol):
    """A place that a cache is written to."""

    async def put_layer(
        self,
        descriptor: Descriptor,
        ensure: Ensure,
        on_progress: Callable[[int], None],
        origin: Mapping[str, str],
    ) -> bool:
        """Write a layer unless it is there; return whether bytes were sent.

        Args:
            descriptor: the layer.
            ensure: brings the blob into the store, called only if bytes must be sent.
            origin: labels that say which repositories have the layer, if it is not here.
            on_progress: told of the bytes sent.
        """
        ...

    async def put_bytes(self, descriptor: Descriptor, data: bytes) -> None:
        """Write a small blob."""
        ...

    async def put_manifest(self, descriptor: Descriptor, data: bytes) -> None:
        """Write the root, last."""
        ...


class RegistryCache:
    """A cache under a tag of a registry, to read and to write."""

    def __init__(
        self,
        ref: Reference,
        clients: Clients,
        session_ids: Sequence[str],
        store: Store,
        *,
        insecure: bool = False,
    ) -> None:
        self._ref = ref
        self._clients = clients
        self._session_ids = tuple(session_ids)
        self._store = store
        self._insecure = True if insecure else None

    @property
    def source_labels(self) -> Mapping[str, str]:
        """Where blobs came from: a push to the same registry can mount them from there."""
        return {SOURCE_LABEL + self._ref.host: self._ref.path}

    async def manifest(self, digest: Digest | None) -> tuple[Descriptor, bytes]:
        """Fetch what the tag points at, or a manifest of the same repository."""
        ref = self._ref
        if digest is not None:
            ref = Reference(ref.host, ref.path, digest=digest)
        async with self._clients(self._session_ids) as client:
            return await client.fetch_manifest(ref, insecure=self._insecure)

    async def blob(self, descriptor: Descriptor, sink: AsyncSink) -> None:
        """Fetch a blob."""
        async with self._clients(self._session_ids) as client:
            await client.fetch_blob(self._ref, descriptor, sink, insecure=self._insecure)

    async def has(self, descriptor: Descriptor) -> bool:
        """Ask the registry for a blob, with the rights of one who pulls."""
        async with self._clients(self._session_ids) as client:
            return await client.has_blob(
                self._ref, descriptor.digest, insecure=self._insecure, push=False
            )

    async def put_layer(
        self,
        descriptor: Descriptor,
        ensure: Ensure,
        on_progress: Callable[[int], None],
        origin: Mapping[str, str],
    ) -> bool:
        """Upload a layer, mounted from another repository of the registry where possible."""
        labels = origin
        if self._store.blobs.stat(descriptor.digest) is not None:
            labels = self._store.blobs.labels(descriptor.digest)
        mount_from = labels.get(SOURCE_LABEL + self._ref.host, "")

        async def read() -> AsyncIterator[bytes]:
            with self._store.blobs.open(descriptor.digest) as file:
                while data := await to_worker(file.read, _CHUNK_BYTES):
                    yield data

        async with self._clients(self._session_ids) as client:
            return await client.push_blob(
                self._ref,
                descriptor,
                read,
                insecure=self._insecure,
                mount_from="" if mount_from == self._ref.path else mount_from,
                on_progress=on_progress,
                prepare=ensure,
            )

    async def put_bytes(self, descriptor: Descriptor, data: bytes) -> None:
        """Upload a small blob."""

        async def read() -> AsyncIterator[bytes]:
            yield data

        async with self._clients(self._session_ids) as client:
            await client.push_blob(self._ref, descriptor, read, insecure=self._insecure)

    async def put_manifest(self, descriptor: Descriptor, data: bytes) -> None:
        """Let the tag point at the new cache."""
        async with self._clients(self._session_ids) as client:
            await client.push_manifest(
                self._ref, descriptor.media_type, data, insecure=self._insecure
            )


class FolderCache:
    """A cache in a folder that a client serves as a content store, to read and to write."""

    def __init__(
        self,
        sessions: SessionManager,
        session_ids: Sequence[str],
        store_id: str,
        store: Store,
        *,
        digest: Digest | None = None,
    ) -> None:
        self._sessions = sessions
        self._ids = tuple(session_ids)
        self._store_id = store_id
        self._store = store
        self._digest = digest

    @property
    def source_labels(self) -> Mapping[str, str]:
        """Nothing: no registry can mount these blobs."""
        return {}

    async def manifest(self, digest: Digest | None) -> tuple[Descriptor, bytes]:
        """Return the root, or a manifest in the folder.

        Raises:
            CacheFormatError: it is not what its digest says, or no manifest.
        """
        wanted = digest or self._digest
        if wanted is None:
            raise CacheFormatError("a local cache needs the digest of its manifest")
        data = bytearray()
        async for piece in self._read(wanted):
            data += piece
            if len(data) > _MANIFEST_LIMIT_BYTES:
                raise CacheFormatError("the cache's manifest is too large", detail=wanted)
        body = bytes(data)
        if not wanted.matches(body):
            raise CacheFormatError("the cache's manifest is damaged", detail=wanted)
        return Descriptor(detect_media_type(body), wanted, len(body)), body

    async def blob(self, descriptor: Descriptor, sink: AsyncSink) -> None:
        """Stream a blob into ``sink``."""
        async for piece in self._read(descriptor.digest):
            await sink.write(piece)

    async def has(self, descriptor: Descriptor) -> bool:
        """Read the first piece of a blob."""
        pieces = (await self._session()).read_content(self._store_id, descriptor.digest)
        try:
            async for _ in pieces:
                return True
        except BoxwrightError:  # whoever then writes or reads it learns what is wrong
            return False
        finally:
            await pieces.aclose()
        return descriptor.size == 0

    async def put_layer(
        self,
        descriptor: Descriptor,
        ensure: Ensure,
        on_progress: Callable[[int], None],
        origin: Mapping[str, str],
    ) -> bool:
        """Send a layer; a client that has it stops the transfer."""
        if await self.has(descriptor):
            return False
        await ensure()
        loop = asyncio.get_running_loop()

        def pieces() -> Iterator[bytes]:  # in a worker thread
            sent = 0
            with self._store.blobs.open(descriptor.digest) as file:
                while data := file.read(_CHUNK_BYTES):
                    yield data
                    sent += len(data)
                    loop.call_soon_threadsafe(on_progress, sent)

        session = await self._session()
        await session.write_content(self._store_id, descriptor.digest, descriptor.size, pieces())
        return True

    async def put_bytes(self, descriptor: Descriptor, data: bytes) -> None:
        """Send a small blob."""
        session = await self._session()
        await session.write_content(
            self._store_id, descriptor.digest, descriptor.size, iter((data,))
        )

    async def put_manifest(self, descriptor: Descriptor, data: bytes) -> None:
        """Send the root; the client enters it in its index."""
        await self.put_bytes(descriptor, data)

    async def _read(self, digest: Digest) -> AsyncIterator[bytes]:
        async for piece in (await self._session()).read_content(self._store_id, digest):
            yield piece

    async def _session(self) -> Any:  # noqa: ANN401 - both kinds of sessions have the methods
        return await self._sessions.group(self._ids).any(_with_content)


async def _with_content(session: Session) -> Session:
    if not hasattr(session, "write_content"):
        raise UnimplementedError("this client serves no content stores")
    return session
