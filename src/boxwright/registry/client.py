"""The OCI distribution client: resolve, fetch, push (distribution-spec v1.1).

Whatever is received is verified against its digest before anybody may call it good: manifests
at once, blobs by the writer that they stream into. Broken downloads go on where they stopped.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import CANONICAL, Digest
from boxwright.core.reference import Reference
from boxwright.errors import InvalidInputError
from boxwright.registry.auth import AnonymousAuth, AuthSource, scope_for
from boxwright.registry.connections import Connections
from boxwright.registry.errors import (
    BlobNotFoundError,
    ContentMismatchError,
    ManifestNotFoundError,
    RegistryError,
    RegistryUnreachableError,
    StalledTransferError,
)
from boxwright.registry.hosts import Endpoint, Hosts
from boxwright.registry.transport import Request, RetryBudget, Transport
from boxwright.registry.upload import ReadBlob, Uploader

_log = logging.getLogger(__name__)

MANIFEST_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
MANIFEST_LIMIT_BYTES = 8 << 20
NOT_KEPT = "Boxwright-Not-Kept"
"""What our own registry says of a manifest that it only shows, as a build stored it."""

_NOT_KNOWN = frozenset({400, 403, 404, 405, 501})
"""Answers to the question whether a manifest is there that don't say yes: it is sent."""

_T = TypeVar("_T")
_ACCEPT = ", ".join((*MANIFEST_TYPES, "*/*"))


class Sink(Protocol):
    """Where a blob's bytes go; writes may be slow, so they are awaited."""

    async def write(self, data: bytes) -> None:
        """Take the next bytes."""
        ...


class RegistryClient:
    """Talks to any registry with one set of logins; closed by its maker.

    Args:
        hosts: how hosts are reached; by default all over HTTPS.
        auth: where credentials come from; by default nobody logs in.
        connections: shared ones, which their owner closes; by default its own.
        stall_timeout_s: how long nothing may move.
        budget: of retries.
    """

    def __init__(
        self,
        hosts: Hosts | None = None,
        auth: AuthSource | None = None,
        *,
        connections: Connections | None = None,
        stall_timeout_s: float = 60.0,
        budget: RetryBudget | None = None,
    ) -> None:
        self.hosts = hosts or Hosts()
        self._own_connections = Connections() if connections is None else None
        self.transport = Transport(
            auth or AnonymousAuth(),
            connections or self._own_connections or Connections(),
            stall_timeout_s=stall_timeout_s,
            budget=budget,
        )
        self._uploader = Uploader(self.transport)

    async def close(self) -> None:
        """Close its own connections."""
        if self._own_connections is not None:
            await self._own_connections.close()

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
        self, ref: Reference, *, insecure: bool | None = None, mirrors: bool = True
    ) -> tuple[Descriptor, bytes]:
        """Fetch a manifest or index by tag or digest, and verify it.

        Args:
            ref: what to fetch; its digest counts more than its tag.
            insecure: the request's ``registry.insecure``.
            mirrors: ask them before the registry itself.

        Raises:
            ManifestNotFoundError: no endpoint has it.
            ContentMismatchError: what came is not what the digest says.
            RegistryError: by cause, the last endpoint's.
        """
        ref = ref.with_default_tag()

        async def fetch(endpoint: Endpoint) -> tuple[Descriptor, bytes]:
            return await self._fetch_manifest_from(endpoint, ref)

        return await self._first(ref, fetch, insecure=insecure, mirrors=mirrors)

    async def _fetch_manifest_from(
        self, endpoint: Endpoint, ref: Reference
    ) -> tuple[Descriptor, bytes]:
        repository = endpoint.repository(ref.path)
        wanted = str(ref.digest or ref.tag)
        request = Request(
            "GET",
            f"{endpoint.base_url}/{repository}/manifests/{wanted}",
            scope_for(repository, push=False),
            headers={"Accept": _ACCEPT},
        )
        try:
            async with self.transport.send(endpoint, request) as response:
                content_type = response.headers.get("Content-Type", "").partition(";")[0].strip()
                told = response.headers.get("Docker-Content-Digest", "")
                body = await self.transport.body(endpoint, response, MANIFEST_LIMIT_BYTES)
        except RegistryError as exc:
            if exc.status == 404:
                raise ManifestNotFoundError(
                    f"{ref.familiar}: not found",
                    host=endpoint.name,
                    status=404,
                    detail=f"registry {endpoint.name} has no manifest {wanted} in {repository}",
                    hint="check the name and the tag, and whether a login is needed to see it",
                ) from exc
            raise
        if body is None:
            raise ContentMismatchError(
                f"registry {endpoint.name} sends a manifest that is too large",
                host=endpoint.name,
                detail=f"{wanted}: more than {MANIFEST_LIMIT_BYTES} bytes",
            )
        digest = ref.digest or _told_digest(told, body) or Digest.of(body)
        if not digest.matches(body):
            raise ContentMismatchError(
                f"registry {endpoint.name} sent another manifest than the digest asked for",
                host=endpoint.name,
                detail=f"wanted {digest}, got {Digest.of(body)} ({len(body)} bytes)",
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
            ContentMismatchError: it is not of the size that the descriptor says.
            StalledTransferError: the connection broke off or bytes stopped flowing, and no
                retry is left.
            RegistryError: by cause, the last endpoint's.
        """
        offset = 0
        last_answer = "none"

        def note(status: int) -> None:
            nonlocal last_answer
            last_answer = f"GET {status}"

        async def take(endpoint: Endpoint) -> None:
            nonlocal offset
            async for data in self._blob_from(endpoint, ref, descriptor, offset, note):
                await sink.write(data)
                offset += len(data)
                if on_progress:
                    on_progress(offset)

        async def fetch(endpoint: Endpoint) -> None:
            while True:
                before = offset
                failure: RegistryUnreachableError | None = None
                try:
                    await take(endpoint)
                except RegistryUnreachableError as exc:
                    if exc.reason in {"name", "refused"} and offset == before:
                        raise
                    failure = exc
                if failure is None and offset == descriptor.size:
                    return
                if not self.transport.budget.take():
                    raise StalledTransferError(
                        f"download from registry {endpoint.name} broke off",
                        host=endpoint.name,
                        detail=f"blob {descriptor.digest} at byte {offset} of {descriptor.size}: "
                        f"{failure.detail if failure else 'the registry ended it too early'}"
                        f"; last answer: {last_answer}",
                        hint="run it again: what is complete is kept",
                    ) from failure
                _log.info("%s: resuming at byte %d", descriptor.digest, offset)

        await self._first(ref, fetch, insecure=insecure)

    async def stat_blob(
        self, ref: Reference, digest: Digest, *, insecure: bool | None = None
    ) -> Descriptor:
        """Return the size of a blob of which only the digest is known.

        Raises:
            BlobNotFoundError: no endpoint has it.
            ContentMismatchError: the registry does not say how large it is.
            RegistryError: by cause, the last endpoint's.
        """

        async def ask(endpoint: Endpoint) -> Descriptor:
            repository = endpoint.repository(ref.path)
            url = f"{endpoint.base_url}/{repository}/blobs/{digest}"
            request = Request("HEAD", url, scope_for(repository, push=False))
            try:
                async with self.transport.send(endpoint, request) as response:
                    length = response.headers.get("Content-Length", "")
                    kind = response.headers.get("Content-Type", "")
            except RegistryError as exc:
                if exc.status == 404:
                    raise _no_blob(endpoint, repository, digest) from exc
                raise
            if not length.isdecimal():
                raise ContentMismatchError(
                    f"registry {endpoint.name} does not say how large a blob is",
                    host=endpoint.name,
                    detail=f"{digest} in {repository}",
                )
            return Descriptor(kind, digest, int(length))

        return await self._first(ref, ask, insecure=insecure)

    async def fetch_foreign(self, descriptor: Descriptor, sink: Sink) -> None:
        """Stream a blob from one of the addresses that its descriptor names, without any login.

        Raises:
            BlobNotFoundError: no address is of a kind that may be asked.
            RegistryError: of the last address, by cause.
        """
        failure: RegistryError = BlobNotFoundError(
            f"foreign layer {descriptor.digest} has no https address",
            detail=", ".join(descriptor.urls),
        )
        for url in descriptor.urls:
            parts = urlsplit(url)
            if parts.scheme != "https" or not parts.netloc:
                continue
            endpoint = Endpoint(name=parts.netloc, host=parts.netloc)
            request = Request("GET", url, "")
            received = 0
            try:
                async with self.transport.send(endpoint, request) as response:
                    async for data in self.transport.chunks(endpoint, response):
                        received += len(data)
                        await sink.write(data)
            except RegistryError as exc:
                failure = exc
                if received:
                    break
            else:
                return
        raise failure

    async def _blob_from(
        self,
        endpoint: Endpoint,
        ref: Reference,
        descriptor: Descriptor,
        offset: int,
        on_answer: Callable[[int], None],
    ) -> AsyncIterator[bytes]:
        repository = endpoint.repository(ref.path)
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        request = Request(
            "GET",
            f"{endpoint.base_url}/{repository}/blobs/{descriptor.digest}",
            scope_for(repository, push=False),
            headers={"Accept": "*/*", **headers},
            expect=frozenset({200, 206}),
        )
        try:
            async with self.transport.send(endpoint, request) as response:
                on_answer(response.status)
                # Who does not know ranges sends all of it again.
                skip = offset if response.status == 200 else 0
                position = offset - skip
                async for data in self.transport.chunks(endpoint, response):
                    position += len(data)
                    if position > descriptor.size:
                        raise ContentMismatchError(
                            f"registry {endpoint.name} sends more than the blob's size",
                            host=endpoint.name,
                            detail=f"{descriptor.digest}: {descriptor.size} bytes expected",
                        )
                    if skip < len(data):
                        yield data[skip:] if skip else data
                    skip = max(0, skip - len(data))
        except RegistryError as exc:
            if exc.status == 404:
                raise _no_blob(endpoint, repository, descriptor.digest) from exc
            raise

    async def _first(
        self,
        ref: Reference,
        action: Callable[[Endpoint], Awaitable[_T]],
        *,
        insecure: bool | None,
        mirrors: bool = True,
    ) -> _T:
        """Do it at the first endpoint where it works; the registry's own failure counts."""
        for endpoint in self.hosts.pull_endpoints(ref.host, insecure=insecure):
            if endpoint.is_mirror and not mirrors:
                continue
            try:
                return await action(await self.transport.discover(endpoint))
            except RegistryError as exc:
                if not endpoint.is_mirror:
                    raise
                _log.warning("mirror %s of %s: %s", endpoint.name, ref.host, exc)
        raise AssertionError("a registry is its own last endpoint")

    # --- pushing -------------------------------------------------------------------------

    async def has_blob(
        self, ref: Reference, digest: Digest, *, insecure: bool | None = None, push: bool = True
    ) -> bool:
        """Return whether the repository holds a blob.

        Args:
            ref: names host and repository.
            digest: of the blob.
            insecure: the request's ``registry.insecure``.
            push: ask with the rights of one who will push; else of one who pulls.

        Raises:
            RegistryError: by cause.
        """
        endpoint, repository = await self._target(ref, insecure=insecure)
        scope = scope_for(repository, push=push)
        return await self._uploader.has_blob(endpoint, repository, scope, digest)

    async def push_blob(
        self,
        ref: Reference,
        descriptor: Descriptor,
        read: ReadBlob,
        *,
        insecure: bool | None = None,
        mount_from: str = "",
        on_progress: Callable[[int], None] | None = None,
        prepare: Callable[[], Awaitable[None]] | None = None,
    ) -> bool:
        """Upload a blob unless the repository has it; return whether bytes were sent.

        Args:
            ref: names host and repository.
            descriptor: the blob's digest and size.
            read: makes a fresh iterator over the blob's bytes, for every try.
            insecure: the request's ``registry.insecure``.
            mount_from: another repository of this registry to mount it from, if any.
            on_progress: called with the bytes sent so far.
            prepare: brings the blob to where ``read`` finds it, once bytes must be sent.

        Raises:
            StalledTransferError: bytes stopped flowing and no retry is left.
            RegistryError: by cause.
        """
        endpoint, repository = await self._target(ref, insecure=insecure)
        scope = scope_for(repository, push=True)
        if await self._uploader.has_blob(endpoint, repository, scope, descriptor.digest):
            return False
        return await self._uploader.push(
            endpoint,
            repository,
            descriptor,
            read,
            mount_from=endpoint.repository(mount_from) if mount_from else "",
            on_progress=on_progress,
            prepare=prepare,
        )

    async def push_manifest(
        self,
        ref: Reference,
        media_type: str,
        body: bytes,
        *,
        insecure: bool | None = None,
        by_digest: bool = False,
        digest: Digest | None = None,
    ) -> Digest:
        """Upload a manifest under the reference's tag, or under its digest alone.

        What has that name already is not sent again: registries that refuse to change a tag
        take the same image twice. One that is known by another digest than its sha256 gets its
        tag along with that: pushed by the tag, it would be a sha256's.

        Args:
            ref: names host, repository and tag.
            media_type: the manifest's.
            body: the manifest.
            insecure: the request's ``registry.insecure``.
            by_digest: give it no tag.
            digest: the one that it is known by, if not its sha256.

        Raises:
            ContentMismatchError: the registry says that it stored something else.
            RegistryError: by cause.
        """
        endpoint, repository = await self._target(ref, insecure=insecure)
        digest = digest or Digest.of(body)
        tag = "" if by_digest else ref.with_default_tag().tag
        base = f"{endpoint.base_url}/{repository}/manifests"
        url = f"{base}/{tag or digest}"
        scope = scope_for(repository, push=True)
        question = Request(
            "HEAD", url, scope, headers={"Accept": f"{media_type}, */*"}, expect=_NOT_KNOWN | {200}
        )
        async with self.transport.send(endpoint, question) as response:
            is_kept = response.status == 200 and NOT_KEPT not in response.headers
            if is_kept and response.headers.get("Docker-Content-Digest") == digest:
                return digest

        if not tag or digest.algorithm == CANONICAL:
            await self._put_manifest(endpoint, url, scope, media_type, body, digest)
            return digest
        named = f"{base}/{digest}?tag={tag}"
        if not await self._put_manifest(endpoint, named, scope, media_type, body, digest):
            # A registry that does not know tags as parameters: there, the tag is a sha256's.
            await self._put_manifest(endpoint, url, scope, media_type, body, Digest.of(body))
        return digest

    async def _put_manifest(
        self,
        endpoint: Endpoint,
        url: str,
        scope: str,
        media_type: str,
        body: bytes,
        digest: Digest,
    ) -> bool:
        """Send a manifest; return whether the registry took tags that are parameters."""

        async def make() -> io.BytesIO:
            return io.BytesIO(body)

        request = Request(
            "PUT",
            url,
            scope,
            headers={"Content-Type": media_type},
            body=make,
            expect=frozenset({200, 201, 202}),
        )
        async with self.transport.send(endpoint, request) as response:
            told = response.headers.get("Docker-Content-Digest", str(digest))
            took_tags = "OCI-Tag" in response.headers
        if told != digest:
            raise ContentMismatchError(
                f"registry {endpoint.name} stored another manifest than was sent",
                host=endpoint.name,
                detail=f"sent {digest}, it says {told}",
            )
        return took_tags

    async def _target(self, ref: Reference, *, insecure: bool | None) -> tuple[Endpoint, str]:
        endpoint = self.hosts.endpoint(ref.host, insecure=insecure)
        endpoint = await self.transport.discover(endpoint)
        return endpoint, endpoint.repository(ref.path)


def _told_digest(text: str, body: bytes) -> Digest | None:
    """Return the digest by which a registry knows a manifest, if it really is its digest."""
    try:
        told = Digest(text)
    except InvalidInputError:
        return None
    return told if told.matches(body) else None


def _no_blob(endpoint: Endpoint, repository: str, digest: Digest) -> BlobNotFoundError:
    return BlobNotFoundError(
        f"registry {endpoint.name} has no blob {digest}",
        host=endpoint.name,
        status=404,
        detail=f"repository {repository}",
    )


def _media_type(body: bytes, content_type: str) -> str:
    """Prefer what the manifest says of itself: registries are careless with the header."""
    try:
        data: Any = json.loads(body)
        stated = data.get("mediaType") if isinstance(data, dict) else None
    except (ValueError, RecursionError):
        return content_type
    if isinstance(stated, str) and stated:
        return stated
    if content_type in MANIFEST_TYPES or not isinstance(data, dict):
        return content_type
    return MANIFEST_TYPES[0] if "manifests" in data else MANIFEST_TYPES[2]
