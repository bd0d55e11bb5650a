"""Places that images are read from and written to: registries, OCI layouts, a state folder.

``NAME`` is a registry's, ``oci:FOLDER[:TAG]`` a layout's, ``store:NAME`` the state folder's.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.core.reference import Reference
from boxwright.core.workers import to_worker
from boxwright.engine.verify import ImageGraph, verify_push
from boxwright.errors import BoxwrightError, Code, InvalidInputError, NotFoundError
from boxwright.oci import layout, mediatypes
from boxwright.oci.manifest import MAX_MANIFEST_BYTES, Index, Manifest, detect_media_type
from boxwright.session.providers.layoutindex import entries_of

if TYPE_CHECKING:
    from boxwright.registry.client import RegistryClient
    from boxwright.store.leases import Lease
    from boxwright.store.store import Store

LAYOUT_PREFIX = "oci:"
STORE_PREFIX = "store:"
_CHUNK = 1 << 20


class ImageDamagedError(BoxwrightError):
    """Bytes of an image that are not what their digest says, or are not there."""

    code = Code.DIGEST_MISMATCH


class ImagePlace(Protocol):
    """Where one image is."""

    @property
    def name(self) -> str:
        """As messages have it."""
        ...

    async def manifest(self, digest: Digest | None) -> tuple[Descriptor, bytes]:
        """Return the image's root, or a manifest in it, verified.

        Raises:
            BoxwrightError: it is not there, or the place can't be asked.
        """
        ...

    async def has(self, blob: Descriptor) -> bool:
        """Return whether a blob is there and (where that is cheap) whole."""
        ...

    async def open(self, blob: Descriptor) -> BinaryIO:
        """Return a file with a blob, verified; the caller closes it.

        Raises:
            ImageDamagedError: it is something else.
            BoxwrightError: it is not there.
        """
        ...


class ImageTarget(Protocol):
    """Where one image goes: blobs first, then manifests with children first, then the end."""

    async def put_blob(self, blob: Descriptor, source: ImagePlace) -> None:
        """Take a blob, unless it is there."""
        ...

    async def put_manifest(self, descriptor: Descriptor, body: bytes, *, is_root: bool) -> None:
        """Take a manifest whose children are there."""
        ...

    async def finish(self, root: Descriptor, graph: ImageGraph) -> None:
        """Give the image its name, and confirm that it is there."""
        ...

    async def close(self) -> None:
        """Let go of what was only needed while the image came."""
        ...


def _verified(file: BinaryIO, blob: Descriptor, name: str) -> BinaryIO:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    algorithm = blob.digest.algorithm
    found = Digest.of_hash(algorithm, hashlib.file_digest(file, algorithm).hexdigest())  # type: ignore[arg-type]
    if found != blob.digest:
        raise ImageDamagedError(
            f"{name} has other bytes under a digest",
            detail=f"{blob.digest} ({blob.size} bytes): found {found} ({size} bytes)",
        )
    file.seek(0)
    return file


async def chunks(file: BinaryIO) -> AsyncIterator[bytes]:
    """Yield a file's bytes from where it stands, then close it."""
    with file:
        while data := await to_worker(file.read, _CHUNK):
            yield data


class _FileSink:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    async def write(self, data: bytes) -> None:
        await to_worker(self._file.write, data)


class RegistryPlace:
    """An image in a registry, to read from and to write to."""

    def __init__(self, client: RegistryClient, ref: Reference, *, insecure: bool = False) -> None:
        self._client = client
        self.ref = ref.with_default_tag()
        self._insecure = True if insecure else None

    @property
    def name(self) -> str:
        """The reference as Docker shows it."""
        return self.ref.familiar

    async def manifest(self, digest: Digest | None) -> tuple[Descriptor, bytes]:
        """Fetch the root or another manifest, never from a mirror."""
        ref = self.ref
        if digest is not None:
            ref = Reference(ref.host, ref.path, digest=digest)
        return await self._client.fetch_manifest(ref, insecure=self._insecure, mirrors=False)

    async def has(self, blob: Descriptor) -> bool:
        """Ask with the rights of a puller."""
        return await self._client.has_blob(
            self.ref, blob.digest, insecure=self._insecure, push=False
        )

    async def open(self, blob: Descriptor) -> BinaryIO:
        """Fetch a blob into a temporary file."""
        file: BinaryIO = tempfile.TemporaryFile(prefix="boxwright-blob-")  # noqa: SIM115
        try:
            await self._client.fetch_blob(self.ref, blob, _FileSink(file), insecure=self._insecure)
            return await to_worker(_verified, file, blob, self.name)
        except BaseException:
            file.close()
            raise

    async def put_blob(self, blob: Descriptor, source: ImagePlace) -> None:
        """Push a blob; one of the same registry is mounted where that is possible."""
        mount_from = ""
        if isinstance(source, RegistryPlace) and source.ref.host == self.ref.host:
            mount_from = "" if source.ref.path == self.ref.path else source.ref.path

        async def read() -> AsyncIterator[bytes]:
            async for data in chunks(await source.open(blob)):
                yield data

        await self._client.push_blob(
            self.ref, blob, read, insecure=self._insecure, mount_from=mount_from
        )

    async def put_manifest(self, descriptor: Descriptor, body: bytes, *, is_root: bool) -> None:
        """Push a manifest; only the root gets the tag."""
        await self._client.push_manifest(
            self.ref,
            descriptor.media_type,
            body,
            insecure=self._insecure,
            by_digest=not is_root or not self.ref.tag,
            digest=descriptor.digest,
        )

    async def finish(self, root: Descriptor, graph: ImageGraph) -> None:
        """Confirm that all of it can be pulled."""
        await verify_push(
            self._client,
            self.ref,
            root,
            graph,
            insecure=self._insecure,
            by_digest=not self.ref.tag,
        )

    async def close(self) -> None:
        """Nothing to let go of; the client is its owner's."""


class LayoutPlace:
    """An image in an OCI layout on disk, to read from and to write to."""

    def __init__(self, folder: Path, tag: str = "") -> None:
        self._folder = folder
        self._tag = tag

    @property
    def name(self) -> str:
        """The folder, with the tag if there is one."""
        return f"{LAYOUT_PREFIX}{self._folder}" + (f":{self._tag}" if self._tag else "")

    async def manifest(self, digest: Digest | None) -> tuple[Descriptor, bytes]:
        """Read the image that the tag or digest names, or a manifest in it."""
        return await to_worker(self._manifest, digest)

    def _manifest(self, digest: Digest | None) -> tuple[Descriptor, bytes]:
        if digest is None:
            index = Index.decode(self._read(layout.INDEX_FILE))
            is_digest = ":" in self._tag
            found = layout.find(
                index,
                tag="" if is_digest else self._tag,
                digest=Digest(self._tag) if is_digest else None,
            )
            digest = found.digest
        body = self._read(layout.blob_path(digest))
        if not digest.matches(body):
            raise ImageDamagedError(
                f"{self.name} has other bytes under a digest", detail=str(digest)
            )
        return Descriptor(detect_media_type(body), digest, len(body)), body

    def _read(self, name: str) -> bytes:
        try:
            with (self._folder / name).open("rb") as file:
                data = file.read(MAX_MANIFEST_BYTES + 1)
        except OSError as error:
            raise NotFoundError(
                f"{self.name}: {error.strerror}: {name}", hint="name the folder of an OCI layout"
            ) from error
        return data

    async def has(self, blob: Descriptor) -> bool:
        """Read the whole blob."""
        try:
            (await self.open(blob)).close()
        except (ImageDamagedError, NotFoundError):
            return False
        return True

    async def open(self, blob: Descriptor) -> BinaryIO:
        """Open a blob's file."""
        path = self._folder / layout.blob_path(blob.digest)
        try:
            file = path.open("rb")
        except OSError as error:
            raise NotFoundError(
                f"{self.name} lacks a blob", detail=f"{blob.digest}: {error.strerror}"
            ) from error
        try:
            return await to_worker(_verified, file, blob, self.name)
        except BaseException:  # also when a sibling's failure ends the wait
            file.close()
            raise

    async def put_blob(self, blob: Descriptor, source: ImagePlace) -> None:
        """Copy a blob into the folder."""
        path = self._folder / layout.blob_path(blob.digest)
        if not await to_worker(path.exists):
            with await source.open(blob) as file:
                await to_worker(_publish, path, file)

    async def put_manifest(self, descriptor: Descriptor, body: bytes, *, is_root: bool) -> None:
        """Write a manifest."""
        del is_root
        await to_worker(_write, self._folder / layout.blob_path(descriptor.digest), body)

    async def finish(self, root: Descriptor, graph: ImageGraph) -> None:
        """Enter the image into ``index.json``, in place of another of its name."""
        del graph
        await to_worker(self._enter, root)

    def _enter(self, root: Descriptor) -> None:
        names = {layout.REF_NAME: self._tag} if self._tag else {}
        entry = Descriptor(root.media_type, root.digest, root.size, names).to_json()
        with entries_of(self._folder) as entries:
            entries[:] = [item for item in entries if _tag_of(item) != self._tag]
            # Without a tag it can be found by its digest, also under a tag that it has already.
            if self._tag or all(item.get("digest") != root.digest for item in entries):
                entries.append(entry)

    async def close(self) -> None:
        """Nothing to let go of."""


def _tag_of(entry: dict[str, Any]) -> str:
    annotations = entry.get("annotations")
    return str(annotations.get(layout.REF_NAME, "")) if isinstance(annotations, dict) else ""


def _publish(path: Path, source: BinaryIO) -> None:
    """Copy an open file, which stays open, to a path that appears when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, staged = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(fd, "wb") as file:
            while data := source.read(_CHUNK):
                file.write(data)
        os.chmod(staged, 0o644)
        os.rename(staged, path)
    except BaseException:
        os.unlink(staged)
        raise


def _write(path: Path, data: bytes) -> None:
    import io

    _publish(path, io.BytesIO(data))


class StorePlace:
    """An image in a state folder that this process has open."""

    def __init__(self, store: Store, ref: Reference) -> None:
        self._store = store
        self._ref = ref.with_default_tag()
        self._lease: Lease | None = None

    @property
    def name(self) -> str:
        """The image's name."""
        return STORE_PREFIX + self._ref.familiar

    async def manifest(self, digest: Digest | None) -> tuple[Descriptor, bytes]:
        """Read the named image's root, or a manifest in it."""
        found = self._store.images.get(str(self._ref))
        if found is None:
            raise NotFoundError(
                f"no image named {self._ref.familiar}", hint="list them with boxwright image ls"
            )
        body = await to_worker(self._store.blobs.read, digest or found.digest)
        if digest is None:
            return found, body
        return Descriptor(detect_media_type(body), digest, len(body)), body

    async def has(self, blob: Descriptor) -> bool:
        """Ask the store."""
        return await to_worker(self._store.blobs.stat, blob.digest) is not None

    async def open(self, blob: Descriptor) -> BinaryIO:
        """Open a blob; the store has verified it when it came."""
        return await to_worker(self._store.blobs.open, blob.digest)

    async def put_blob(self, blob: Descriptor, source: ImagePlace) -> None:
        """Take a blob into the store."""
        await self._hold(blob.digest)
        if not await self.has(blob):
            with await source.open(blob) as file:
                await to_worker(self._take, blob, file)

    async def _hold(self, digest: Digest) -> None:
        if self._lease is None:
            self._lease = await to_worker(self._store.leases.create)
        await to_worker(self._lease.add_blob, digest)

    def _take(self, blob: Descriptor, source: BinaryIO) -> None:
        with self._store.blobs.writer(expected=blob.digest) as writer:
            while data := source.read(_CHUNK):
                writer.write(data)
            writer.commit()

    async def put_manifest(self, descriptor: Descriptor, body: bytes, *, is_root: bool) -> None:
        """Take a manifest, with what it refers to."""
        del is_root
        await self._hold(descriptor.digest)
        await to_worker(self._store.blobs.put, body, expected=descriptor.digest)
        is_index = mediatypes.is_index(descriptor.media_type)
        parts = Index.decode(body).manifests if is_index else Manifest.decode(body).children()
        children = [part.digest for part in parts]
        await to_worker(self._store.blobs.add_refs, descriptor.digest, children)

    async def finish(self, root: Descriptor, graph: ImageGraph) -> None:
        """Name the image."""
        del graph
        await to_worker(self._store.images.set, str(self._ref), root)

    async def close(self) -> None:
        """Give the lease up."""
        if self._lease is not None:
            await to_worker(self._lease.release)
            self._lease = None


Place = RegistryPlace | LayoutPlace | StorePlace


def layout_place(text: str) -> LayoutPlace:
    """Return the place that ``oci:FOLDER[:TAG]`` or ``oci:FOLDER@DIGEST`` names.

    Raises:
        InvalidInputError: no folder is named.
    """
    rest = text.removeprefix(LAYOUT_PREFIX).removeprefix("//")
    folder, at, digest = rest.partition("@")
    tag = digest if at else ""
    if not at:
        head, colon, tail = rest.rpartition(":")
        folder, tag = (head, tail) if colon and "/" not in tail else (rest, "")
    if not folder:
        raise InvalidInputError("no folder is named", detail=text, hint="write oci:FOLDER[:TAG]")
    return LayoutPlace(Path(folder), tag)
