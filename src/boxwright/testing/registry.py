"""A registry in memory that misbehaves on request, for tests of clients and of pushes.

It speaks as much of the distribution API as pulling and pushing needs, notes every request,
and does what its :class:`Faults` say. Usage::

    async with FakeRegistry(faults=Faults(lose_blobs={digest})) as registry:
        ref = Reference(registry.host, "app", "1")
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self
from urllib.parse import parse_qs

from aiohttp import web

from boxwright.core.digest import Digest

_ROUTE = re.compile(
    r"/v2/(?P<name>.+)/(?P<kind>manifests|blobs|referrers)/(?P<rest>(?:uploads/)?[^/]*)\Z"
)


@dataclass(frozen=True)
class Recorded:
    """One request as it came in."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]


@dataclass
class Failure:
    """Answer requests that match with ``status``, as often as ``times`` says."""

    method: str
    path: str
    status: int
    times: int = 1
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass
class Faults:
    """What goes wrong.

    Attributes:
        failures: answers instead of the real ones, first match first.
        lose_blobs: digests that are taken and then not there any more.
        lose_manifests: the same for manifests, by digest.
        move_tags: where a tag leads after it was pushed.
        ignore_tags: store manifests by digest only, and say that all is well.
        break_downloads: how many downloads break off, after ``break_after`` bytes.
        stall_downloads: how many downloads stop moving after ``break_after`` bytes.
        end_early: how many downloads end after ``break_after`` bytes as if that were all.
        break_uploads: how many uploads break off after ``break_after`` bytes.
        stall_uploads: how many uploads are not read any more after ``break_after`` bytes.
        break_after: bytes that get through.
        replace_blobs: other bytes than the digest says.
        endless: blobs that never end.
        no_ranges: ignore Range headers.
        largest_body: answer 413 to larger bodies, 0 for any size.
        redirect_blobs: base address that blob downloads are redirected to.
        refuse_mounts: begin an upload where a mount was asked for.
        no_referrers: know nothing of the API that lists what refers to a manifest.
    """

    failures: list[Failure] = field(default_factory=list)
    lose_blobs: set[str] = field(default_factory=set)
    lose_manifests: set[str] = field(default_factory=set)
    move_tags: dict[str, Digest] = field(default_factory=dict)
    ignore_tags: bool = False
    break_downloads: int = 0
    stall_downloads: int = 0
    end_early: int = 0
    break_uploads: int = 0
    stall_uploads: int = 0
    break_after: int = 0
    replace_blobs: dict[str, bytes] = field(default_factory=dict)
    endless: bool = False
    no_ranges: bool = False
    largest_body: int = 0
    redirect_blobs: str = ""
    refuse_mounts: bool = False
    no_referrers: bool = False


@dataclass
class Auth:
    """Who may do what.

    Attributes:
        kind: how to log in.
        users: passwords by name; nobody: anonymous tokens are given out.
        refresh_tokens: identity tokens that are accepted for a token.
        realm: of the token server, by default this registry's own ``/token``.
        lifetime_s: of tokens, as told to the client.
        uses: how many requests a token is good for, 0 for any number.
    """

    kind: Literal["none", "basic", "bearer"] = "none"
    users: Mapping[str, str] = field(default_factory=dict)
    refresh_tokens: frozenset[str] = frozenset()
    realm: str = ""
    lifetime_s: int = 300
    uses: int = 0


class FakeRegistry:
    """One registry on a loopback port; an asynchronous context manager."""

    def __init__(
        self,
        *,
        faults: Faults | None = None,
        auth: Auth | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.faults = faults or Faults()
        self.auth = auth or Auth()
        self.requests: list[Recorded] = []
        self.blobs: dict[tuple[str, str], bytes] = {}
        self.manifests: dict[tuple[str, str], tuple[str, bytes]] = {}
        self.tags: dict[tuple[str, str], Digest] = {}
        self.peers: set[object] = set()
        self._tls = tls
        self._uploads: dict[str, bytearray] = {}
        self._tokens: dict[str, tuple[str, int]] = {}
        self._numbers = itertools.count(1)
        self._released = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self.host = ""

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=1 << 40)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls).start()
        self.host = f"127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._released.set()
        if self._runner is not None:
            await self._runner.cleanup()

    @property
    def url(self) -> str:
        """The address of the registry."""
        return f"{'https' if self._tls else 'http'}://{self.host}"

    def put_blob(self, name: str, data: bytes) -> Digest:
        """Store a blob."""
        digest = Digest.of(data)
        self.blobs[name, digest] = data
        return digest

    def put_manifest(
        self, name: str, tag: str, manifest: object, media_type: str = ""
    ) -> tuple[Digest, bytes]:
        """Store a manifest (a JSON object, or bytes as they are) under a tag."""
        body = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
        digest = Digest.of(body)
        if not media_type and isinstance(manifest, dict):
            media_type = str(manifest.get("mediaType", ""))
        self.manifests[name, digest] = (media_type, body)
        if tag:
            self.tags[name, tag] = digest
        return digest, body

    def count(self, method: str, part: str = "") -> int:
        """Return how many requests with this method had ``part`` in their path."""
        return sum(1 for r in self.requests if r.method == method and part in r.path)

    # --- handling ----------------------------------------------------------------------------

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        headers = dict(request.headers)
        self.requests.append(Recorded(request.method, request.path, request.query_string, headers))
        if request.transport is not None:
            self.peers.add(request.transport.get_extra_info("peername"))
        return await self._answer(request)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        for failure in self.faults.failures:
            if failure.times and failure.method == request.method and failure.path in request.path:
                failure.times -= 1
                return web.Response(
                    status=failure.status, headers=failure.headers, body=failure.body
                )
        if request.path == "/token":
            return await self._token(request)
        denied = self._denied(request)
        if denied is not None:
            return denied
        if request.path == "/v2/":
            return web.json_response({})
        found = _ROUTE.match(request.path)
        if found is None:
            return _error(404, "NAME_UNKNOWN")
        name, rest = found["name"], found["rest"]
        if found["kind"] == "manifests":
            return await self._manifest(request, name, rest)
        if found["kind"] == "referrers":
            return self._referrers(name, rest)
        if rest.startswith("uploads/"):
            return await self._upload(request, name, rest.removeprefix("uploads/"))
        return await self._blob(request, name, rest)

    async def _manifest(
        self, request: web.Request, name: str, reference: str
    ) -> web.StreamResponse:
        if request.method == "PUT":
            body = await request.read()
            digest = Digest(reference) if ":" in reference else Digest.of(body)
            self.manifests[name, digest] = (request.content_type, body)
            if ":" not in reference and not self.faults.ignore_tags:
                self.tags[name, reference] = self.faults.move_tags.get(reference, digest)
            return web.Response(status=201, headers={"Docker-Content-Digest": digest})
        wanted = reference if ":" in reference else self.tags.get((name, reference), "")
        found = self.manifests.get((name, wanted))
        if found is None or wanted in self.faults.lose_manifests:
            return _error(404, "MANIFEST_UNKNOWN")
        headers = {"Docker-Content-Digest": wanted, "Content-Type": found[0] or "text/plain"}
        return web.Response(body=found[1], headers=headers)

    def _referrers(self, name: str, subject: str) -> web.Response:
        if self.faults.no_referrers:
            return _error(404, "NAME_UNKNOWN")
        entries = []
        for (repository, digest), (media_type, body) in self.manifests.items():
            data = json.loads(body)
            if repository == name and (data.get("subject") or {}).get("digest") == subject:
                entry = {"mediaType": media_type, "digest": digest, "size": len(body)}
                kind = data.get("artifactType") or data["config"]["mediaType"]
                notes = data.get("annotations") or {}
                entries.append({**entry, "artifactType": kind, "annotations": notes})
        index = "application/vnd.oci.image.index.v1+json"
        listed = {"schemaVersion": 2, "mediaType": index, "manifests": entries}
        return web.Response(body=json.dumps(listed).encode(), headers={"Content-Type": index})

    async def _blob(self, request: web.Request, name: str, digest: str) -> web.StreamResponse:
        data = self.blobs.get((name, digest))
        faults = self.faults
        if data is None or digest in faults.lose_blobs:
            return _error(404, "BLOB_UNKNOWN")
        if request.method == "HEAD":
            return web.Response(headers={"Content-Length": str(len(data))})
        if faults.redirect_blobs:
            location = f"{faults.redirect_blobs}/v2/{name}/blobs/{digest}"
            return web.Response(status=307, headers={"Location": location})
        data = faults.replace_blobs.get(digest, data)
        start = 0
        ranged = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        if ranged and not faults.no_ranges:
            start = int(ranged[1])
        response = web.StreamResponse(status=206 if start else 200)
        if not faults.endless and not faults.end_early:
            response.content_length = len(data) - start
        if start:
            response.headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        await response.prepare(request)
        await self._send(request, response, data[start:])
        return response

    async def _send(self, request: web.Request, response: web.StreamResponse, data: bytes) -> None:
        faults = self.faults
        if faults.break_downloads or faults.stall_downloads or faults.end_early:
            await response.write(data[: faults.break_after])
        if faults.break_downloads:
            faults.break_downloads -= 1
            _abort(request)
        elif faults.stall_downloads:
            faults.stall_downloads -= 1
            await self._released.wait()
        elif faults.end_early:
            faults.end_early -= 1
            await response.write_eof()
        elif faults.endless:
            try:
                while not self._released.is_set():
                    await response.write(data)
            except ConnectionError:
                return
        else:
            await response.write(data)

    async def _upload(self, request: web.Request, name: str, upload: str) -> web.StreamResponse:
        query = parse_qs(request.query_string)
        if request.method == "POST":
            mounted = query.get("mount", [""])[0]
            data = self.blobs.get((query.get("from", [""])[0], mounted))
            if data is not None and not self.faults.refuse_mounts:
                self.blobs[name, mounted] = data
                return web.Response(status=201, headers={"Docker-Content-Digest": mounted})
            upload = f"u{next(self._numbers)}"
            self._uploads[upload] = bytearray()
            return self._progress(name, upload, 202)
        if upload not in self._uploads:
            return _error(404, "BLOB_UPLOAD_UNKNOWN")
        if request.method == "GET":
            return self._progress(name, upload, 204)
        largest = self.faults.largest_body
        if largest and (request.content_length or 0) > largest:
            return _error(413, "SIZE_INVALID")
        staged = self._uploads[upload]
        start = request.headers.get("Content-Range", f"{len(staged)}-").partition("-")[0]
        if int(start) != len(staged):
            return _error(416, "BLOB_UPLOAD_INVALID")
        await self._receive(request, staged)
        if request.method == "PATCH":
            return self._progress(name, upload, 202)
        digest = Digest.of(staged)
        if digest != query.get("digest", [""])[0]:
            return _error(400, "DIGEST_INVALID")
        self.blobs[name, digest] = bytes(self._uploads.pop(upload))
        return web.Response(status=201, headers={"Docker-Content-Digest": digest})

    async def _receive(self, request: web.Request, staged: bytearray) -> None:
        faults = self.faults
        received = 0
        async for chunk in request.content.iter_any():
            staged += chunk
            received += len(chunk)
            if received >= faults.break_after and faults.break_uploads:
                faults.break_uploads -= 1
                _abort(request)
                return
            if received >= faults.break_after and faults.stall_uploads:
                faults.stall_uploads -= 1
                await self._released.wait()

    def _progress(self, name: str, upload: str, status: int) -> web.Response:
        end = max(0, len(self._uploads[upload]) - 1)
        headers = {"Location": f"/v2/{name}/blobs/uploads/{upload}", "Range": f"0-{end}"}
        return web.Response(status=status, headers=headers)

    # --- logins ------------------------------------------------------------------------------

    def _denied(self, request: web.Request) -> web.Response | None:
        header = request.headers.get("Authorization", "")
        if self.auth.kind == "none" or (
            self.auth.kind == "basic" and self._user(header) is not None
        ):
            return None
        if self.auth.kind == "basic":
            return _error(401, "UNAUTHORIZED", {"WWW-Authenticate": 'Basic realm="fake"'})
        name = re.split("/(?:manifests|blobs|referrers)/", request.path.removeprefix("/v2/"))[0]
        action = "pull" if request.method in {"GET", "HEAD"} else "pull,push"
        wanted = f"repository:{name}:{action}"
        token = header.removeprefix("Bearer ")
        scope, uses = self._tokens.get(token, ("", 0))
        if self._covers(scope, name, action) and (uses or not self.auth.uses):
            self._tokens[token] = (scope, uses - 1)
            return None
        realm = self.auth.realm or f"{self.url}/token"
        challenge = f'Bearer realm="{realm}",service="fake",scope="{wanted}"'
        return _error(401, "UNAUTHORIZED", {"WWW-Authenticate": challenge})

    def _covers(self, scopes: str, name: str, action: str) -> bool:
        for scope in scopes.split():
            kind, _, rest = scope.partition(":")
            repository, _, actions = rest.rpartition(":")
            granted = set(actions.split(","))
            if kind == "repository" and repository == name and set(action.split(",")) <= granted:
                return True
        return False

    def _user(self, header: str) -> str | None:
        if not header.startswith("Basic "):
            return None
        user, _, password = base64.b64decode(header[6:]).decode().partition(":")
        return user if self.auth.users.get(user) == password else None

    async def _token(self, request: web.Request) -> web.Response:
        if request.method == "POST":
            form = await request.post()
            scope = str(form.get("scope", ""))
            allowed = form.get("refresh_token") in self.auth.refresh_tokens
        else:
            scope = " ".join(request.query.getall("scope", []))
            user = self._user(request.headers.get("Authorization", ""))
            allowed = user is not None or not self.auth.users
        if not allowed:
            return _error(401, "UNAUTHORIZED")
        token = f"token-{next(self._numbers)}"
        self._tokens[token] = (scope, self.auth.uses)
        return web.json_response({"token": token, "expires_in": self.auth.lifetime_s})


def _error(status: int, code: str, headers: Mapping[str, str] | None = None) -> web.Response:
    body: dict[str, Any] = {"errors": [{"code": code, "message": code.lower()}]}
    return web.json_response(body, status=status, headers=headers)


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()
