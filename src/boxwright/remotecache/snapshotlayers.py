"""Snapshots as stacks of layer blobs and back, for the solver's cache export and import."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

from boxwright.core import gojson
from boxwright.core.dataclass import replace
from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.errors import BoxwrightError, Code, NotFoundError
from boxwright.fsutil.compress import Compression, compressor_version
from boxwright.oci import mediatypes
from boxwright.oci.annotations import CREATED, UNCOMPRESSED
from boxwright.remotecache.chains import BlobProvider
from boxwright.remotecache.format import CacheFormatError, read_time
from boxwright.remotecache.places import CacheSource
from boxwright.remotecache.reader import DESCRIPTION
from boxwright.snapshots.errors import SnapshotNotFoundError
from boxwright.snapshots.layerblobs import SnapshotBlobs
from boxwright.snapshots.layers import REWRITTEN, ensure_blobs
from boxwright.snapshots.manager import SOURCE_VARIANT, SnapshotManager
from boxwright.snapshots.node import LayerBlob, Node
from boxwright.snapshots.refs import ImmutableRef, Layer
from boxwright.solver.types import Remote
from boxwright.sources.fetch import BlobFetcher
from boxwright.store.leases import Lease
from boxwright.store.store import Store

_DAMAGE = frozenset((Code.DIGEST_MISMATCH, Code.NOT_FOUND, Code.SOURCE_NOT_FOUND))


async def known_remote(ref: ImmutableRef, compression: Compression) -> Remote | None:
    """Return the blobs that a snapshot has already; None if one is missing.

    Blobs of an image that were never fetched count: whoever wants them can have them.
    """
    return _stack(ref, await ref.layers(), compression)


async def make_remote(
    ref: ImmutableRef, store: Store, compression: Compression, lease: Lease
) -> Remote:
    """Return the blobs of a snapshot, making those that are missing.

    Raises:
        BoxwrightError: a layer can't be made or fetched.
    """
    layers = await ref.layers()
    known = _stack(ref, layers, compression, exact=True)
    if known is not None:
        return known
    exported = await ensure_blobs(
        ref, store=store, compression=compression, lease=lease, lazy=True
    )
    owners = {made.descriptor.digest: made.snapshot_id for made in exported}
    dated = tuple(_dated(made.descriptor, made.created_ns) for made in exported)
    return Remote(dated, SnapshotBlobs(ref.manager, owners))


def _stack(
    ref: ImmutableRef,
    layers: Sequence[Layer],
    compression: Compression,
    *,
    exact: bool = False,
) -> Remote | None:
    found: list[Descriptor] = []
    owners: dict[Digest, str] = {}
    for layer in layers:
        descriptor = _choose(layer, compression, exact=exact)
        if descriptor is None or layer.diff_id is None:
            return None
        # an estargz blob has a diff id of its own
        noted = {UNCOMPRESSED: str(layer.diff_id)}
        found.append(_dated(descriptor, layer.created_ns, noted))
        owners[descriptor.digest] = layer.snapshot_id
    if not found:
        return None
    return Remote(tuple(found), SnapshotBlobs(ref.manager, owners))


def _dated(
    descriptor: Descriptor, created_ns: int, unless: Mapping[str, str] | None = None
) -> Descriptor:
    """Return a descriptor that says when its layer was made: images that use it say so, too.

    Args:
        descriptor: Of the layer.
        created_ns: Since the epoch.
        unless: What it says, too, unless it says so already.
    """
    noted = {**(unless or {}), **descriptor.annotations, CREATED: gojson.time_text(created_ns)}
    return replace(descriptor, annotations=noted)


def _choose(layer: Layer, compression: Compression, *, exact: bool) -> Descriptor | None:
    """Return the blob of a layer that an export should use, if there is one."""
    source = layer.blobs.get(SOURCE_VARIANT)
    if source is not None and (not compression.force or _is(source, compression)):
        return source
    made = layer.blobs.get(compressor_version(compression))
    if made is not None or exact or compression.force:
        return made
    others = [d for d in layer.blobs.values() if REWRITTEN not in d.annotations]
    return min(others, key=lambda d: (not _is(d, compression), d.digest), default=None)


def _is(descriptor: Descriptor, compression: Compression) -> bool:
    try:
        return mediatypes.layer_compression(descriptor.media_type) == compression.algorithm
    except BoxwrightError:
        return False


class DamagedCacheError(BoxwrightError):
    """A layer of an imported cache that was hit can't be had after all."""

    code = Code.DIGEST_MISMATCH

    def __init__(self, name: str, descriptor: Descriptor, cause: BoxwrightError) -> None:
        super().__init__(
            f"the cache imported from {name} is damaged",
            detail=f"layer {descriptor.digest}: {cause}",
            hint="run it again: this cache is no longer used; then export it anew",
        )


class SourceBlobs:
    """Delivers layers of an imported cache, and remembers which ones it has.

    Args:
        name: the import, for messages.
        source: where the cache is.
        fetcher: brings blobs into the store.
        snapshots: whose lazy layers stand on this cache.
    """

    def __init__(
        self, name: str, source: CacheSource, fetcher: BlobFetcher, snapshots: SnapshotManager
    ) -> None:
        self._name = name
        self._source = source
        self._fetcher = fetcher
        self._snapshots = snapshots
        self._present: dict[Digest, bool] = {}
        self._lazy: set[str] = set()
        self.on_damage: Callable[[], None] = lambda: None
        """Called when a layer turns out to be gone or not what its digest says."""

    async def ensure(self, descriptor: Descriptor) -> None:
        """Have a blob in the store.

        Raises:
            DamagedCacheError: it is gone or damaged, or the place can't be reached.
            BoxwrightError: there is no room.
        """
        try:
            await self._fetcher.fetch(self._source, descriptor)
        except BoxwrightError as error:
            if error.code is Code.DISK_FULL:
                raise
            self._give_up()
            if error.code in _DAMAGE:
                self.on_damage()
            raise DamagedCacheError(self._name, descriptor, error) from error

    def origin(self, descriptor: Descriptor) -> Mapping[str, str]:
        """Return the labels of blobs that come from here."""
        return self._source.source_labels

    def note(self, layers: Sequence[Layer]) -> None:
        """Remember snapshots that will be fetched from here when somebody reads them."""
        self._lazy.update(layer.snapshot_id for layer in layers)

    def close(self) -> None:
        """End with the build: what nobody has read by now would need its client's logins."""
        if not any(node.refs for node in self._nodes()):
            self._give_up()

    def _give_up(self) -> None:
        """Let everything that stands on this cache be a miss from now on."""
        for node in self._nodes():
            node.fetches.clear()

    def _nodes(self) -> Iterator[Node]:
        for snapshot_id in self._lazy:
            with contextlib.suppress(SnapshotNotFoundError):  # pruned meanwhile
                yield self._snapshots.node(snapshot_id)

    async def is_there(self, descriptor: Descriptor) -> bool:
        """Return whether a blob is here or can be had, without fetching it."""
        if self._snapshots.store.blobs.stat(descriptor.digest) is not None:
            return True
        if descriptor.digest not in self._present:
            try:
                self._present[descriptor.digest] = await self._source.has(descriptor)
            except BoxwrightError:
                self._present[descriptor.digest] = False
        return self._present[descriptor.digest]


def lazy_layers(remote: Remote) -> list[LayerBlob]:
    """Return imported layers for :meth:`SnapshotManager.from_blobs`, fetched when read.

    Raises:
        CacheFormatError: a layer does not say what it is uncompressed.
    """
    provider = remote.provider
    if not isinstance(provider, BlobProvider):
        raise CacheFormatError("an imported cache result has no source")
    return [
        LayerBlob(
            _without_facts(descriptor),
            _diff_id(descriptor),
            _fetching(provider, descriptor),
            provider.origin(descriptor),
            description=descriptor.annotations.get(DESCRIPTION, ""),
            created_ns=read_time(descriptor.annotations.get(CREATED, "")),
        )
        for descriptor in remote.descriptors
    ]


def _without_facts(descriptor: Descriptor) -> Descriptor:
    """Return a descriptor without what is kept with the snapshot: images don't show it."""
    noted = {k: v for k, v in descriptor.annotations.items() if k not in (CREATED, DESCRIPTION)}
    return replace(descriptor, annotations=noted)


def _fetching(provider: BlobProvider, descriptor: Descriptor) -> Callable[[], Awaitable[None]]:
    async def fetch() -> None:
        await provider.ensure(descriptor)

    return fetch


def _diff_id(descriptor: Descriptor) -> Digest:
    text = descriptor.annotations.get(UNCOMPRESSED)
    if text is None and _is(descriptor, Compression("uncompressed")):
        return descriptor.digest
    if text is None:
        raise CacheFormatError(
            "a layer of the cache lacks its diff id", detail=str(descriptor.digest)
        )
    return Digest(text)


async def open_layers(
    remote: Remote, snapshots: SnapshotManager, *, description: str
) -> ImmutableRef:
    """Return a lazy snapshot of imported layers, owned by the caller.

    Raises:
        NotFoundError: a layer is gone from where the cache is: the record is a miss.
        CacheFormatError: the layers are not described well enough.
    """
    provider = remote.provider
    if isinstance(provider, SourceBlobs):
        for descriptor in remote.descriptors:
            if not await provider.is_there(descriptor):
                raise NotFoundError(
                    "a layer of the imported cache is gone", detail=str(descriptor.digest)
                )
    ref = snapshots.from_blobs(lazy_layers(remote), description=description)
    if isinstance(provider, SourceBlobs):
        provider.note(await ref.layers())
    return ref
