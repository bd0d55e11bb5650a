"""Where an image name leads: this store's tags, a registry, or a client's OCI layout.

Resolve modes are BuildKit's: ``pull`` asks the registry, ``local`` prefers the store's tags,
``default`` asks the registry and falls back to the tags when it can't be asked. A name with
a digest whose manifest is already in the store needs no registry at all.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.core.platform import Platform
from boxwright.core.reference import Reference
from boxwright.dockerfile.bridge import OciStore
from boxwright.engine.attestationchain import AttestationChain, ChainQuestion, resolve_chain
from boxwright.errors import BoxwrightError, Code, InvalidInputError
from boxwright.session.manager import SessionManager
from boxwright.snapshots.manager import SnapshotManager
from boxwright.sources.fetch import BlobFetcher, ImageRemote
from boxwright.sources.image import ImageSource, ResolvedManifest, resolve_manifest
from boxwright.sources.oci_layout import LayoutImage, layout_digest
from boxwright.sources.registry import Clients, RegistryImage
from boxwright.sources.stored import KeptImage, StoredImage
from boxwright.store.store import Store

_log = logging.getLogger(__name__)

_MODES = frozenset({"", "default", "pull", "local"})
_FALLBACK_CODES = frozenset({Code.REGISTRY_UNREACHABLE, Code.NOT_FOUND, Code.REGISTRY_AUTH})


class Images:
    """Resolves image names for one engine."""

    def __init__(self, store: Store, clients: Clients, sessions: SessionManager) -> None:
        self._store = store
        self._clients = clients
        self._sessions = sessions

    async def resolve_config(
        self,
        ref: str,
        *,
        platform: Platform | None,
        resolve_mode: str,
        sessions: Sequence[str],
        store: OciStore | None = None,
    ) -> tuple[str, Digest | None, bytes]:
        """Return the name, the digest of manifest or index, and the config for a platform.

        Raises:
            BoxwrightError: not found, unreachable, or malformed.
        """
        wanted = platform or Platform.host()
        if store is not None:
            remote = self._layout(ref, store, sessions)
            resolved = await self._resolve(remote, ref, wanted)
            return ref, resolved.root.digest, resolved.config
        name = Reference.parse(ref).with_default_tag()
        remote, root, body = await self.open(name, resolve_mode, sessions)
        resolved = await resolve_manifest(remote, name.familiar, root, body, wanted)
        return str(name), resolved.root.digest, resolved.config

    async def attestation_chain(
        self, question: ChainQuestion, *, resolve_mode: str, sessions: Sequence[str]
    ) -> tuple[Digest, AttestationChain]:
        """Return an image's root and the chain to what is said about it.

        Raises:
            BoxwrightError: not found, unreachable, malformed or too large.
        """
        name = Reference.parse(question.name).with_default_tag()
        remote, root, body = await self.open(name, resolve_mode, sessions)

        async def find_referrers(subject: Digest) -> list[Descriptor]:
            if isinstance(remote, StoredImage):
                return []  # a name of the image store; nothing refers to its manifests
            # Not at start: it brings the HTTP stack with it.
            from boxwright.registry.referrers import referrers

            async with self._clients(sessions) as client:
                return await referrers(client, name, subject)

        return root.digest, await resolve_chain(question, remote, (root, body), find_referrers)

    async def open(
        self, name: Reference, resolve_mode: str, sessions: Sequence[str]
    ) -> tuple[ImageRemote, Descriptor, bytes]:
        """Return a place that has the image, and its root manifest.

        Raises:
            InvalidInputError: no such resolve mode.
            BoxwrightError: no place has it; the registry's own error.
        """
        if resolve_mode not in _MODES:
            raise InvalidInputError(
                f"invalid resolvemode: {resolve_mode}", hint="default, pull or local"
            )
        tag = self._tag(name)
        if tag is not None and (resolve_mode == "local" or name.digest):
            root, body = await tag.manifest(None)
            return tag, root, body
        remote = KeptImage(self._store, RegistryImage(name, self._clients, sessions))
        try:
            root, body = await remote.manifest(name.digest)
        except BoxwrightError as exc:
            if tag is None or resolve_mode == "pull" or exc.code not in _FALLBACK_CODES:
                raise
            _log.info("using the stored image %s: %s", name.familiar, exc)
            root, body = await tag.manifest(None)
            return tag, root, body
        return remote, root, body

    def _tag(self, name: Reference) -> StoredImage | None:
        for text in (str(name), name.familiar):
            found = self._store.images.get(text)
            if found is not None and (name.digest is None or found.digest == name.digest):
                return StoredImage(self._store, found)
        return None

    async def _resolve(
        self, remote: ImageRemote, name: str, platform: Platform
    ) -> ResolvedManifest:
        root, body = await remote.manifest(None)
        return await resolve_manifest(remote, name, root, body, platform)

    def _layout(self, ref: str, store: OciStore, sessions: Sequence[str]) -> ImageRemote:
        """Return an image in a client's OCI layout."""
        ids = (store.session_id,) if store.session_id else tuple(sessions)
        return LayoutImage(self._sessions, ids, store.store_id, layout_digest(ref))


class ImageProvider:
    """Sources of the scheme ``docker-image`` (:class:`sources.base.SourceProvider`)."""

    def __init__(self, images: Images, snapshots: SnapshotManager, fetcher: BlobFetcher) -> None:
        self._images = images
        self._snapshots = snapshots
        self._fetcher = fetcher

    def resolve(
        self, rest: str, attrs: Mapping[str, str], platform: Platform | None
    ) -> ImageSource:
        """Return the source of an image name.

        Raises:
            InvalidInputError: the name or an attribute is malformed.
        """
        name = Reference.parse(rest).with_default_tag()
        limit = attrs.get("image.layerlimit", "")
        if limit and not (limit.isdigit() and int(limit)):
            raise InvalidInputError(f"invalid layer limit {limit}")
        checksum = attrs.get("image.checksum", "")
        mode = attrs.get("image.resolvemode", "")

        async def open_image(
            sessions: Sequence[str],
        ) -> tuple[ImageRemote, Descriptor, bytes]:
            return await self._images.open(name, mode, sessions)

        return ImageSource(
            str(name),
            open_image,
            platform or Platform.host(),
            self._snapshots,
            self._fetcher,
            checksum=Digest(checksum) if checksum else None,
            layer_limit=int(limit) if limit else None,
            record_type=attrs.get("image.recordtype", "regular"),
        )
