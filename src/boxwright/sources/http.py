"""Files from the web as build sources (``http://…``, ``https://…``).

The cache key is BuildKit's (source/http): of the content's digest, the file's name, mode and
owner, and when the server says that it changed. So the content is fetched to make the key,
unless a checksum is given or the server says that what we have is still current. URLs of the
host ``buildkit-session`` stand for streams that the client uploads.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from boxwright.core.dataclass import dataclass
from boxwright.core.digest import Digest
from boxwright.core.locks import KeyedLocks
from boxwright.core.platform import Platform
from boxwright.core.workers import to_worker
from boxwright.errors import BoxwrightError, InvalidInputError
from boxwright.session.base import Session
from boxwright.snapshots.manager import SnapshotManager
from boxwright.snapshots.refs import ImmutableRef
from boxwright.sources.base import SourceContext, SourceKey
from boxwright.sources.http_attributes import HttpAttributes, choose_filename, parse_http_date
from boxwright.sources.http_errors import (
    HttpDigestMismatchError,
    HttpSignatureError,
    status_error,
)
from boxwright.sources.http_records import HttpRecord, HttpRecords
from boxwright.sources.http_request import HttpRequest, redacted
from boxwright.sources.http_save import DownloadedFile, save
from boxwright.sources.resolutions import resolve_once

if TYPE_CHECKING:
    from boxwright.sources.http_fetch import HttpAnswer, HttpFetcher

_SESSION_HOST = "buildkit-session"
_DEFAULT_MODE = 0o600
_HEADER_SECRET = "HTTP_AUTH_HEADER_"  # noqa: S105 - the name of a secret, as clients know it
_TOKEN_SECRET = "HTTP_AUTH_TOKEN_"  # noqa: S105
_KEPT_UPLOADS = 64
_STRONG_AFTER_S = 60
_MAX_SUFFIX_BYTES = 4 << 10


@dataclass(frozen=True, slots=True)
class HttpMetadata:
    """What a URL resolved to; ``snapshot_id`` is empty while nothing was fetched."""

    digest: Digest
    filename: str
    modified: datetime | None = None
    snapshot_id: str = ""


class HttpSources:
    """Provider of one of the schemes; all share their downloads."""

    def __init__(self, scheme: str, downloads: HttpDownloads) -> None:
        self._scheme = scheme
        self._downloads = downloads

    def resolve(
        self, rest: str, attrs: Mapping[str, str], platform: Platform | None
    ) -> HttpSource:
        """Return the source of ``<scheme>://<rest>``."""
        del platform
        wanted = HttpAttributes.parse(f"{self._scheme}://{rest}", attrs)
        return HttpSource(self._downloads, wanted)


class HttpSource:
    """One http or https op."""

    def __init__(self, downloads: HttpDownloads, wanted: HttpAttributes) -> None:
        self._downloads = downloads
        self._wanted = wanted
        self._resolved: HttpMetadata | None = None
        self._is_verified = False

    async def metadata(self, context: SourceContext) -> HttpMetadata:
        """Return what the URL resolves to; a checksum that is given is taken as it is.

        Raises:
            HttpError: no or an unwelcome answer.
            HttpSignatureError: the content is not signed as it has to be.
        """
        found = await self._resolve(context)
        if self._wanted.signature and not self._is_verified:
            await self._verify(context, found)
            self._is_verified = True
        return found

    async def _verify(self, context: SourceContext, found: HttpMetadata) -> None:
        # Not at start: few builds verify anything.
        from boxwright.sources.openpgp import SignatureError, verify_detached

        wanted = self._wanted
        async with (
            await self._downloads.snapshot(wanted, context, found) as ref,
            ref.mounted() as root,
        ):
            path = await to_worker(_only_file, root)
            try:
                await to_worker(verify_detached, path, wanted.signature, wanted.public_keys)
            except SignatureError as exc:
                raise HttpSignatureError(redacted(wanted.url), str(exc)) from exc

    async def _resolve(self, context: SourceContext) -> HttpMetadata:
        wanted = self._wanted
        if self._resolved is None and wanted.checksum is not None:
            self._resolved = HttpMetadata(
                wanted.checksum, choose_filename(wanted.url, wanted.filename)
            )
        if self._resolved is None:
            self._resolved = await resolve_once(
                context.resolutions,
                HttpMetadata,
                wanted.request_digest,
                lambda: self._downloads.resolve(wanted, context),
            )
        return self._resolved

    async def content_checksum(self, context: SourceContext, algorithm: str, suffix: bytes) -> str:
        """Return the digest of the content followed by ``suffix``.

        Args:
            context: as for all work.
            algorithm: ``sha256``, ``sha384`` or ``sha512``.
            suffix: up to 4 KiB.

        Raises:
            InvalidInputError: the suffix is too long.
            HttpError: no or an unwelcome answer.
        """
        if len(suffix) > _MAX_SUFFIX_BYTES:
            raise InvalidInputError(
                f"http checksum request suffix exceeds max size {_MAX_SUFFIX_BYTES}"
            )
        ref = await self.snapshot(context)
        async with ref, ref.mounted() as root:
            path = await to_worker(_only_file, root)

            def digest() -> str:
                with path.open("rb") as file:
                    hasher = hashlib.file_digest(file, algorithm)
                hasher.update(suffix)
                return f"{algorithm}:{hasher.hexdigest()}"

            return await to_worker(digest)

    async def cache_key(self, context: SourceContext, index: int) -> SourceKey:
        """Return the one key; the content is fetched for it unless a checksum is given."""
        del index
        found = await self.metadata(context)
        key = self._wanted.cache_key(found.digest, found.filename, found.modified)
        return SourceKey(key, str(found.digest))

    async def snapshot(self, context: SourceContext) -> ImmutableRef:
        """Return the tree that holds the one file.

        Raises:
            HttpDigestMismatchError: the content is not what the key was made of.
            HttpError: no or an unwelcome answer.
        """
        found = await self.metadata(context)
        return await self._downloads.snapshot(self._wanted, context, found)


class HttpDownloads:
    """Downloads into one state folder. Belongs to the event loop; close it at the end.

    Args:
        snapshots: where content goes.
        keep_owner: whether owners other than root can be set (not in a user namespace).
        limit_bytes: how large a download may be.
    """

    def __init__(
        self,
        snapshots: SnapshotManager,
        *,
        keep_owner: bool = True,
        limit_bytes: int = 64 << 30,
    ) -> None:
        self._snapshots = snapshots
        self._limit_bytes = limit_bytes
        self._fetcher: HttpFetcher | None = None
        self._keep_owner = keep_owner
        self._records = HttpRecords(snapshots.store.db)
        self._locks = KeyedLocks()
        self._uploads: dict[Digest, HttpRecord] = {}

    async def close(self) -> None:
        """Close all connections."""
        if self._fetcher is not None:
            await self._fetcher.close()

    async def _open(self) -> HttpFetcher:
        """Return the client; the HTTP stack is loaded with the first download."""
        if self._fetcher is None:
            module = "boxwright.sources.http_fetch"
            fetcher_type = (await to_worker(importlib.import_module, module)).HttpFetcher
            return self._made(fetcher_type)
        return self._fetcher

    def _made(self, fetcher_type: type[HttpFetcher]) -> HttpFetcher:
        if self._fetcher is None:  # another download may have been quicker
            self._fetcher = fetcher_type(limit_bytes=self._limit_bytes)
        return self._fetcher

    async def resolve(self, wanted: HttpAttributes, context: SourceContext) -> HttpMetadata:
        """Return what a URL resolves to now; its content is in a snapshot afterwards."""
        async with self._locks(wanted.request_digest):
            found = await self._current(wanted, context)
            if context.on_cleanup is not None:
                # The key must not outlive what it was made of: an upload comes only once.
                held = self._snapshots.get(found.snapshot_id)
                if held is not None:
                    context.on_cleanup(held.release)
            return _metadata(found)

    async def snapshot(
        self, wanted: HttpAttributes, context: SourceContext, expected: HttpMetadata
    ) -> ImmutableRef:
        """Return the snapshot of what was resolved, fetched again if it is gone."""
        async with self._locks(wanted.request_digest):
            if expected.snapshot_id:
                ref = self._snapshots.get(expected.snapshot_id)
                if ref is not None:
                    return ref
            for record in self._usable(wanted):
                if record.digest == expected.digest:
                    ref = self._snapshots.get(record.snapshot_id)
                    if ref is not None:
                        return ref
            record = await self._current(wanted, context)
            if record.digest != expected.digest:
                raise HttpDigestMismatchError(redacted(wanted.url), record.digest, expected.digest)
            ref = self._snapshots.get(record.snapshot_id)
            if ref is None:  # pruned between two lines
                raise BoxwrightError(f"the download of {redacted(wanted.url)} was removed")
            return ref

    def _usable(self, wanted: HttpAttributes) -> list[HttpRecord]:
        found = self._records.find(wanted.request_digest)
        upload = self._uploads.get(wanted.request_digest)
        if upload is not None:
            found.append(upload)
        return [record for record in found if self._snapshots.exists(record.snapshot_id)]

    async def _current(self, wanted: HttpAttributes, context: SourceContext) -> HttpRecord:
        if urlsplit(wanted.url).netloc == _SESSION_HOST:
            return await self._upload(wanted, context)
        login = await _login(wanted, context)
        request = HttpRequest(wanted.url, dict(wanted.headers), login)
        known = self._usable(wanted)
        tags = {record.etag: record for record in reversed(known) if record.etag}
        same = await self._ask_if_same(request, tags) if tags else None
        return same or await self._get(wanted, request, context, known, tags)

    async def _ask_if_same(
        self, request: HttpRequest, tags: Mapping[str, HttpRecord]
    ) -> HttpRecord | None:
        """Compare tags by a HEAD: servers exist that send tags and never a 304."""
        headers = {**request.headers, "If-None-Match": _join(tags)}
        try:
            async with (await self._open()).send(
                "HEAD", HttpRequest(request.url, headers, request.login)
            ) as answer:
                if answer.status not in {200, 304}:
                    return None
                return tags.get(_tag_of(answer, tags))
        except BoxwrightError:
            return None  # the GET will tell

    async def _get(
        self,
        wanted: HttpAttributes,
        request: HttpRequest,
        context: SourceContext,
        known: list[HttpRecord],
        tags: Mapping[str, HttpRecord],
    ) -> HttpRecord:
        headers = dict(request.headers)
        dated = next((record for record in known if record.is_dated and not record.etag), None)
        if tags:
            headers["If-None-Match"] = _join(tags)
        elif dated is not None:
            headers["If-Modified-Since"] = dated.last_modified
        conditional = HttpRequest(request.url, headers, request.login)
        async with (await self._open()).send("GET", conditional) as answer:
            if answer.status == 304:
                same = tags.get(_tag_of(answer, tags)) if tags else dated
                if same is not None:
                    return same
            if not 200 <= answer.status < 400 or answer.status == 304:
                raise status_error(
                    redacted(wanted.url), answer.status, answer.reason, _secret_hint(wanted)
                )
            record = await self._save(wanted, answer.body(), context, answer)
        self._records.add(wanted.request_digest, record)
        return record

    async def _upload(self, wanted: HttpAttributes, context: SourceContext) -> HttpRecord:
        """Take what the client sends; it can be asked only once."""
        known = self._uploads.get(wanted.request_digest)
        if known is not None and self._snapshots.exists(known.snapshot_id):
            return known
        path = urlsplit(wanted.url).path

        async def take(session: Session) -> HttpRecord:
            return await self._save(wanted, session.pull_upload(path), context, None)

        record = await context.sessions.any(take)
        while len(self._uploads) >= _KEPT_UPLOADS:
            self._uploads.pop(next(iter(self._uploads)))
        self._uploads[wanted.request_digest] = record
        return record

    async def _save(
        self,
        wanted: HttpAttributes,
        body: AsyncIterator[bytes],
        context: SourceContext,
        answer: HttpAnswer | None,
    ) -> HttpRecord:
        disposition = answer.headers.get("Content-Disposition", "") if answer else ""
        name = choose_filename(wanted.url, wanted.filename, disposition)
        last_modified = answer.headers.get("Last-Modified", "") if answer else ""
        modified = parse_http_date(last_modified)
        file = DownloadedFile(
            name,
            mode=(wanted.mode or _DEFAULT_MODE) & 0o777,
            owner=(wanted.uid, wanted.gid) if self._keep_owner else (0, 0),
            mtime_s=int(modified.timestamp()) if modified else 0,
        )
        ref, digest = await save(
            self._snapshots,
            f"http url {redacted(wanted.url)}",
            file,
            body,
            total_bytes=answer.size_bytes if answer else 0,
            progress=context.progress,
        )
        async with ref:
            return HttpRecord(
                ref.id,
                digest,
                name,
                _etag(answer) if answer else "",
                last_modified if modified else "",
                is_dated=_is_strong(modified, answer),
            )


def _only_file(root: Path) -> Path:
    return next(root.iterdir())


def _metadata(record: HttpRecord) -> HttpMetadata:
    modified = parse_http_date(record.last_modified)
    return HttpMetadata(record.digest, record.filename, modified, record.snapshot_id)


async def _login(wanted: HttpAttributes, context: SourceContext) -> str | None:
    """Return the value of ``Authorization`` that the client has for the host."""
    if wanted.auth_secret:
        return _text(await context.sessions.secret(wanted.auth_secret))
    host = urlsplit(wanted.url).hostname or ""
    for name, scheme in ((_TOKEN_SECRET + host, "Bearer "), (_HEADER_SECRET + host, "")):
        try:
            return scheme + _text(await context.sessions.secret(name))
        except BoxwrightError:
            continue  # not offered, or nobody there to ask: the server decides
    return None


def _text(secret: bytes) -> str:
    return secret.decode("utf-8", "surrogateescape").rstrip("\r\n")


def _secret_hint(wanted: HttpAttributes) -> str:
    if wanted.auth_secret:
        return f"is the secret {wanted.auth_secret} right?"
    name = _HEADER_SECRET + (urlsplit(wanted.url).hostname or "")
    return f"give the Authorization header as a secret: --secret id={name},src=FILE"


def _join(tags: Mapping[str, HttpRecord]) -> str:
    return ", ".join(tags)


def _etag(answer: HttpAnswer) -> str:
    return answer.headers.get("ETag", "").removeprefix("W/")


def _tag_of(answer: HttpAnswer, tags: Mapping[str, HttpRecord]) -> str:
    """Return the answer's tag; a 304 without one means the only tag that was asked about."""
    tag = _etag(answer)
    if not tag and answer.status == 304 and len(tags) == 1:
        return next(iter(tags))
    return tag


def _is_strong(modified: datetime | None, answer: HttpAnswer | None) -> bool:
    """Return whether the date was old enough for any later change to have another date."""
    if modified is None or answer is None:
        return False
    date = parse_http_date(answer.headers.get("Date", ""))
    return date is not None and (date - modified).total_seconds() >= _STRONG_AFTER_S
