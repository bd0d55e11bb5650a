"""The HTTP side of the registry: OCI distribution-spec v1.1, end by end.

Error bodies and codes are the specification's. Blobs are sent by the kernel straight from the
store's files, ranges included.
"""

from __future__ import annotations

import base64
import hmac
import json
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from boxwright.core.dataclass import dataclass, field
from boxwright.core.digest import CANONICAL, Digest
from boxwright.core.workers import to_worker
from boxwright.errors import BoxwrightError, InvalidInputError
from boxwright.registry.client import NOT_KEPT
from boxwright.registryserver.conditions import (
    Condition,
    PreconditionFailedError,
    entity_tag,
    is_range_for,
)
from boxwright.registryserver.repositories import ManifestInvalidError, Repositories
from boxwright.registryserver.sendfile import BlobResponse
from boxwright.registryserver.uploads import (
    RangeError,
    StalledUploadError,
    UnknownUploadError,
    Upload,
    Uploads,
)
from boxwright.store.errors import DigestMismatchError, DiskCapError, DiskFullError
from boxwright.store.store import Store

_log = logging.getLogger(__name__)

MANIFEST_LIMIT_BYTES = 4 << 20
_NAME = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
_TAG = re.compile(r"\w[\w.-]{0,127}\Z", re.ASCII)
_NAME_LIMIT = 255
_READS = {"Allow": "GET, HEAD"}
_PAGE = re.compile(r"[0-9]{1,9}\Z")
_CONTENT_RANGE = re.compile(r"(?:bytes )?(\d+)-(\d+)")
_REFUSALS = (
    (PreconditionFailedError, 412, "PRECONDITION_FAILED"),
    (StalledUploadError, 408, "BLOB_UPLOAD_INVALID"),
    (UnknownUploadError, 404, "BLOB_UPLOAD_UNKNOWN"),
    (RangeError, 416, "BLOB_UPLOAD_INVALID"),
    (DigestMismatchError, 400, "DIGEST_INVALID"),
    (DiskFullError, 507, "DENIED"),
    (DiskCapError, 507, "DENIED"),
    (InvalidInputError, 400, "DIGEST_INVALID"),
)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class ServerOptions:
    """How the registry is served; ``users`` maps names to passwords, empty: open to all."""

    read_only: bool = False
    users: Mapping[str, str] = field(default_factory=dict, repr=False)


def _error(
    status: int,
    code: str,
    message: str,
    *,
    detail: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    entry: dict[str, Any] = {"code": code, "message": message}
    if detail is not None:
        entry["detail"] = detail
    return web.json_response({"errors": [entry]}, status=status, headers=headers)


class RegistryApp:
    """The request handlers over one store. Made by :func:`make_app`."""

    def __init__(self, store: Store, options: ServerOptions) -> None:
        self._store = store
        self._options = options
        self._repositories = Repositories(store)
        self._uploads = Uploads(store.blobs)

    def application(self) -> web.Application:
        """Return the aiohttp application."""
        app = web.Application(middlewares=[self._guard], client_max_size=1 << 40)
        add = app.router.add_route
        add("*", "/v2", self._base)
        add("*", "/v2/", self._base)
        add("GET", "/v2/_catalog", self._catalog)
        add("GET", f"/v2/{{name:{_NAME}}}/tags/list", self._tags)
        add("GET", f"/v2/{{name:{_NAME}}}/referrers/{{digest}}", self._referrers)
        manifest = f"/v2/{{name:{_NAME}}}/manifests/{{reference}}"
        add("GET", manifest, self._get_manifest)
        add("HEAD", manifest, self._get_manifest)
        add("PUT", manifest, self._put_manifest)
        add("DELETE", manifest, self._delete_manifest)
        uploads = f"/v2/{{name:{_NAME}}}/blobs/uploads/"
        add("POST", uploads, self._start_upload)
        upload = uploads + "{upload}"
        add("GET", upload, self._upload_status)
        add("PATCH", upload, self._patch_upload)
        add("PUT", upload, self._finish_upload)
        add("DELETE", upload, self._cancel_upload)
        blob = f"/v2/{{name:{_NAME}}}/blobs/{{digest}}"
        add("GET", blob, self._get_blob)
        add("HEAD", blob, self._get_blob)
        add("DELETE", blob, self._delete_blob)
        app.on_cleanup.append(self._cleanup)
        return app

    async def _cleanup(self, _app: web.Application) -> None:
        self._uploads.close()

    # --- around every request ----------------------------------------------------------------

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        denied = self._denied(request)
        response = denied or await self._handled(request, handler)
        if not response.prepared:
            response.headers["Docker-Distribution-API-Version"] = "registry/2.0"
        return response

    def _denied(self, request: web.Request) -> web.Response | None:
        if self._options.users and not self._is_known(request.headers.get("Authorization", "")):
            challenge = {"WWW-Authenticate": 'Basic realm="boxwright"'}
            return _error(401, "UNAUTHORIZED", "authentication required", headers=challenge)
        if self._options.read_only and request.method not in {"GET", "HEAD"}:
            return _error(405, "UNSUPPORTED", "this registry is read-only", headers=_READS)
        return None

    def _is_known(self, header: str) -> bool:
        scheme, _, value = header.partition(" ")
        try:
            user, _, password = base64.b64decode(value, validate=True).decode().partition(":")
        except ValueError:
            return False
        wanted = self._options.users.get(user)
        return (
            scheme.lower() == "basic"
            and wanted is not None
            and hmac.compare_digest(wanted.encode(), password.encode())
        )

    async def _handled(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if len(request.match_info.get("name", "")) > _NAME_LIMIT:
                return _error(404, "NAME_INVALID", "the repository name is too long")
            return await handler(request)
        except web.HTTPNotFound:
            return _error(404, "NAME_INVALID", "no such endpoint or an invalid repository name")
        except web.HTTPMethodNotAllowed as exc:
            headers = {"Allow": exc.headers["Allow"]}
            return _error(405, "UNSUPPORTED", "the operation is unsupported", headers=headers)
        except ManifestInvalidError as exc:
            if exc.missing is not None:
                detail = {"digest": exc.missing}
                return _error(404, "MANIFEST_BLOB_UNKNOWN", str(exc), detail=detail)
            return _error(400, "MANIFEST_INVALID", str(exc))
        except (ConnectionError, web.RequestPayloadError) as exc:
            _log.info("registry: %s %s broke off: %s", request.method, request.path, exc)
            return _error(400, "BLOB_UPLOAD_INVALID", "the request broke off")
        except BoxwrightError as exc:
            for kind, status, code in _REFUSALS:
                if isinstance(exc, kind):
                    return _error(status, code, str(exc))
            _log.warning("registry: %s %s: %s", request.method, request.path, exc)
            return _error(500, "UNKNOWN", str(exc))

    # --- names -------------------------------------------------------------------------------

    async def _base(self, _request: web.Request) -> web.Response:
        return web.json_response({})

    async def _catalog(self, request: web.Request) -> web.Response:
        names = await to_worker(self._repositories.names)
        return _page(request, "repositories", names, {})

    async def _tags(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if not await to_worker(self._repositories.exists, name):
            return _error(404, "NAME_UNKNOWN", "repository name not known to registry")
        tags = await to_worker(self._repositories.tags, name)
        return _page(request, "tags", tags, {"name": name})

    async def _referrers(self, request: web.Request) -> web.Response:
        digest = Digest(request.match_info["digest"])
        kind = request.query.get("artifactType", "")
        found = await to_worker(
            self._repositories.referrers, request.match_info["name"], digest, kind
        )
        body = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": found,
        }
        # Set as a header: the charset that json_response appends confuses exact comparisons.
        headers = {"Content-Type": "application/vnd.oci.image.index.v1+json"}
        if kind:
            headers["OCI-Filters-Applied"] = "artifactType"
        return web.Response(body=json.dumps(body).encode(), headers=headers)

    # --- manifests ---------------------------------------------------------------------------

    async def _get_manifest(self, request: web.Request) -> web.StreamResponse:
        name, reference = request.match_info["name"], request.match_info["reference"]
        found = await to_worker(self._repositories.find, name, reference)
        if found is None:
            return _error(
                404, "MANIFEST_UNKNOWN", "manifest unknown", detail={"reference": reference}
            )
        headers = {
            "Docker-Content-Digest": found.digest,
            "Content-Type": found.media_type,
            "ETag": entity_tag(found.digest),
        }
        if not found.is_kept:
            headers[NOT_KEPT] = "true"
        condition = Condition.of(request.headers)
        condition.check_match(found.digest)
        if condition.is_known(found.digest):
            return web.Response(status=304, headers=headers)
        if request.method == "HEAD":
            return web.Response(headers={**headers, "Content-Length": str(found.size)})
        body = await to_worker(self._store.blobs.read, found.digest)
        return web.Response(body=body, headers=headers)

    async def _put_manifest(self, request: web.Request) -> web.Response:
        name, reference = request.match_info["name"], request.match_info["reference"]
        # Several names at once are for a push by digest: the only way to give a tag to a
        # manifest that is not known by its sha256.
        by_digest = Digest(reference) if ":" in reference else None
        tags = request.query.getall("tag", []) if by_digest else [reference]
        if not all(map(_TAG.match, tags)):
            return _error(400, "TAG_INVALID", "manifest tag is not valid")
        if (request.content_length or 0) > MANIFEST_LIMIT_BYTES:
            return _error(413, "SIZE_INVALID", f"over {MANIFEST_LIMIT_BYTES} bytes")
        body = bytearray()
        async for chunk in request.content.iter_chunked(1 << 16):
            body += chunk
            if len(body) > MANIFEST_LIMIT_BYTES:
                return _error(413, "SIZE_INVALID", f"over {MANIFEST_LIMIT_BYTES} bytes")
        digest = by_digest or Digest.of(body)
        if not digest.matches(body):
            return _error(400, "DIGEST_INVALID", "the manifest has another digest")
        subject = await to_worker(
            self._repositories.put_manifest,
            name,
            digest,
            tags,
            request.content_type,
            bytes(body),
            self._store.clock.now_ns(),
            Condition.of(request.headers),
        )
        headers = {
            "Location": f"/v2/{name}/manifests/{digest}",
            "Docker-Content-Digest": str(digest),
        }
        if subject:
            headers["OCI-Subject"] = str(subject)
        if by_digest and tags:
            headers["OCI-Tag"] = ", ".join(tags)
        return web.Response(status=201, headers=headers)

    async def _delete_manifest(self, request: web.Request) -> web.Response:
        name, reference = request.match_info["name"], request.match_info["reference"]
        if ":" in reference:
            Digest(reference)
        condition = Condition.of(request.headers)
        if not await to_worker(self._repositories.delete_manifest, name, reference, condition):
            return _error(404, "MANIFEST_UNKNOWN", "manifest unknown")
        return web.Response(status=202)

    # --- blobs -------------------------------------------------------------------------------

    async def _get_blob(self, request: web.Request) -> web.StreamResponse:
        name, digest = request.match_info["name"], Digest(request.match_info["digest"])
        if not await to_worker(self._repositories.shows_blob, name, digest):
            return _error(404, "BLOB_UNKNOWN", "blob unknown to registry")
        if request.method == "HEAD":
            # Who asks is about to push something that needs it.
            await to_worker(self._store.blobs.touch, digest)
        headers = {
            "Docker-Content-Digest": str(digest),
            "Content-Type": "application/octet-stream",
            "Cache-Control": "max-age=31536000",
        }
        condition = Condition.of(request.headers)
        condition.check_match(digest)
        tag = entity_tag(digest)
        if condition.is_known(digest):
            return web.Response(status=304, headers={**headers, "ETag": tag})
        in_part = request.method == "GET" and is_range_for(request.headers, digest)
        path = self._store.blobs.path(digest)
        return BlobResponse(path, headers=headers, entity_tag=tag, in_part=in_part)

    async def _delete_blob(self, request: web.Request) -> web.Response:
        name, digest = request.match_info["name"], Digest(request.match_info["digest"])
        if await to_worker(self._repositories.needs_blob, name, digest):
            needed = "a manifest of this repository needs the blob"
            return _error(405, "UNSUPPORTED", needed, headers=_READS)
        was_shown = await to_worker(self._repositories.remove_blob, name, digest)
        if not was_shown:
            return _error(404, "BLOB_UNKNOWN", "blob unknown to registry")
        return web.Response(status=202)

    # --- uploads -----------------------------------------------------------------------------

    async def _start_upload(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        algorithm = request.query.get("digest-algorithm", CANONICAL)
        if "mount" in request.query:
            digest = Digest(request.query["mount"])
            algorithm = digest.algorithm
            source = request.query.get("from", "")
            if await to_worker(self._mount, source, name, digest):
                return _created(name, digest)
        elif "digest" in request.query:
            digest = Digest(request.query["digest"])
            upload = self._uploads.start(name, digest.algorithm)
            try:
                return await self._complete(request, upload, digest)
            except BaseException:
                self._uploads.cancel(upload)  # nobody was told where to go on with it
                raise
        upload = self._uploads.start(name, algorithm)
        return web.Response(
            status=202,
            headers={
                "Location": f"/v2/{name}/blobs/uploads/{upload.id}",
                "Docker-Upload-UUID": upload.id,
                "Range": "0-0",
            },
        )

    def _mount(self, source: str, name: str, digest: Digest) -> bool:
        self._repositories.expect_blob(digest, self._store.clock.now_ns())
        if not source or not self._repositories.shows_blob(source, digest):
            return False
        self._repositories.add_blob(name, digest)
        return True

    def _upload(self, request: web.Request) -> Upload:
        return self._uploads.get(request.match_info["name"], request.match_info["upload"])

    async def _upload_status(self, request: web.Request) -> web.Response:
        return _progress(self._upload(request), 204)

    async def _patch_upload(self, request: web.Request) -> web.Response:
        upload = self._upload(request)
        await self._uploads.append(upload, _body(request), start=_chunk_start(request))
        return _progress(upload, 202)

    async def _finish_upload(self, request: web.Request) -> web.Response:
        upload = self._upload(request)
        if "digest" not in request.query:
            return _error(400, "DIGEST_INVALID", "the digest parameter is missing")
        return await self._complete(request, upload, Digest(request.query["digest"]))

    async def _complete(
        self, request: web.Request, upload: Upload, digest: Digest
    ) -> web.Response:
        await self._uploads.append(upload, _body(request), start=_chunk_start(request))
        now_ns = self._store.clock.now_ns()
        await to_worker(self._repositories.expect_blob, digest, now_ns)
        await self._uploads.finish(upload, digest)
        await to_worker(self._repositories.add_blob, upload.repository, digest)
        return _created(upload.repository, digest)

    async def _cancel_upload(self, request: web.Request) -> web.Response:
        self._uploads.cancel(self._upload(request))
        return web.Response(status=204)


def _body(request: web.Request) -> AsyncIterator[bytes]:
    return request.content.iter_chunked(1 << 18)


def _chunk_start(request: web.Request) -> int | None:
    header = request.headers.get("Content-Range")
    if header is None:
        return None
    found = _CONTENT_RANGE.fullmatch(header.strip())
    if found is None:
        raise RangeError("malformed Content-Range", detail=repr(header))
    return int(found[1])


def _progress(upload: Upload, status: int) -> web.Response:
    return web.Response(
        status=status,
        headers={
            "Location": f"/v2/{upload.repository}/blobs/uploads/{upload.id}",
            "Docker-Upload-UUID": upload.id,
            "Range": f"0-{max(0, upload.writer.size - 1)}",
        },
    )


def _created(name: str, digest: Digest) -> web.Response:
    return web.Response(
        status=201,
        headers={
            "Location": f"/v2/{name}/blobs/{digest}",
            "Docker-Content-Digest": str(digest),
        },
    )


def _page(
    request: web.Request, key: str, items: list[str], extra: Mapping[str, str]
) -> web.Response:
    """Answer with a page of a sorted list; ``n`` and ``last`` as the specification says."""
    last = request.query.get("last", "")
    rest = [item for item in items if item > last] if last else items
    limit_text = request.query.get("n", "")
    headers = {}
    if _PAGE.match(limit_text):
        limit = int(limit_text)
        if len(rest) > limit > 0:
            rest = rest[:limit]
            target = f"{request.path}?n={limit}&last={rest[-1]}"
            headers["Link"] = f'<{target}>; rel="next"'
        elif limit == 0:
            rest = []
    return web.json_response({**extra, key: rest}, headers=headers)


def make_app(store: Store, options: ServerOptions | None = None) -> web.Application:
    """Return the registry over ``store`` as an aiohttp application."""
    return RegistryApp(store, options or ServerOptions()).application()
