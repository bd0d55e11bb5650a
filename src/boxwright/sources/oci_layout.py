"""Images in a client's OCI layout, as build sources (``oci-layout://…@sha256:…``).

The client serves its layouts as content stores over the session; an image is always named by
the digest of its manifest or index. What becomes of it is the same as for images from a
registry (:mod:`boxwright.sources.image`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol, cast

from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.core.platform import Platform
from boxwright.core.reference import Reference
from boxwright.errors import InvalidInputError, UnimplementedError
from boxwright.oci.manifest import detect_media_type
from boxwright.session.base import Session
from boxwright.session.manager import SessionManager
from boxwright.snapshots.manager import SnapshotManager
from boxwright.sources.fetch import AsyncSink, BlobFetcher, ImageRemote
from boxwright.sources.image import ImageSource
from boxwright.store import DigestMismatchError

SESSION_ATTR = "oci.session"
STORE_ATTR = "oci.store"
LAYER_LIMIT_ATTR = "oci.layerlimit"
_STORE_PREFIX = "oci:"
_MANIFEST_LIMIT_BYTES = 4 << 20


class ContentSession(Protocol):
    """A session whose client serves content stores (containerd's Content service)."""

    def read_content(self, store_id: str, digest: Digest) -> AsyncIterator[bytes]:
        """Read a whole blob.

        Args:
            store_id: which of the client's stores.
            digest: the blob.

        Raises:
            NotFoundError: no such store or blob.
        """
        ...


class LayoutImage:
    """One image in a client's layout (:class:`~boxwright.sources.image.ImageRemote`).

    Args:
        sessions: all clients.
        session_ids: the clients to ask, the one that the source names alone if it does.
        store_id: the client's name of the layout.
        digest: manifest or index of the image.
    """

    def __init__(
        self,
        sessions: SessionManager,
        session_ids: Sequence[str],
        store_id: str,
        digest: Digest,
    ) -> None:
        self._sessions = sessions
        self._ids = tuple(session_ids)
        self._store_id = _STORE_PREFIX + store_id
        self._digest = digest

    @property
    def source_labels(self) -> Mapping[str, str]:
        """Nothing: no registry can mount these blobs."""
        return {}

    async def manifest(self, digest: Digest | None) -> tuple[Descriptor, bytes]:
        """Return the image's root, or a manifest in it.

        Raises:
            NotFoundError: the layout lacks it.
            DigestMismatchError: the client sent something else.
            InvalidInputError: it is neither a manifest nor an index, or over 4 MiB.
        """
        wanted = digest or self._digest
        data = bytearray()
        async for piece in self.read(wanted):
            data += piece
            if len(data) > _MANIFEST_LIMIT_BYTES:
                raise InvalidInputError("manifest in the OCI layout is too large", detail=wanted)
        body = bytes(data)
        if not wanted.matches(body):
            raise DigestMismatchError(
                want=wanted, got=Digest.of(body), want_size=None, got_size=len(body)
            )
        return Descriptor(detect_media_type(body), wanted, len(body)), body

    async def blob(self, descriptor: Descriptor, sink: AsyncSink) -> None:
        """Stream a blob into ``sink``.

        Raises:
            NotFoundError: the layout lacks it.
            SessionLostError: the client is gone.
        """
        async for piece in self.read(descriptor.digest):
            await sink.write(piece)

    async def read(self, digest: Digest) -> AsyncIterator[bytes]:
        """Yield the bytes of any blob of the layout, as the client sends them.

        Raises:
            NotFoundError: the layout lacks it.
            SessionLostError: the client is gone.
        """
        async for piece in (await self._session()).read_content(self._store_id, digest):
            yield piece

    async def _session(self) -> ContentSession:
        return await self._sessions.group(self._ids).any(_with_content)


async def _with_content(session: Session) -> ContentSession:
    if not hasattr(session, "read_content"):
        raise UnimplementedError("this client serves no OCI layouts")
    return cast("ContentSession", session)


class OciLayoutProvider:
    """Sources of the scheme ``oci-layout`` (:class:`sources.base.SourceProvider`)."""

    def __init__(
        self, sessions: SessionManager, snapshots: SnapshotManager, fetcher: BlobFetcher
    ) -> None:
        self._sessions = sessions
        self._snapshots = snapshots
        self._fetcher = fetcher

    def resolve(
        self, rest: str, attrs: Mapping[str, str], platform: Platform | None
    ) -> ImageSource:
        """Return the source of ``NAME@DIGEST``.

        Raises:
            InvalidInputError: no digest is given, or an attribute is malformed.
        """
        digest = layout_digest(rest)
        session_id = attrs.get(SESSION_ATTR, "")
        store_id = attrs.get(STORE_ATTR, "")
        limit: int | None = None
        if LAYER_LIMIT_ATTR in attrs:
            text = attrs[LAYER_LIMIT_ATTR]
            if not text.isdigit() or not 0 < int(text) < 1000:
                raise InvalidInputError(f"invalid layer limit {text}")
            limit = int(text)

        async def open_image(
            session_ids: Sequence[str],
        ) -> tuple[ImageRemote, Descriptor, bytes]:
            ids = (session_id,) if session_id else session_ids
            image = LayoutImage(self._sessions, ids, store_id, digest)
            root, body = await image.manifest(None)
            return image, root, body

        return ImageSource(
            f"oci-layout://{rest}",
            open_image,
            platform or Platform.host(),
            self._snapshots,
            self._fetcher,
            layer_limit=limit,
        )


def layout_digest(ref: str) -> Digest:
    """Return the digest in the reference of an image in a layout.

    Raises:
        InvalidInputError: malformed, or without a digest.
    """
    digest = Reference.parse(ref).digest
    if digest is None:
        raise InvalidInputError(
            f'reference "{ref}" must have digest', hint="write oci-layout://NAME@sha256:…"
        )
    return digest
