"""Blob uploads: mounted from another repository, in one piece, or in chunks.

One piece is tried first. If the connection breaks, the registry is asked how far it got and
the rest follows as a chunk; if it has forgotten the upload, a new one begins. A registry (or
the proxy before it) that refuses large bodies gets chunks from the start.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from urllib.parse import urlsplit

import aiohttp

from boxwright.core.dataclass import dataclass
from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import CANONICAL, Digest
from boxwright.registry.auth import scope_for
from boxwright.registry.errors import (
    RegistryAuthError,
    RegistryError,
    RegistryUnreachableError,
    StalledTransferError,
)
from boxwright.registry.hosts import Endpoint
from boxwright.registry.transport import Request, Transport, own_scheme

ReadBlob = Callable[[], AsyncIterator[bytes]]

_TRIES = 4
_TOO_LARGE = 413
_CHUNK_BYTES = 32 << 20
_SMALLEST_CHUNK_BYTES = 1 << 20
_LARGEST_CHUNK_BYTES = 1 << 30
# A registry over an object store copies the whole blob before it answers the last request.
_COMMIT_PATIENCE = 5
_RANGE = re.compile(r"(?:bytes=)?0-(\d+)\Z")


@dataclass
class _Upload:
    """One upload session at one registry."""

    endpoint: Endpoint
    scope: str
    descriptor: Descriptor
    read: ReadBlob
    on_progress: Callable[[int], None] | None
    location: str = ""
    last_answer: str = ""  # for whoever has to find out why it stalls
    offset: int = 0  # bytes that the registry has for sure
    sent: int = 0
    least_chunk_bytes: int = 0


class Uploader:
    """Pushes blobs over one transport."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def has_blob(
        self, endpoint: Endpoint, repository: str, scope: str, digest: Digest
    ) -> bool:
        """Return whether the repository holds a blob."""
        request = Request(
            "HEAD",
            f"{endpoint.base_url}/{repository}/blobs/{digest}",
            scope,
            expect=frozenset({200, 404}),
        )
        async with self._transport.send(endpoint, request) as response:
            return response.status == 200

    async def push(
        self,
        endpoint: Endpoint,
        repository: str,
        descriptor: Descriptor,
        read: ReadBlob,
        *,
        mount_from: str,
        on_progress: Callable[[int], None] | None,
        prepare: Callable[[], Awaitable[None]] | None = None,
    ) -> bool:
        """Bring a blob into a repository; return whether bytes were sent.

        ``prepare`` runs before the first byte is read: what it waits for is no stalled upload, and
        its errors are not the registry's.

        Raises:
            StalledTransferError: bytes stopped flowing and no retry is left.
            RegistryError: by cause.
        """
        scope = scope_for(repository, push=True)
        upload = _Upload(endpoint, scope, descriptor, read, on_progress)
        if mount_from and await self._mount(upload, repository, mount_from):
            return False
        if prepare is not None:
            await prepare()
        may_be_forgotten = bool(upload.location)  # begun in place of a mount, maybe long ago
        in_chunks = False
        tries = 0
        while True:
            try:
                if not upload.location:
                    await self._start(upload, repository)
                if in_chunks:
                    await self._chunked(upload)
                elif upload.offset:
                    await self._send_rest(upload)
                else:
                    await self._whole(upload)
            except (RegistryUnreachableError, StalledTransferError) as exc:
                tries += 1
                if _is_hopeless(exc) or tries >= _TRIES or not self._transport.budget.take():
                    raise _given_up(upload, exc) from exc
                await asyncio.sleep(0.2 * 2**tries)
                await self._find_out_offset(upload)
            except RegistryError as exc:
                if exc.status == _TOO_LARGE and not in_chunks:
                    in_chunks = True
                elif exc.status != 404 or not (upload.offset or may_be_forgotten):
                    raise
                # Too large in one piece, or the upload is forgotten: begin another.
                upload.location, upload.offset, may_be_forgotten = "", 0, False
            else:
                return True

    async def _mount(self, upload: _Upload, repository: str, source: str) -> bool:
        """Ask for a mount; a registry that will not may have begun an upload instead."""
        digest = upload.descriptor.digest
        base = f"{upload.endpoint.base_url}/{repository}/blobs/uploads/"
        request = Request(
            "POST",
            f"{base}?mount={digest}&from={source}",
            f"{upload.scope} {scope_for(source, push=False)}",
            headers={"Content-Length": "0"},
            expect=frozenset({201, 202}),
        )
        try:
            async with self._transport.send(upload.endpoint, request) as response:
                if response.status == 201:
                    return True
                self._took(upload, response)
        except RegistryAuthError:
            pass  # we may push here, but not read there
        return False

    async def _start(self, upload: _Upload, repository: str) -> None:
        url = f"{upload.endpoint.base_url}/{repository}/blobs/uploads/"
        algorithm = upload.descriptor.digest.algorithm
        if algorithm != CANONICAL:  # so that its bytes are hashed as they come
            url = f"{url}?digest-algorithm={algorithm}"
        request = Request(
            "POST",
            url,
            upload.scope,
            headers={"Content-Length": "0"},
            expect=frozenset({202}),
        )
        async with self._transport.send(upload.endpoint, request) as response:
            self._took(upload, response)

    def _took(self, upload: _Upload, response: aiohttp.ClientResponse) -> None:
        """Note where the upload goes on."""
        upload.last_answer = f"{response.method} {response.status}"
        location = response.headers.get("Location", "")
        if not location:
            raise RegistryError(
                f"registry {upload.endpoint.name} begins an upload without saying where",
                host=upload.endpoint.name,
                status=response.status,
                detail="no Location header",
            )
        upload.location = own_scheme(str(response.url), location)
        least = response.headers.get("OCI-Chunk-Min-Length", "")
        if least.isdigit():
            upload.least_chunk_bytes = int(least)

    def _scope(self, upload: _Upload, location: str) -> str:
        """Return the scope to log in with: none where the upload leads to another origin."""
        base, there = urlsplit(upload.endpoint.base_url), urlsplit(location)
        return upload.scope if (base.scheme, base.netloc) == (there.scheme, there.netloc) else ""

    async def _whole(self, upload: _Upload) -> None:
        url = _with_digest(upload)
        await self._send_body(upload, "PUT", url, 0, upload.descriptor.size, {})

    async def _send_rest(self, upload: _Upload) -> None:
        await self._send_chunk(upload, upload.descriptor.size)
        await self._finish(upload)

    async def _chunked(self, upload: _Upload) -> None:
        step = min(max(_CHUNK_BYTES, upload.least_chunk_bytes), _LARGEST_CHUNK_BYTES)
        while upload.offset < upload.descriptor.size:
            await self._send_chunk(upload, min(upload.offset + step, upload.descriptor.size))
        await self._finish(upload)

    async def _send_chunk(self, upload: _Upload, end: int) -> None:
        headers = {"Content-Range": f"{upload.offset}-{end - 1}"}
        start, upload.sent = upload.offset, upload.offset
        await self._send_body(upload, "PATCH", upload.location, start, end, headers)
        upload.offset = end

    async def _finish(self, upload: _Upload) -> None:
        url = _with_digest(upload)
        request = Request(
            "PUT",
            url,
            self._scope(upload, url),
            headers={"Content-Length": "0"},
            expect=frozenset({201, 204}),
            idempotent=False,
            patience=_COMMIT_PATIENCE,
        )
        async with self._transport.send(upload.endpoint, request):
            pass

    async def _find_out_offset(self, upload: _Upload) -> None:
        """Ask how much arrived; an upload that the registry does not know begins again."""
        location, upload.location, upload.offset = upload.location, "", 0
        if not location:
            return
        request = Request(
            "GET",
            location,
            self._scope(upload, location),
            expect=frozenset({204}),
            idempotent=False,
        )
        try:
            async with self._transport.send(upload.endpoint, request) as response:
                found = _RANGE.match(response.headers.get("Range", ""))
                # "0-0" is what registries say of one byte, and of none.
                if found and 0 < int(found[1]) < upload.descriptor.size:
                    if "Location" in response.headers:
                        self._took(upload, response)
                    upload.location = upload.location or location
                    upload.offset = int(found[1]) + 1
        except RegistryError:
            return

    async def _send_body(
        self, upload: _Upload, method: str, url: str, start: int, end: int, headers: dict[str, str]
    ) -> None:
        """Send the bytes from ``start`` to ``end``, and watch that they move."""

        async def make() -> AsyncIterator[bytes]:
            upload.sent = start
            return self._piece(upload, start, end)

        request = Request(
            method,
            url,
            self._scope(upload, url),
            headers={
                "Content-Type": "application/octet-stream",
                "Content-Length": str(end - start),
                **headers,
            },
            body=make,
            expect=frozenset({201, 202, 204}),
            idempotent=False,
            patience=_COMMIT_PATIENCE,
        )

        async def transfer() -> None:
            async with self._transport.send(upload.endpoint, request) as response:
                if method == "PATCH" and "Location" in response.headers:
                    self._took(upload, response)

        sending = asyncio.ensure_future(transfer())
        try:
            while not sending.done():
                seen = upload.sent
                await asyncio.wait({sending}, timeout=self._transport.stall_timeout_s)
                if not sending.done() and seen == upload.sent < end:
                    raise StalledTransferError(
                        f"upload to registry {upload.endpoint.name} stalled",
                        host=upload.endpoint.name,
                        detail=f"blob {upload.descriptor.digest} at byte {upload.sent} of "
                        f"{upload.descriptor.size}, nothing moved for "
                        f"{self._transport.stall_timeout_s:g} s; last answer: "
                        f"{upload.last_answer or 'none'}",
                        hint="run it again: blobs that the registry has are not sent again",
                    )
            await sending
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def _piece(self, upload: _Upload, start: int, end: int) -> AsyncIterator[bytes]:
        position = 0
        async for data in upload.read():
            first, last = max(start - position, 0), end - position
            position += len(data)
            if first < len(data) and last > 0:
                piece = data[first:last]
                yield piece
                upload.sent += len(piece)
                if upload.on_progress:
                    upload.on_progress(upload.sent)
            if position >= end:
                return


def _given_up(upload: _Upload, exc: RegistryError) -> RegistryError:
    """Return the error of an upload that broke once too often, with how far it got."""
    if isinstance(exc, StalledTransferError) or not upload.last_answer:
        return exc
    detail = (
        f"blob {upload.descriptor.digest} at byte {upload.sent} of "
        f"{upload.descriptor.size}: {exc.detail}; last answer: {upload.last_answer}"
    )
    if _is_hopeless(exc):  # what its hint says is to be done first
        exc.detail = detail
        return exc
    return StalledTransferError(
        f"upload to registry {upload.endpoint.name} broke off",
        host=upload.endpoint.name,
        detail=detail,
        hint="run it again: blobs that the registry has are not sent again",
    )


def _is_hopeless(exc: RegistryError) -> bool:
    """Whether nobody is there, so that another try finds nobody either."""
    return isinstance(exc, RegistryUnreachableError) and exc.reason in {"name", "refused"}


def _with_digest(upload: _Upload) -> str:
    separator = "&" if urlsplit(upload.location).query else "?"
    return f"{upload.location}{separator}digest={upload.descriptor.digest}"
