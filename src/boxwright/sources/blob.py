"""Single blobs as build sources: ``docker-image+blob://…`` and ``oci-layout+blob://…``.

A blob of a registry's repository or of a client's OCI layout, named by its digest, becomes a tree
with one file. Keys are BuildKit's (source/containerblob). Git sources take bundles from here, too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from boxwright.core import gojson
from boxwright.core.dataclass import dataclass, field
from boxwright.core.digest import Digest
from boxwright.core.locks import KeyedLocks
from boxwright.core.platform import Platform
from boxwright.errors import InvalidInputError, LimitExceededError
from boxwright.session.manager import SessionManager
from boxwright.snapshots.manager import SnapshotManager
from boxwright.snapshots.refs import ImmutableRef
from boxwright.sources.base import SourceContext, SourceKey
from boxwright.sources.bloblocator import LAYOUT_SCHEME, BlobLocator
from boxwright.sources.fetch import AsyncSink
from boxwright.sources.http_attributes import parse_go_int, safe_filename
from boxwright.sources.http_errors import HttpDigestMismatchError
from boxwright.sources.http_records import HttpRecord, HttpRecords
from boxwright.sources.http_save import DownloadedFile, save_from
from boxwright.sources.oci_layout import LayoutImage

if TYPE_CHECKING:
    from boxwright.sources.registry import Clients

_DEFAULT_MODE = 0o600
_LIMIT_BYTES = 64 << 30


class BlobFiles:
    """Brings blobs into trees of one file each, over one state folder.

    Args:
        snapshots: Where the trees are made.
        clients: For registries.
        sessions: Whose layouts can be read.
        keep_owner: Whether owners other than root can be set (not in a user namespace).
    """

    def __init__(
        self,
        snapshots: SnapshotManager,
        clients: Clients,
        sessions: SessionManager,
        *,
        keep_owner: bool = True,
    ) -> None:
        self._snapshots = snapshots
        self._clients = clients
        self._sessions = sessions
        self._keep_owner = keep_owner
        self._records = HttpRecords(snapshots.store.db)
        self._locks = KeyedLocks()

    async def tree(
        self, locator: BlobLocator, file: DownloadedFile, context: SourceContext
    ) -> ImmutableRef:
        """Return a tree with the blob as a file; what was fetched under this name is reused.

        Raises:
            HttpDigestMismatchError: something else came.
            BoxwrightError: of the registry, or of the session.
        """
        if not self._keep_owner:
            file = DownloadedFile(file.name, file.mode)
        request = Digest.of(gojson.encode([str(locator), file.name, file.mode, *file.owner]))
        async with self._locks(request):
            for record in self._records.find(request):
                known = self._snapshots.get(record.snapshot_id)
                if known is not None:
                    return known
            ref = await self._fetch(locator, file, context)
            self._records.add(request, HttpRecord(ref.id, locator.digest, file.name))
            return ref

    async def _fetch(
        self, locator: BlobLocator, file: DownloadedFile, context: SourceContext
    ) -> ImmutableRef:
        fill = self._from_layout if locator.scheme == LAYOUT_SCHEME else self._from_registry
        ref, digest = await save_from(
            self._snapshots,
            f"blob {locator.ref}",
            file,
            fill(locator, context),
            progress=context.progress,
        )
        if digest != locator.digest:
            await ref.release()
            raise HttpDigestMismatchError(str(locator), digest, locator.digest)
        return ref

    def _from_registry(
        self, locator: BlobLocator, context: SourceContext
    ) -> Callable[[AsyncSink], Awaitable[None]]:
        async def fill(sink: AsyncSink) -> None:
            async with self._clients(context.sessions.ids) as client:
                descriptor = await client.stat_blob(locator.ref, locator.digest)
                _check_size(descriptor.size)
                await client.fetch_blob(locator.ref, descriptor, sink)

        return fill

    def _from_layout(
        self, locator: BlobLocator, context: SourceContext
    ) -> Callable[[AsyncSink], Awaitable[None]]:
        ids = (locator.session_id,) if locator.session_id else context.sessions.ids
        layout = LayoutImage(self._sessions, ids, locator.store_id, locator.digest)

        async def fill(sink: AsyncSink) -> None:
            taken = 0
            async for piece in layout.read(locator.digest):
                taken += len(piece)
                _check_size(taken)
                await sink.write(piece)

        return fill


def _check_size(size: int) -> None:
    if size > _LIMIT_BYTES:
        raise LimitExceededError("blob is too large", detail=f"over {_LIMIT_BYTES} bytes")


@dataclass(frozen=True, slots=True)
class BlobAttributes:
    """The identifier and attributes of a blob source op (solver/pb attr.go)."""

    locator: BlobLocator
    filename: str = ""
    mode: int = 0
    owner: tuple[int, int] = field(default=(0, 0))

    @classmethod
    def parse(cls, scheme: str, rest: str, attrs: Mapping[str, str]) -> BlobAttributes:
        """Read ``<scheme>://<rest>`` and the attributes.

        Raises:
            InvalidInputError: one is malformed, or the layout is not named.
        """
        locator = BlobLocator.parse(scheme, rest, attrs)
        if scheme == LAYOUT_SCHEME and not locator.store_id:
            raise InvalidInputError("oci-layout blob source requires store id")
        numbers = [
            parse_go_int(name, attrs.get(name, "0"))
            for name in ("http.perm", "http.uid", "http.gid")
        ]
        name = attrs.get("http.filename", "")
        return cls(
            locator, safe_filename(name) if name else "", numbers[0], (numbers[1], numbers[2])
        )

    @property
    def file(self) -> DownloadedFile:
        """How the blob lies in its tree."""
        name = self.filename or self.locator.digest.hex
        return DownloadedFile(name, (self.mode or _DEFAULT_MODE) & 0o777, self.owner)

    def cache_key(self) -> str:
        """Return the digest of BuildKit's key structure."""
        uid, gid = self.owner
        fields: dict[str, object] = {
            "Digest": str(self.locator.digest),
            "Filename": self.filename,
            "Perm": self.mode,
            "UID": uid,
            "GID": gid,
        }
        return str(Digest.of(gojson.encode(fields)))


class BlobSources:
    """Provider of one of the schemes (:class:`sources.base.SourceProvider`)."""

    def __init__(self, scheme: str, files: BlobFiles) -> None:
        self._scheme = scheme
        self._files = files

    def resolve(
        self, rest: str, attrs: Mapping[str, str], platform: Platform | None
    ) -> BlobSource:
        """Return the source of ``<scheme>://<rest>``."""
        del platform
        return BlobSource(self._files, BlobAttributes.parse(self._scheme, rest, attrs))


class BlobSource:
    """One blob op."""

    def __init__(self, files: BlobFiles, wanted: BlobAttributes) -> None:
        self._files = files
        self._wanted = wanted

    async def cache_key(self, context: SourceContext, index: int) -> SourceKey:
        """Return the one key; nothing is asked for it."""
        del context, index
        return SourceKey(self._wanted.cache_key(), str(self._wanted.locator.digest))

    async def snapshot(self, context: SourceContext) -> ImmutableRef:
        """Return the tree that holds the one file.

        Raises:
            HttpDigestMismatchError: something else came.
            BoxwrightError: of the registry, or of the session.
        """
        return await self._files.tree(self._wanted.locator, self._wanted.file, context)
