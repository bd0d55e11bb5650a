"""The OCI distribution client: resolve, fetch, push (distribution-spec v1.1).

Whatever is received is verified against its digest before anybody may call it good: manifests
at once, blobs by the writer that they stream into. A broken download goes on where it
stopped; a broken upload starts again, as few registries can resume one.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol, TypeVar
from urllib.parse import urljoin

import aiohttp

from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.core.reference import Reference
from boxwright.registry.auth import AnonymousAuth, AuthSource, scope_for
from boxwright.registry.errors import (
    BlobNotFoundError,
    ContentMismatchError,
    ManifestNotFoundError,
    RegistryError,
    RegistryUnreachableError,
    StalledTransferError,
)
from boxwright.registry.hosts import Endpoint, Hosts
from boxwright.registry.transport import Request, Transport

MANIFEST_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
MANIFEST_LIMIT_BYTES = 8 << 20
_CHUNK_BYTES = 1 << 20
_T = TypeVar("_T")
_ACCEPT = ", ".join((*MANIFEST_TYPES, "*/*"))


class Sink(Protocol):
    """Where a blob's bytes go; writes may be slow, so they are awaited."""

    async def write(self, data: bytes) -> None:
        """Take the next bytes."""
        ...


class RegistryClient:
    """Talks to any registry; one per build or per daemon, closed by its maker."""

    def __init__(
        self,
        hosts: Hosts | None = None,
        auth: AuthSource | None = None,
        *,
        stall_timeout_s: float = 60.0,
    ) -> None:
        self.hosts = hosts or Hosts()
        self.transport = Transport(auth or AnonymousAuth(), stall_timeout_s=stall_timeout_s)

    async def close(self) -> None:
        """Close all connections."""
        await self.transport.close()

    # --- pulling -------------------------------------------------------------------------

    async def resolve(self, ref: Reference, *, insecure: bool | None = None) -> Descriptor:
        """Return the descriptor that a tag or digest stands for.

        Raises:
            ManifestNotFoundError: no endpoint has it.
            RegistryError: by cause, the last endpoint's.
        """
        descriptor, _ = await self.fetch_manifest(ref, insecure=insecure)
        return descriptor

    async def fetch_manifest(
        self, ref: Reference, *, insecure: bool | None = None
    ) -> tuple[Descriptor, bytes]:
        """Fetch a manifest or index by tag or digest, mirrors first, and verify it."""
        ref = ref.with_default_tag()

        async def fetch(endpoint: Endpoint) -> tuple[Descriptor, bytes]:
            return await self._fetch_manifest_from(endpoint, ref)

        return await self._first(ref, fetch, insecure=insecure)

    async def _fetch_manifest_from(
        self, endpoint: Endpoint, ref: Reference
    ) -> tuple[Descriptor, bytes]:
        repository = endpoint.repository(ref.path)
        wanted = str(ref.digest or ref.tag)
        request = Request(
            "GET",
            f"{endpoint.base_url}/{repository}/manifests/{wanted}",
            scope_for(repository, push=False),
            ref.host,
            headers={"Accept": _ACCEPT},
        )
        try:
            async with self.transport.send(endpoint, request) as response:
                body = await _read_limited(response, MANIFEST_LIMIT_BYTES)
                content_type = response.headers.get("Content-Type", "").partition(";")[0].strip()
        except RegistryError as exc:
            if exc.status == 404:
                raise ManifestNotFoundError(
                    f"{ref.familiar}: not found",
                    host=ref.host,
                    status=404,
                    detail=f"registry {endpoint.host} has no manifest {wanted} in {repository}",
                    hint="check the name and the tag, and whether a login is needed to see it",
                ) from exc
            raise
        digest = Digest.of(body)
        if ref.digest and ref.digest != digest:
            raise ContentMismatchError(
                f"registry {endpoint.host} sent another manifest than the digest asked for",
                host=ref.host,
                detail=f"wanted {ref.digest}, got {digest} ({len(body)} bytes)",
            )
        return Descriptor(_media_type(body, content_type), digest, len(body)), body

    async def fetch_blob(
        self,
        ref: Reference,
        descriptor: Descriptor,
        sink: Sink,
        *,
        insecure: bool | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        """Stream a blob into ``sink``, resuming after broken connections.

        The sink's owner verifies the digest; the size is checked here.

        Raises:
            BlobNotFoundError: no endpoint has it.
            StalledTransferError: bytes stopped flowing and no retry is left.
        """
        offset = 0

        async def fetch(endpoint: Endpoint) -> None:
            nonlocal offset
            while True:
                try:
                    async for data in self._blob_from(endpoint, ref, descriptor, offset):
                        await sink.write(data)
                        offset += len(data)
                        if on_progress:
                            on_progress(offset)
                except RegistryUnreachableError as exc:
                    if self.transport.budget.take():
                        continue
                    raise StalledTransferError(
                        f"download from registry {endpoint.host} broke off",
                        host=ref.host,
                        detail=f"blob {descriptor.digest} at byte {offset} of {descriptor.size}: "
                        f"{exc.detail}",
                    ) from exc
                if offset < descriptor.size and self.transport.budget.take():
                    continue
                break

        await self._first(ref, fetch, insecure=insecure)
        if offset != descriptor.size:
            raise ContentMismatchError(
                f"registry {ref.host} sent a blob of the wrong size",
                host=ref.host,
                detail=f"{descriptor.digest}: wanted {descriptor.size} bytes, got {offset}",
            )

    async def _blob_from(
        self, endpoint: Endpoint, ref: Reference, descriptor: Descriptor, offset: int
    ) -> AsyncIterator[bytes]:
        repository = endpoint.repository(ref.path)
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        request = Request(
            "GET",
            f"{endpoint.base_url}/{repository}/blobs/{descriptor.digest}",
            scope_for(repository, push=False),
            ref.host,
            headers={"Accept": "*/*", **headers},
            expect=frozenset({200, 206}),
        )
        try:
            async with self.transport.send(endpoint, request) as response:
                skip = offset if offset and response.status == 200 else 0
                received = 0
                async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                    received += len(chunk)
                    data = chunk
                    if skip:
                        data, skip = chunk[skip:], max(0, skip - len(chunk))
                    if received > descriptor.size:
                        raise ContentMismatchError(
                            f"registry {endpoint.host} sends more than the blob's size",
                            host=ref.host,
                            detail=f"{descriptor.digest}: {descriptor.size} bytes expected",
                        )
                    if data:
                        yield data
        except RegistryError as exc:
            if exc.status == 404:
                raise BlobNotFoundError(
                    f"registry {endpoint.host} has no blob {descriptor.digest}",
                    host=ref.host,
                    status=404,
                    detail=f"repository {repository}",
                ) from exc
            raise

    async def _first(
        self,
        ref: Reference,
        action: Callable[[Endpoint], Awaitable[_T]],
        *,
        insecure: bool | None,
    ) -> _T:
        failure: RegistryError | None = None
        for endpoint in self.hosts.pull_endpoints(ref.host, insecure=insecure):
            try:
                return await action(await self.transport.discover(endpoint))
            except ContentMismatchError:
                raise
            except RegistryError as exc:
                failure = exc
        assert failure is not None
        raise failure

    # --- pushing -------------------------------------------------------------------------

    async def has_blob(
        self, ref: Reference, digest: Digest, *, insecure: bool | None = None
    ) -> bool:
        """Return whether the repository already holds a blob."""
        endpoint, repository, scope = await self._push_target(ref, insecure=insecure)
        request = Request(
            "HEAD",
            f"{endpoint.base_url}/{repository}/blobs/{digest}",
            scope,
            ref.host,
            expect=frozenset({200, 404}),
        )
        async with self.transport.send(endpoint, request) as response:
            return response.status == 200

    async def push_blob(
        self,
        ref: Reference,
        descriptor: Descriptor,
        read: Callable[[], AsyncIterator[bytes]],
        *,
        insecure: bool | None = None,
        mount_from: str = "",
        on_progress: Callable[[int], None] | None = None,
    ) -> bool:
        """Upload a blob unless the repository has it; return whether bytes were sent.

        Args:
            ref: names host and repository.
            descriptor: the blob's digest and size.
            read: makes a fresh iterator over the blob's bytes, for every try.
            insecure: the request's ``registry.insecure``.
            mount_from: another repository of this registry to mount it from, if any.
            on_progress: called with the bytes sent so far.

        Raises:
            RegistryError: by cause.
        """
        if await self.has_blob(ref, descriptor.digest, insecure=insecure):
            return False
        endpoint, repository, scope = await self._push_target(ref, insecure=insecure)
        for attempt in range(4):
            location = await self._start_upload(
                endpoint, ref, repository, scope, descriptor, mount_from if attempt == 0 else ""
            )
            if location is None:
                return False
            try:
                await self._put_blob(endpoint, ref, scope, location, descriptor, read, on_progress)
            except (RegistryUnreachableError, StalledTransferError):
                if attempt == 3 or not self.transport.budget.take():
                    raise
                await asyncio.sleep(0.3 * 2**attempt)
                continue
            return True
        raise AssertionError("unreachable")

    async def _start_upload(
        self,
        endpoint: Endpoint,
        ref: Reference,
        repository: str,
        scope: str,
        descriptor: Descriptor,
        mount_from: str,
    ) -> str | None:
        url = f"{endpoint.base_url}/{repository}/blobs/uploads/"
        if mount_from:
            url += f"?mount={descriptor.digest}&from={mount_from}"
            scope += f" {scope_for(mount_from, push=False)}"
        request = Request(
            "POST",
            url,
            scope,
            ref.host,
            headers={"Content-Length": "0"},
            expect=frozenset({201, 202}),
        )
        async with self.transport.send(endpoint, request) as response:
            if response.status == 201:
                return None
            location = response.headers.get("Location", "")
            return urljoin(str(response.url), location)

    async def _put_blob(
        self,
        endpoint: Endpoint,
        ref: Reference,
        scope: str,
        location: str,
        descriptor: Descriptor,
        read: Callable[[], AsyncIterator[bytes]],
        on_progress: Callable[[int], None] | None,
    ) -> None:
        sent = 0
        moved = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            nonlocal sent
            async for chunk in read():
                yield chunk
                sent += len(chunk)
                moved.set()
                if on_progress:
                    on_progress(sent)

        async def make() -> AsyncIterator[bytes]:
            return body()

        separator = "&" if "?" in location else "?"
        request = Request(
            "PUT",
            f"{location}{separator}digest={descriptor.digest}",
            scope,
            ref.host,
            headers={
                "Content-Type": "application/octet-stream",
                "Content-Length": str(descriptor.size),
            },
            body=make,
            expect=frozenset({201, 204}),
            idempotent=False,
        )

        async def upload() -> None:
            async with self.transport.send(endpoint, request):
                pass

        async with asyncio.TaskGroup() as group:
            uploading = group.create_task(upload())
            while not uploading.done():
                moved.clear()
                waiting = group.create_task(moved.wait())
                await asyncio.wait(
                    {uploading, waiting},
                    timeout=self.transport.stall_timeout_s,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if not uploading.done() and not waiting.done() and sent < descriptor.size:
                    uploading.cancel()
                    waiting.cancel()
                    raise StalledTransferError(
                        f"upload to registry {endpoint.host} stalled",
                        host=ref.host,
                        detail=f"blob {descriptor.digest} at byte {sent} of {descriptor.size}, "
                        f"nothing moved for {self.transport.stall_timeout_s:.0f} s",
                    )
                waiting.cancel()

    async def push_manifest(
        self,
        ref: Reference,
        media_type: str,
        body: bytes,
        *,
        insecure: bool | None = None,
        by_digest: bool = False,
    ) -> Digest:
        """Upload a manifest under the reference's tag, or under its digest alone.

        Raises:
            ContentMismatchError: the registry says that it stored something else.
            RegistryError: by cause.
        """
        endpoint, repository, scope = await self._push_target(ref, insecure=insecure)
        digest = Digest.of(body)
        name = str(digest) if by_digest else ref.with_default_tag().tag or str(digest)

        async def make() -> bytes:
            return body

        request = Request(
            "PUT",
            f"{endpoint.base_url}/{repository}/manifests/{name}",
            scope,
            ref.host,
            headers={"Content-Type": media_type},
            body=make,
            expect=frozenset({200, 201, 202}),
        )
        async with self.transport.send(endpoint, request) as response:
            told = response.headers.get("Docker-Content-Digest", str(digest))
        if told != digest:
            raise ContentMismatchError(
                f"registry {endpoint.host} stored another manifest than was sent",
                host=ref.host,
                detail=f"sent {digest}, it says {told}",
            )
        return digest

    async def _push_target(
        self, ref: Reference, *, insecure: bool | None
    ) -> tuple[Endpoint, str, str]:
        endpoint = self.hosts.push_endpoint(ref.host, insecure=insecure)
        endpoint = await self.transport.discover(endpoint)
        repository = endpoint.repository(ref.path)
        return endpoint, repository, scope_for(repository, push=True)


async def _read_limited(response: aiohttp.ClientResponse, limit: int) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_chunked(1 << 16):
        body += chunk
        if len(body) > limit:
            raise ContentMismatchError(
                "the registry sends a manifest that is too large",
                host=response.url.host or "",
                detail=f"more than {limit} bytes",
            )
    return bytes(body)


def _media_type(body: bytes, content_type: str) -> str:
    """Prefer what the manifest says of itself: registries are careless with the header."""
    try:
        data: Any = json.loads(body)
        stated = data.get("mediaType") if isinstance(data, dict) else None
    except ValueError:
        return content_type
    if isinstance(stated, str) and stated:
        return stated
    if content_type in MANIFEST_TYPES or not isinstance(data, dict):
        return content_type
    return MANIFEST_TYPES[0] if "manifests" in data else MANIFEST_TYPES[2]
